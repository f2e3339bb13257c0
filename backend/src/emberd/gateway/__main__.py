"""The supervisor of the gateway: ``python -m emberd.gateway FOLDER START_ID DESCRIPTOR``."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Before the imports: see ``emberd.verified_manager``.
    if os.fork():
        os._exit(0)
    from emberd.gateway.gateway_supervisor import GatewaySupervisor
    from emberd.manager import process_supervisor

    code = process_supervisor.main(sys.argv[1:], GatewaySupervisor)
    sys.stderr.flush()
    os._exit(code)
