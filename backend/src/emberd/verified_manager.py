"""``emberd.Manager``, and the entry point of the supervisor process.

``manager`` and ``client`` do not import each other. This module joins them: it gives the manager
the client's verification, which requests a first embedding from a new server.

The supervisor runs as ``python -m emberd.verified_manager FOLDER START_ID DESCRIPTOR``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from pathlib import Path

from emberd import manager
from emberd.endpoint import Endpoint
from emberd.manager import Timing
from emberd.settings import ServerSpec
from emberd.system.listeners import Listener


class Manager(manager.ServerManager):
    """Finds, starts, watches and stops servers; verifies them with a real embedding."""

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        timing: Timing | None = None,
        share_gpu: Collection[str] | None = None,
    ) -> None:
        """Make a manager; nothing is read or written yet.

        Args:
            home: Folder of all state; None for ``EMBERD_HOME``, else the platform's.
            timing: Periods and deadlines; supervisors that it starts use them too.
            share_gpu: Models whose servers are to fit on one GPU, where no options of a start are
                given; None for the environment's value.
        """
        super().__init__(home, verify=_verify, timing=timing, share_gpu=share_gpu)


def _verify(
    url: str,
    api_key: str | None,
    spec: ServerSpec,
    listener: Listener | None,
    /,
    *,
    batch_size: int | None = None,
) -> Endpoint:
    # Imported late: the supervisor has already verified a managed server.
    from emberd.client.verify import verify

    return verify(url, api_key, spec, listener, batch_size=batch_size)


if __name__ == "__main__":
    # Before the imports: the caller waits for this process, and reading them from a cold network
    # file system may take minutes.
    if os.fork():
        os._exit(0)
    from emberd.client.verify import verify
    from emberd.manager import supervisor

    # No interpreter shutdown: a thread may still wait for a server that has ended.
    code = supervisor.main(sys.argv[1:], verify)
    sys.stderr.flush()
    os._exit(code)
