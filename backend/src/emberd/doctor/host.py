"""The machine: installed software, platform, memory, limits, file systems and free disk space."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from emberd import __version__, engines, model_files
from emberd.catalog import DEMO_MODEL
from emberd.doctor import model
from emberd.doctor.findings import BoundedResult, Finding, gather, note, ok, problem
from emberd.doctor.wanted import Wanted
from emberd.errors import EmberdError
from emberd.installs import RECIPES, in_words

_INTEGRATIONS: Final = {
    "langchain-emberd": "langchain-core",
    "llama-index-embeddings-emberd": "llama-index-core",
}
_SHOWN: Final = ("openai", "numpy")
_SERVER_SYSTEMS: Final = ("Linux", "Darwin")
_CONTAINERS: Final = ("/.dockerenv", "/run/.containerenv")
_POD: Final = "KUBERNETES_SERVICE_HOST"


def check_software(wanted: Wanted) -> Iterator[Finding]:
    """Yield the versions of emberd, Python and the frameworks, and the platform."""
    yield ok("emberd", f"emberd {__version__} in {Path(__file__).parents[1]}")
    yield ok(
        "python",
        f"{platform.python_implementation()} {platform.python_version()} "
        f"({sys.executable or 'embedded in another program'})",
    )
    yield _platform(wanted)
    yield ok("packages", ", ".join(f"{name} {_version(name) or 'absent'}" for name in _SHOWN))
    for integration, framework in _INTEGRATIONS.items():
        yield _integration(integration, framework)


def _platform(wanted: Wanted) -> Finding:
    words = [platform.system(), platform.release(), platform.machine(), _libc(), _container()]
    fact = " ".join(filter(None, words))
    if platform.system() in _SERVER_SYSTEMS or wanted.is_given:
        return ok("platform", fact)
    return note(
        "platform",
        f"{fact}: servers are started on Linux and macOS only",
        "Use a server on another machine: EMBERD_BASE_URL=http://HOST:30000/v1",
    )


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""


def _container() -> str:
    if _POD in os.environ:
        return "(in a Kubernetes pod)"
    return "(in a container)" if any(map(os.path.exists, _CONTAINERS)) else ""


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
_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUP: Final = Path("/proc/self/cgroup")
_SHM_ADVICE: Final = "In a container: docker run --shm-size 1g (or --ipc=host)"


def check_limits(wanted: Wanted) -> Iterator[Finding]:
    """Yield the available memory and the limits of this machine or container."""
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
    memory = _cgroup_figures("memory.max", "memory.current")
    if memory is not None:
        limit, used = memory
        left = max(0, limit - used)
        fact = f"this container or session is limited to {in_words(limit)}; {in_words(left)} left"
        if left < _LEAST_MEMORY_BYTES:
            yield note("memory limit", fact, "Raise it (docker run --memory, MemoryMax=).")
        else:
            yield ok("memory limit", fact)
    tasks = _cgroup_figures("pids.max", "pids.current")
    if tasks is not None and tasks[0] - tasks[1] < _LEAST_TASKS:
        yield note(
            "task limit",
            f"{tasks[1]} of {tasks[0]} processes and threads are in use",
            "Raise it (docker run --pids-limit, TasksMax=): a server needs some hundreds.",
        )


def _cgroup_figures(limit_file: str, used_file: str) -> tuple[int, int] | None:
    """Return the tightest limit on this process and its usage; None if there is no limit."""
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
    # cgroup v2 only: it has one hierarchy, whose line begins with 0.
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folder = _CGROUPS / own
    return [at for at in (folder, *folder.parents) if at.is_relative_to(_CGROUPS)]


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
    shown = (_shown(limit, resource.RLIM_INFINITY) for limit in (files, tasks))
    yield ok("limits", "open files {}, processes {}".format(*shown))


def _shown(limit: int, unlimited: int) -> str:
    return "unlimited" if limit == unlimited else str(limit)


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

    # Only the mount table is read: a call on a mount whose server is down would hang.
    mounts = [m for m in psutil.disk_partitions(all=True) if _holds(m.mountpoint, path)]
    # Of two mounts at one path the later one hides the earlier.
    return max(enumerate(mounts), key=_depth)[1].fstype if mounts else ""


def _holds(mount: str, path: str) -> bool:
    return path == mount or path.startswith(mount.rstrip("/") + "/")


def _depth(numbered: tuple[int, object]) -> tuple[int, int]:
    place, mount = numbered
    return len(str(getattr(mount, "mountpoint", ""))), place


_SECONDS: Final = 2.0
_STATE_BYTES: Final = 100_000_000  # logs, mostly
_SCRATCH_BYTES: Final = 500_000_000
_INSTALL_SPARE: Final = 1.15
# Sockets of a server lie in a folder of its own in TMPDIR, and the kernel allows 107 characters.
_LONGEST_TEMPORARY_CHARACTERS: Final = 70


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
    places = list(_places(wanted, os.environ))
    # Separately: a network disk that hangs must not hide the others.
    for place, seen in zip(
        places, gather([partial(filesystem_of, p.path) for p in places], _SECONDS), strict=True
    ):
        yield _finding(place, seen)
    if len(tempfile.gettempdir()) > _LONGEST_TEMPORARY_CHARACTERS:
        yield note(
            "temporary files",
            f"the path {tempfile.gettempdir()} is long; a socket path has at most 107 characters",
            "export TMPDIR=/tmp",
        )


def _places(wanted: Wanted, environ: Mapping[str, str]) -> Iterator[DiskNeed]:
    yield DiskNeed("home", wanted.home, _STATE_BYTES, "state and logs", "EMBERD_HOME")
    yield _engines(wanted)
    yield _weights(wanted)
    temporary = Path(environ.get("TMPDIR") or tempfile.gettempdir())
    yield DiskNeed("temporary files", temporary, _SCRATCH_BYTES, "temporary files", "TMPDIR")


def _engines(wanted: Wanted) -> DiskNeed:
    path = Path(os.path.expanduser(wanted.places.engines))
    name = _to_install(wanted)
    if name is None:
        return DiskNeed("engines", path, 0, "", "EMBERD_ENGINES")
    recipe = RECIPES[name]
    needed = round(recipe.bytes * _INSTALL_SPARE) + recipe.download_bytes
    return DiskNeed("engines", path, needed, f"the engine {name}", "EMBERD_ENGINES")


def _to_install(wanted: Wanted) -> str | None:
    try:
        return None if wanted.is_given else engines.explain(wanted.spec).installable
    except EmberdError:
        return None  # reported by check_engine


def _weights(wanted: Wanted) -> DiskNeed:
    model = wanted.spec.model
    return DiskNeed("hub's cache", model_files.hub_cache(), _to_download(wanted), model, "HF_HOME")


def _to_download(wanted: Wanted) -> int:
    spec = wanted.spec
    if spec.model == DEMO_MODEL or model_files.is_path(spec.model) or wanted.is_given:
        return 0
    if model.cached_model(spec.model, spec.revision).is_complete:
        return 0
    return model.estimated_weight_bytes(spec.model) or 0


def _finding(place: DiskNeed, seen: BoundedResult[Filesystem]) -> Finding:
    if seen.value is None:
        why = "does not respond" if seen.late else str(seen.error)
        advice = f"If it is on a network disk, set {place.variable} to a local folder."
        return problem(place.name, f"{place.path}: {why}", advice)
    found = seen.value
    where = f"{place.path} ({found.kind})" if found.kind else f"{place.path}"
    fact = f"{in_words(found.free_bytes)} free for {where}"
    elsewhere = f"Set {place.variable} to a folder on another disk"
    if found.free_bytes < place.needs_bytes:
        needed = f"{in_words(place.needs_bytes)} needed for {place.why}"
        advice = f"{elsewhere}, or free some space."
        return problem(place.name, f"{fact}, but about {needed}", advice)
    if found.inodes == 0:
        return problem(place.name, f"{where} has no free inodes", f"{elsewhere}.")
    if not found.writable and place.needs_bytes:
        return problem(place.name, f"{found.path} is not writable", f"{elsewhere}.")
    return ok(place.name, fact)
