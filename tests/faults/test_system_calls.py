"""Every system call that matters fails once, and kills its process once; a few in ``make test``."""

from __future__ import annotations

import pytest

from faults import programs, strace
from faults.scale import scale


@pytest.mark.skipif(bool(strace.why_not()), reason=strace.why_not())
@pytest.mark.timeout(4 * 3600)
def test_next_call_works_after_any_system_call_failed() -> None:
    sample = ["--sample", "3", "--seed", "1"] if scale(1, 0) else []
    programs.run("faults.system_calls", *sample)
