"""The GPU that the run uses, and how much of its memory is taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from emberd.engines import gpus

GIB: Final = 1 << 30
SLACK_BYTES: Final = 256 << 20
"""What the driver may keep, or another program take, beside what is compared."""

_POLL_S: Final = 0.1


def chosen() -> gpus.Gpu | None:
    """Return the GPU with the most free memory, or None; on one that is named, that one."""
    return next(iter(gpus.freest(gpus.survey().gpus)), None)


def problem() -> str | None:
    """Return why no GPU can be used; None where one can."""
    return gpus.survey().problem


def described() -> dict[str, Any]:
    """Return what a reader of figures has to know of the GPU."""
    gpu, seen = chosen(), gpus.survey()
    if gpu is None:
        return {}
    return {
        "name": gpu.name,
        "total_gib": round(gpu.total_bytes / GIB, 1),
        "compute_capability": ".".join(map(str, gpu.capability)),
        "driver": seen.driver,
        "cuda": ".".join(map(str, seen.cuda or ())),
    }


def used_bytes() -> int | None:
    """Return how much of the GPU's memory is taken, by whatever; None where there is no GPU."""
    gpu = chosen()
    return None if gpu is None else gpu.total_bytes - gpu.free_bytes


def settles(limit_bytes: int, seconds: float) -> int | None:
    """Return the memory taken once it is no more than a limit, or after so many seconds."""
    wait_until(lambda: (used_bytes() or 0) <= limit_bytes, seconds)
    return used_bytes()


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether something became true in time."""
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return met
