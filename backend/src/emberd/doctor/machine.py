"""Memory, shared memory and limits of this machine or container."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from emberd.doctor.findings import Finding, note, ok, problem
from emberd.doctor.wanted import Wanted
from emberd.installs import in_words

_SHARED: Final = Path("/dev/shm")  # noqa: S108 - where Linux keeps it; nothing is made there
_LEAST_SHARED_BYTES: Final = 64 * 1024 * 1024
_LEAST_SHARED_SPREAD_BYTES: Final = 1024 * 1024 * 1024
_LEAST_MEMORY_BYTES: Final = 4_000_000_000  # four Python processes, three of them with torch
_LEAST_FILES: Final = 1024
_LEAST_TASKS: Final = 1024  # processes and threads; torch makes some for each core
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")
_SHM_ADVICE: Final = "In a container: docker run --shm-size 1g (or --ipc=host)"


def look(wanted: Wanted) -> Iterator[Finding]:
    """Yield what memory there is, and which limits hold."""
    yield _memory()
    if sys.platform == "linux":
        yield _shared(wanted)
        yield from _cgroup()
    yield from _limits()


def _memory() -> Finding:
    import psutil

    seen = psutil.virtual_memory()
    fact = f"{in_words(seen.available)} of {in_words(seen.total)} available"
    if seen.available < _LEAST_MEMORY_BYTES:
        return note(
            "memory",
            f"{fact}: a server's processes take about {in_words(_LEAST_MEMORY_BYTES)} besides "
            f"what the model takes on its device",
            "Free some memory, or the kernel may kill the server while it loads.",
        )
    return ok("memory", fact)


def _shared(wanted: Wanted) -> Finding:
    try:
        facts = os.statvfs(_SHARED)
    except OSError as error:
        return note("shared memory", f"{_SHARED} cannot be used ({error.strerror})", _SHM_ADVICE)
    free = facts.f_bavail * facts.f_frsize
    needed = _LEAST_SHARED_SPREAD_BYTES if wanted.options.gpus > 1 else _LEAST_SHARED_BYTES
    fact = f"{in_words(free)} free in {_SHARED}"
    if not os.access(_SHARED, os.W_OK):
        return problem("shared memory", f"{_SHARED} may not be written by this user", _SHM_ADVICE)
    if free < needed:
        return note("shared memory", f"{fact}, and a server wants {in_words(needed)}", _SHM_ADVICE)
    return ok("shared memory", fact)


def _cgroup() -> Iterator[Finding]:
    memory = _cgroup_figures("memory.max", "memory.current")
    if memory is not None:
        limit, used = memory
        left = max(0, limit - used)
        fact = f"this container or session may take {in_words(limit)}; {in_words(left)} are left"
        if left < _LEAST_MEMORY_BYTES:
            yield note("memory limit", fact, "Raise it (docker run --memory, MemoryMax=).")
        else:
            yield ok("memory limit", fact)
    tasks = _cgroup_figures("pids.max", "pids.current")
    if tasks is not None and tasks[0] - tasks[1] < _LEAST_TASKS:
        yield note(
            "task limit",
            f"{tasks[1]} of {tasks[0]} processes and threads are there already",
            "Raise it (docker run --pids-limit, TasksMax=): a server makes some hundreds.",
        )


def _cgroup_figures(limit_file: str, used_file: str) -> tuple[int, int] | None:
    """Return the tightest limit above this process, and what is used of it; None for none."""
    found = []
    for folder in _cgroup_folders():
        try:
            limit = (folder / limit_file).read_text().strip()
            found.append((int(limit), int((folder / used_file).read_text())))
        except (OSError, ValueError):  # "max": no limit here
            continue
    return min(found, key=lambda pair: pair[0] - pair[1]) if found else None


def _cgroup_folders() -> list[Path]:
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return []
    # Of version 2 alone: one hierarchy, its line begins with 0.
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = _CGROUPS / own
    return [at for at in (folder, *folder.parents) if at.is_relative_to(_CGROUPS)]


def _limits() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # Windows has none
        return
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    tasks = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    low = [
        f"ulimit {option} {limit}"
        for option, limit, least in (("-n", files, _LEAST_FILES), ("-u", tasks, _LEAST_TASKS))
        if limit != resource.RLIM_INFINITY and limit < least
    ]
    if low:
        raised = [f"ulimit {word.split()[1]} {_LEAST_FILES}" for word in low]
        yield note(
            "limits",
            f"{' and '.join(low)}: little for a server with its threads and connections",
            "; ".join(raised),
        )
        return
    shown = (_shown(limit, resource.RLIM_INFINITY) for limit in (files, tasks))
    yield ok("limits", "open files {}, processes {}".format(*shown))


def _shown(limit: int, unlimited: int) -> str:
    return "unlimited" if limit == unlimited else str(limit)
