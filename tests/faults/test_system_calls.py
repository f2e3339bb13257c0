"""Every system call that matters fails once, and kills its process once; a few in ``make test``."""

from __future__ import annotations

import pytest

from faults import programs, strace
from faults.scale import scale


@pytest.mark.timeout(4 * 3600)
def test_next_call_works_after_any_system_call_failed() -> None:
    if reason := strace.why_not():
        pytest.skip(reason)
    sample = ["--run", "client", "--sample", "2"] if scale(1, 0) else []
    programs.run("faults.system_calls", *sample)
