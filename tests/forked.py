"""Checks in a forked process: a supervisor ends, and reaps every child of its process."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


def run(check: Callable[[], object]) -> None:
    """Call ``check`` in a forked process; fail if it raises an error there."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            check()
            status = 0
        except BaseException:  # noqa: BLE001 - shown, and reported by the exit code
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
