"""Every system call that matters fails once, and kills its process once; a few in ``make test``."""

from __future__ import annotations

from typing import Final

import pytest

from faults import programs, strace
from faults.scale import scale

_POINTS: Final = [
    "client:rename:1:KILL",
    "client:flock:2:KILL",
    "idle supervisor:rename:2:EIO",
    "dying supervisor:fsync:3:ENOSPC",
]


@pytest.mark.timeout(4 * 3600)
def test_next_call_works_after_any_system_call_failed() -> None:
    if reason := strace.why_unavailable():
        pytest.skip(reason)
    points = [word for point in _POINTS for word in ("--only", point)]
    programs.run("faults.system_calls", *(points if scale(1, 0) else []))
