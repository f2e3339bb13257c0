"""A plan without a start: what a server's command would be, for those who only want to see it."""

from __future__ import annotations

import os
from typing import Final

from emberd.engines.base import Engine, Launch, Plan
from emberd.settings import ServerSpec, StartOptions

# In place of what is chosen at a start alone.
ANY_PORT: Final = 30_000
KEY: Final = "a-random-key-of-this-start"
FOLDER: Final = "FOLDER-OF-THE-SERVER"
_STAMP: Final = "a-random-stamp-of-this-start"


def rehearse(engine: Engine, spec: ServerSpec, options: StartOptions, home: str) -> Plan:
    """Return how ``engine`` would start a server for ``spec``; nothing is written or held.

    Args:
        engine: One that can serve it.
        spec: What is to be served.
        options: How it is to be started.
        home: The folder of all state, in which the server's would lie.

    Raises:
        StartError: The machine has not got what the plan needs.
    """
    claimed = tuple(engine.claims(spec, options))
    key = None if options.no_auth else KEY
    port = options.port or ANY_PORT
    folder = os.path.join(home, FOLDER)
    return engine.plan(spec, Launch(port, key, _STAMP, folder, options, claimed))
