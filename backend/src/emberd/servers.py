"""The manager, joined with the client's way of asking a server what it is.

``manager`` and ``client`` do not know each other; this is ``emberd.Manager``.
"""

from __future__ import annotations

from pathlib import Path

from emberd import manager
from emberd.listeners import Listener
from emberd.manager import Timing
from emberd.settings import Endpoint, ServerSpec


class Manager(manager.Manager):
    """Finds, starts, watches and stops servers; verifies them with a real embedding."""

    def __init__(self, home: str | Path | None = None, *, timing: Timing | None = None) -> None:
        """Make a manager; nothing is read or written yet.

        Args:
            home: Folder of all state; None for ``EMBERD_HOME`` or the platform's own.
            timing: Periods and deadlines; keepers started from here live by them too.
        """
        super().__init__(home, verify=_verify, timing=timing)


def _verify(url: str, api_key: str | None, spec: ServerSpec, listener: Listener | None) -> Endpoint:
    # Imported late: a managed server was verified by its keeper already.
    from emberd.client.verify import verify

    return verify(url, api_key, spec, listener)
