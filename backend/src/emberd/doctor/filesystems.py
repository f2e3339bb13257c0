"""What a path lies on: which kind of file system, how full, whether it may be written."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NETWORK: Final = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs"),
    *("fuse.sshfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs", "virtiofs"),
)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a path lies on.

    Attributes:
        path: The path itself, or the nearest folder above it that exists.
        kind: The file system's name; empty when not known.
        free_bytes: What this user may still write there.
        inodes: How many files may still be made; None where there is no such limit.
        writable: Whether this user may make files there.
    """

    path: Path
    kind: str
    free_bytes: int
    inodes: int | None
    writable: bool

    @property
    def is_shared(self) -> bool:
        """Whether it is another machine's."""
        return self.kind in _NETWORK


def ground(path: str | Path) -> Ground:
    """Return what ``path`` lies on, whether it exists or not.

    Raises:
        OSError: It cannot be looked at.
    """
    place = existing(Path(path))
    facts = os.statvfs(place)
    return Ground(
        path=place,
        kind=_kind(os.path.realpath(place)),
        free_bytes=shutil.disk_usage(place).free,
        inodes=facts.f_favail if facts.f_files else None,
        writable=os.access(place, os.W_OK | os.X_OK),
    )


def existing(path: Path) -> Path:
    """Return ``path``, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _kind(path: str) -> str:
    import psutil

    # The table of mounts alone is read: a mount whose server is away would hang.
    mounts = [m for m in psutil.disk_partitions(all=True) if _holds(m.mountpoint, path)]
    # Of two on one place the later lies on top.
    return max(enumerate(mounts), key=_depth)[1].fstype if mounts else ""


def _holds(mount: str, path: str) -> bool:
    return path == mount or path.startswith(mount.rstrip("/") + "/")


def _depth(numbered: tuple[int, object]) -> tuple[int, int]:
    place, mount = numbered
    return len(str(getattr(mount, "mountpoint", ""))), place
