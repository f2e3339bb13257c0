"""The machine: installed software, platform, memory, limits, file systems and free disk space."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from emberd import __version__, engines, env, model_files, weight_files
from emberd.catalog import DEMO_MODEL
from emberd.doctor.findings import Finding, LateError, gather, note, ok, problem, split
from emberd.doctor.model import other_cache
from emberd.doctor.wanted import Wanted
from emberd.errors import EmberdError, StateFolderError
from emberd.installs import RECIPES
from emberd.manager import cleanup
from emberd.system import capacity
from emberd.system.disk_space import in_words

_INTEGRATIONS: Final = {
    "langchain-emberd": "langchain-core",
    "llama-index-embeddings-emberd": "llama-index-core",
}


def check_software(wanted: Wanted) -> Iterator[Finding]:
    """Yield the versions of emberd, Python and the frameworks, and the platform."""
    yield ok("emberd", f"emberd {__version__} in {Path(__file__).parents[1]}")
    yield ok(
        "python",
        f"{platform.python_implementation()} {platform.python_version()} "
        f"({sys.executable or 'embedded in another program'})",
    )
    yield _platform(wanted)
    shown = (f"{name} {_version(name) or 'absent'}" for name in ("openai", "numpy"))
    yield ok("packages", ", ".join(shown))
    for integration, framework in _INTEGRATIONS.items():
        yield _integration(integration, framework)


def _platform(wanted: Wanted) -> Finding:
    container = ""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        container = "(in a Kubernetes pod)"
    elif any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv"))):
        container = "(in a container)"
    system = platform.system()
    words = [system, platform.release(), platform.machine(), *platform.libc_ver(), container]
    fact = " ".join(filter(None, words))
    if system in ("Linux", "Darwin") or wanted.base_url is not None:
        return ok("platform", fact)
    variable = env.setting_variable("base_url", wanted.spec.task)
    return note(
        "platform",
        f"{fact}: servers are started on Linux and macOS only",
        f"Use a server on another machine: {variable}=http://HOST:30000/v1",
    )


def _integration(name: str, framework: str) -> Finding:
    version, beside = _version(name), _version(framework)
    if version is None and beside is not None:
        return note(
            framework,
            f"{framework} {beside} is installed, but {name} is not",
            f"To use emberd with it: pip install {name}",
        )
    if version is None:
        return ok(framework, f"neither {framework} nor {name} is installed")
    if version != __version__:
        return note(
            name,
            f"{name} {version} is installed with emberd {__version__}: the versions must be equal",
            f"pip install --upgrade emberd {name}",
        )
    return ok(name, f"{name} {version} with {framework} {beside or 'absent'}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


_SHARED: Final = Path("/dev/shm")  # noqa: S108 - mounted there by Linux; no file is created
_LEAST_SHARED_BYTES: Final = 64 * 1024 * 1024
_LEAST_SHARED_SPREAD_BYTES: Final = 1024 * 1024 * 1024
_LEAST_MEMORY_BYTES: Final = 4_000_000_000  # four Python processes, three of which import torch
_LEAST_FILES: Final = 1024
_LEAST_TASKS: Final = 1024  # processes and threads; torch creates some per core
_SHM_ADVICE: Final = "In a container: docker run --shm-size 1g (or --ipc=host)"


def check_limits(wanted: Wanted) -> Iterator[Finding]:
    """Yield the available memory and the limits of this machine or container."""
    yield _memory()
    if sys.platform == "linux":
        yield _shared(wanted)
    yield from _cgroup()
    yield from _limits()


def _memory() -> Finding:
    seen = capacity.machine_memory()
    if seen is None:
        return note(
            "memory",
            "how much memory is available is unknown",
            f"A server's processes need about {in_words(_LEAST_MEMORY_BYTES)} in addition to the "
            f"model's memory on its device.",
        )
    fact = f"{in_words(seen.free)} of {in_words(seen.limit)} available"
    if seen.free < _LEAST_MEMORY_BYTES:
        return note(
            "memory",
            f"{fact}: a server's processes need about {in_words(_LEAST_MEMORY_BYTES)} in addition "
            f"to the model's memory on its device",
            "Free some memory; otherwise the kernel may kill the server while it loads.",
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
        return problem("shared memory", f"{_SHARED} is not writable", _SHM_ADVICE)
    if free < needed:
        return note("shared memory", f"{fact}; a server needs {in_words(needed)}", _SHM_ADVICE)
    return ok("shared memory", fact)


def _cgroup() -> Iterator[Finding]:
    memory = capacity.memory_limit()
    if memory is not None:
        limit, left = in_words(memory.limit), in_words(memory.free)
        fact = f"this container or session is limited to {limit}; {left} left"
        if memory.free < _LEAST_MEMORY_BYTES:
            yield note("memory limit", fact, "Raise it (docker run --memory, MemoryMax=).")
        else:
            yield ok("memory limit", fact)
    tasks = capacity.task_limit()
    if tasks is not None and tasks.free < _LEAST_TASKS:
        yield note(
            "task limit",
            f"{tasks.limit - tasks.free} of {tasks.limit} processes and threads are in use",
            "Raise it (docker run --pids-limit, TasksMax=): a server needs some hundreds.",
        )


def _limits() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # not available on Windows
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
            f"{' and '.join(low)}: low for a server with its threads and connections",
            "; ".join(raised),
        )
        return
    infinite = {resource.RLIM_INFINITY: "unlimited"}
    shown = [infinite.get(limit, limit) for limit in (files, tasks)]
    yield ok("limits", f"open files {shown[0]}, processes {shown[1]}")


_NETWORK: Final = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs"),
    *("fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs", "virtiofs"),
)


@dataclass(frozen=True, slots=True)
class Filesystem:
    """The file system of a path.

    Attributes:
        path: The path itself, or its nearest existing parent.
        kind: Type of the file system, such as ``ext4``; empty if unknown.
        free_bytes: Free space for this user, in bytes.
        inodes: Number of files that can still be created; None if not limited.
        writable: Whether this user may create files there.
    """

    path: Path
    kind: str
    free_bytes: int
    inodes: int | None
    writable: bool

    @property
    def is_shared(self) -> bool:
        """Whether it is a network file system."""
        return self.kind in _NETWORK


def filesystem_of(path: str | Path) -> Filesystem:
    """Return the file system of ``path``, which need not exist.

    Raises:
        OSError: It cannot be examined.
    """
    place = nearest_existing(Path(path))
    facts = os.statvfs(place)
    return Filesystem(
        path=place,
        kind=_kind(os.path.realpath(place)),
        free_bytes=shutil.disk_usage(place).free,
        inodes=facts.f_favail if facts.f_files else None,
        writable=os.access(place, os.W_OK | os.X_OK),
    )


def nearest_existing(path: Path) -> Path:
    """Return ``path``, or its nearest existing parent."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _kind(path: str) -> str:
    import psutil

    kind, longest = "", 0
    # Only the mount table is read: a call on a mount whose server is down would hang.
    for mount in psutil.disk_partitions(all=True):
        root = mount.mountpoint.rstrip("/") + "/"
        # Of two mounts at one path the later one hides the earlier.
        if f"{path}/".startswith(root) and len(root) >= longest:
            kind, longest = mount.fstype, len(root)
    return kind


