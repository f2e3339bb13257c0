"""Where vectors are written to: a file that is there whole or not at all, or a stream."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from emberd.errors import EmberdError, SettingError

_MODE: Final = 0o666  # less what the umask takes, as for any new file

# What writing alone gives, and what the error of a write does not say the file of.
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check(output: Path | None) -> None:
    """Check that there is a folder for ``output``, before a server is asked for.

    Raises:
        SettingError: There is none.
    """
    if output is not None and not output.parent.exists():
        folder = str(output.parent)
        raise SettingError(
            f"{output} cannot be written: the folder {folder} does not exist. "
            f"Make it: mkdir -p {shlex.quote(folder)}"
        )


@contextmanager
def opened(output: Path | None, *, whole: bool) -> Iterator[BinaryIO]:
    """Yield a file to write to.

    Args:
        output: The file; None for stdout.
        whole: The format is finished by going back to its beginning, which streams cannot.

    Raises:
        EmberdError: There is no room for it; it is named.
    """
    try:
        with _opened(output, whole=whole) as file:
            yield file
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        raise EmberdError(
            f"{output or 'stdout'} could not be written: {error.strerror}. Make room there, or "
            f"give another --output."
        ) from error


@contextmanager
def _opened(output: Path | None, *, whole: bool) -> Iterator[BinaryIO]:
    if output is not None and (output.is_file() or not output.exists()):
        with _replacing(output) as file:
            yield file
    elif whole:
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            with _stream(output) as stream:
                shutil.copyfileobj(file, stream)
    else:
        with _stream(output) as stream:
            yield stream


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    # In the same folder: a rename across file systems would be a copy, which can be seen half
    # done. Of a link, what it leads to is replaced.
    target = path.resolve()
    fresh = target.with_name(f".{target.name}.{os.getpid()}.part")
    fresh.unlink(missing_ok=True)  # of another process that had this number
    unnamed = _unnamed(target.parent)
    with unnamed or fresh.open("w+b") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if unnamed:
                _name(file.fileno(), fresh)
            fresh.replace(target)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise


def _unnamed(folder: Path) -> BinaryIO | None:
    """Return a file without a name: of it, a killed process leaves nothing behind."""
    try:
        return os.fdopen(os.open(folder, os.O_TMPFILE | os.O_RDWR, _MODE), "w+b")
    except (AttributeError, OSError):
        return None  # not Linux, or a file system that knows no such files


def _name(descriptor: int, path: Path) -> None:
    # Through /proc, as open(2) says of O_TMPFILE. Python follows the link there only in the form
    # of the call that takes a descriptor of a folder, which an absolute path then ignores.
    root = os.open("/", os.O_RDONLY)
    try:
        os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=root, follow_symlinks=True)
    finally:
        os.close(root)


@contextmanager
def _stream(output: Path | None) -> Iterator[BinaryIO]:
    # A device or a pipe that was named as a file is written to, and never replaced.
    if output is not None:
        with output.open("wb") as file:
            yield file
    else:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
