"""Atomic replacement of files: the only implementation in emberd.

A reader, and a machine that loses power, sees the old file or the new one and never a part.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from emberd.system import os_errors

UNFINISHED: Final = ".unfinished"
"""Suffix of the names of files that are being written."""

# What file systems answer that cannot sync a folder.
_NO_SYNC: Final = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)

_OPEN_FILES: Final = "/proc/self/fd"


def write(path: Path, content: bytes, *, mode: int = 0o600, follow_links: bool = True) -> None:
    """Replace the content of ``path`` in one step; see ``replacing`` for arguments and errors."""
    with replacing(path, mode=mode, follow_links=follow_links) as file:
        file.write(content)


@contextmanager
def replacing(
    path: Path,
    *,
    mode: int = 0o666,
    follow_links: bool = True,
    before_rename: Callable[[], None] | None = None,
    unnamed: bool = False,
) -> Iterator[BinaryIO]:
    """Yield a file that replaces ``path`` when the block ends without an error.

    It ends once the disk has the content and the name.

    Args:
        path: The file; its folder must exist.
        mode: Permissions of the new file, before the umask.
        follow_links: If ``path`` is a symbolic link, replace its target; else the link itself.
        before_rename: Called right before the rename; if it raises, ``path`` keeps its content.
        unnamed: Give the file no name before it is complete, where the system can (Linux): then a
            process that is killed before that leaves no unfinished file behind.

    Raises:
        OSError: The file cannot be written; ``path`` keeps its content.
    """
    target = Path(os.path.realpath(path)) if follow_links else path
    # Unique, so that two writers of one file do not write into each other's.
    fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}{UNFINISHED}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    hidden = None
    if unnamed and os.path.isdir(_OPEN_FILES):
        with suppress(AttributeError, OSError):  # not Linux, or a file system without such files
            hidden = os.open(target.parent, os.O_TMPFILE | os.O_RDWR, mode)
    try:
        descriptor = os.open(fresh, flags, mode) if hidden is None else hidden
        with os_errors.named(path), open(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if hidden is not None:
                # Through /proc, as open(2) says of O_TMPFILE. Python follows the link only in the
                # form of the call that takes the descriptor of a folder; it is ignored for
                # absolute paths.
                link, root = f"{_OPEN_FILES}/{hidden}", os.open("/", os.O_RDONLY)
                try:
                    os.link(link, fresh, src_dir_fd=root, follow_symlinks=True)
                finally:
                    os.close(root)
        if before_rename is not None:
            before_rename()
        os.replace(fresh, target)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == os.fspath(fresh):
            error.filename = os.fspath(path)
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def move(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target`` and wait until the disk has the name."""
    os.replace(source, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in ``folder``; does nothing where that cannot be done.

    Raises:
        OSError: The disk reported an error.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