_SECONDS: Final = 2.0
_STATE_BYTES: Final = 100_000_000  # logs, mostly
_SCRATCH_BYTES: Final = 500_000_000
_INSTALL_SPARE: Final = 1.15


@dataclass(frozen=True, slots=True)
class DiskNeed:
    """A folder with the disk space that it needs.

    Attributes:
        name: Name of the folder in the report.
        path: Path of the folder.
        needs_bytes: Space that will be needed, in bytes.
        why: Purpose of the space.
        variable: Environment variable that moves the folder.
    """

    name: str
    path: Path
    needs_bytes: int
    why: str
    variable: str


def check_disks(wanted: Wanted) -> Iterator[Finding]:
    """Yield whether each disk has enough space for logs, engines, weights and temporary files."""
    try:
        temporary, unusable = Path(cleanup.temporary_folder()), None
    except StateFolderError as error:
        temporary, unusable = Path(os.environ.get("TMPDIR") or "/"), str(error)
    needs = (
        DiskNeed("home", wanted.home, _STATE_BYTES, "state and logs", "EMBERD_HOME"),
        _engine_need(wanted),
        DiskNeed(
            "hub's cache",
            model_files.hub_cache(),
            _download_bytes(wanted),
            wanted.spec.model,
            "HF_HOME",
        ),
        DiskNeed("temporary files", temporary, _SCRATCH_BYTES, "temporary files", "TMPDIR"),
    )
    # Separately: a network disk that hangs must not hide the others.
    outcomes = gather([partial(filesystem_of, need.path) for need in needs], _SECONDS)
    for need, outcome in zip(needs, outcomes, strict=True):
        yield _disk(need, outcome)
    if unusable is not None:
        yield problem("temporary files", *split(unusable))
    elif (given := os.environ.get("TMPDIR")) and os.path.abspath(given) != str(temporary):
        yield note(
            "temporary files",
            f"servers use {temporary}: TMPDIR={given} is not usable, or longer than sockets allow",
            f"export TMPDIR={temporary}",
        )


def _engine_need(wanted: Wanted) -> DiskNeed:
    needed, name = 0, None
    with suppress(EmberdError):  # reported by check_engine
        if wanted.base_url is None:
            name = engines.explain(wanted.spec).installable
    if name is not None:
        recipe = RECIPES[name]
        needed = round(recipe.bytes * _INSTALL_SPARE) + recipe.download_bytes
    path = Path(os.path.expanduser(wanted.places.engines))
    return DiskNeed("engines", path, needed, f"the engine {name}", "EMBERD_ENGINES")


def _download_bytes(wanted: Wanted) -> int:
    spec = wanted.spec
    if spec.model == DEMO_MODEL or model_files.is_path(spec.model) or wanted.base_url is not None:
        return 0
    if model_files.is_folder(spec.model) or other_cache(wanted) is not None:
        return 0  # a start writes nothing into the hub's cache
    folder = model_files.hub_snapshot(spec.model, spec.revision)
    is_complete = folder is not None and not weight_files.missing_files(folder)
    return 0 if is_complete else weight_files.estimated_bytes(spec.model)


def _disk(need: DiskNeed, found: Filesystem | BaseException) -> Finding:
    if isinstance(found, BaseException):
        why = "does not respond" if isinstance(found, LateError) else str(found)
        advice = f"If it is on a network disk, set {need.variable} to a local folder."
        return problem(need.name, f"{need.path}: {why}", advice)
    where = f"{need.path} ({found.kind})" if found.kind else f"{need.path}"
    fact = f"{in_words(found.free_bytes)} free for {where}"
    elsewhere = f"Set {need.variable} to a folder on another disk"
    if found.free_bytes < need.needs_bytes:
        needed = f"{in_words(need.needs_bytes)} needed for {need.why}"
        advice = f"{elsewhere}, or free some space."
        return problem(need.name, f"{fact}, but about {needed}", advice)
    if found.inodes == 0:
        return problem(need.name, f"{where} has no free inodes", f"{elsewhere}.")
    if not found.writable and need.needs_bytes:
        return problem(need.name, f"{found.path} is not writable", f"{elsewhere}.")
    return ok(need.name, fact)
