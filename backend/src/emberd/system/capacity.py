"""Memory, tasks and cores that this process may use, within the limits of its control groups.

It runs in an engine's interpreter too, which may not have psutil.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_KIB: Final = 1024
_MEMORY_FILE: Final = Path("/proc/meminfo")
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")
_UNIFIED: Final = ""  # the controllers that /proc/self/cgroup states for version 2
# Version 1 writes the largest number of pages for "no limit"; no machine has that much memory.
_NO_LIMIT_BYTES: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class Limit:
    """A quantity that is limited.

    Attributes:
        limit: How much there is, or may be used.
        free: How much of it may still be used.
    """

    limit: int
    free: int


def machine_memory() -> Limit | None:
    """Return the memory of this machine in bytes; None if it is unknown."""
    if sys.platform == "linux":
        with suppress(OSError, ValueError, LookupError):
            lines = _MEMORY_FILE.read_text(encoding="utf-8").splitlines()
            facts = {
                name: rest.split() for name, _, rest in (line.partition(":") for line in lines)
            }
            total, available = (int(facts[name][0]) for name in ("MemTotal", "MemAvailable"))
            return Limit(total * _KIB, available * _KIB)
        return None
    try:
        import psutil
    except ImportError:
        return None
    seen = psutil.virtual_memory()
    return Limit(seen.total, seen.available)


def memory_limit() -> Limit | None:
    """Return the tightest limit on the memory of this process in bytes; None if there is none.

    Clean pages of files count as free, as in the MemAvailable of a machine: the kernel drops them
    when memory is short. Among them are the weights that the last server mapped.
    """
    found = []
    for folder in _folders("memory"):
        # Above memory.high the kernel takes pages back, before memory.max ends processes.
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.high", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            with suppress(OSError, ValueError):  # another version, or "max": no limit here
                limit = int((folder / limit_file).read_text())
                if limit < _NO_LIMIT_BYTES:
                    used = int((folder / used_file).read_text()) - _clean(folder)
                    found.append(Limit(limit, max(0, limit - used)))
    return min(found, key=lambda limit: limit.free, default=None)


def free_memory() -> int | None:
    """Return the bytes of memory that this process may still use; None if that is unknown.

    A container is killed at its own limit, however much memory the machine has.
    """
    machine, limit = machine_memory(), memory_limit()
    if machine is None:
        return None
    return machine.free if limit is None else min(machine.free, limit.free)


def task_limit() -> Limit | None:
    """Return the tightest limit on processes and threads of a control group; None if none."""
    found = []
    for folder in _folders("pids"):
        with suppress(OSError, ValueError):
            limit = int((folder / "pids.max").read_text())
            found.append(Limit(limit, limit - int((folder / "pids.current").read_text())))
    return min(found, key=lambda limit: limit.free, default=None)


def cores() -> int:
    """Return how many cores this process may use.

    In a container this is less than the machine has: 64 threads on a quota of two cores spend
    their time waiting for each other.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [allowed or 1]
    for folder in _folders("cpu"):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with suppress(OSError, ValueError):  # another version, or "max"
                words = " ".join((folder / name).read_text() for name in files).split()
                quota, period = map(int, words)
                if quota > 0:  # -1 in version 1: no limit
                    found.append(math.ceil(quota / period))
    return max(1, min(found))


def _clean(folder: Path) -> int:
    """Return the bytes of a group's file pages that the kernel can drop without writing them."""
    with suppress(OSError, ValueError):
        lines = (folder / "memory.stat").read_text().splitlines()
        facts = {name: int(number) for name, number in (line.split() for line in lines)}
        # Version 1 has other names for the sums of a group and its subgroups.
        is_first = "total_active_file" in facts
        prefix, changed = ("total_", "") if is_first else ("", "file_")
        dropped = (f"{prefix}active_file", f"{prefix}inactive_file")
        kept = (f"{prefix}{changed}dirty", f"{prefix}{changed}writeback")
        pages = sum(facts.get(name, 0) for name in dropped)
        return max(0, pages - sum(facts.get(name, 0) for name in kept))
    return 0


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and of those above it, by both versions.

    In a container a path may be that of the host, and missing; the folders above it are those of
    the container.
    """
    if sys.platform != "linux":
        return
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, own = rest.partition(":")
        if controllers == _UNIFIED:
            top = _CGROUPS
        elif controller in controllers.split(","):
            top = _CGROUPS / controller
        else:
            continue
        folder = top / own.lstrip("/")
        yield from (at for at in (folder, *folder.parents) if at.is_relative_to(top))
