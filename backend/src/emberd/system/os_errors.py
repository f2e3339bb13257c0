"""Errors of the operating system about files, in words: the path, the fact and what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from emberd.errors import EmberdError

_PERMISSION: Final = "Correct the owner and the mode of that path and of the folders above it."
_ADVICE: Final = {
    errno.ENOSPC: "Free space on that disk (`df -h`; if it has space, `df -i`).",
    errno.EDQUOT: "Your quota on that disk is used up: free space there.",
    errno.EROFS: "That file system is read-only: choose another folder, or remount it.",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.ENOENT: "It does not exist, or was just removed: try again.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.EMFILE: "Close files or connections of this process, or raise `ulimit -n`.",
    errno.ENFILE: "All open files of this machine are in use: end some programs.",
    errno.EIO: "The disk reports an error: see `dmesg`.",
    errno.EFBIG: "The file is larger than the file system, or `ulimit -f`, allows.",
    errno.ESTALE: "The file server has lost it: mount that file system again.",
    errno.ENOTDIR: "A file is in the place of a folder of that path: move it, or choose another.",
    errno.ELOOP: "The path leads through too many links: choose another.",
    errno.EAGAIN: "Too many processes: check `ulimit -u`, or the container's limit.",
    errno.ENOMEM: "Free some memory.",
}
_OF_WRITING: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def advice(error: BaseException) -> str:
    """Return what to do about an error, in sentences; empty if nothing is known."""
    return _ADVICE.get(error.errno or 0, "") if isinstance(error, OSError) else ""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or one of its causes, is that of a full disk."""
    return any(
        isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT)
        for each in causes(error)
    )


@contextmanager
def named(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add ``path`` to an error of writing in the block, which names no file: that of a full disk.

    Raises:
        OSError: What the block raised.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OF_WRITING and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextmanager
def reading(path: str | os.PathLike[str], kind: type[EmberdError] = EmberdError) -> Iterator[None]:
    """Raise an error of opening or reading ``path`` in the block as ``kind``, with what to do.

    Raises:
        EmberdError: The file cannot be read.
    """
    try:
        yield
    except EmberdError:
        raise
    except OSError as error:
        raise kind(
            f"{os.fspath(path)} cannot be read: {error.strerror or error}. "
            f"{advice(error) or 'Check that file, or leave it out.'}"
        ) from error


@contextmanager
def raised_as(kind: type[EmberdError], hint: str = "") -> Iterator[None]:
    """Raise an error about a file as ``kind``, with what to do; also a decorator.

    Only errors that name a file, or whose advice is known: a closed pipe or a refused connection is
    of another kind.

    Args:
        kind: What to raise.
        hint: A sentence that is added.
    """
    try:
        yield
    except EmberdError:
        raise
    except OSError as error:
        if error.filename is None and not advice(error):
            raise
        path = error.filename if error.filename is not None else "A file or a connection"
        parts = f"{os.fsdecode(path)} cannot be used ({error.strerror}).", advice(error), hint
        raise kind(" ".join(filter(None, parts))) from error
