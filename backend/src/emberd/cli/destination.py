"""Where vectors are written to: a file that is there whole or not at all, or a stream."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def opened(output: Path | None, *, whole: bool) -> Iterator[BinaryIO]:
    """Yield a file to write to.

    Args:
        output: The file; None for stdout.
        whole: The format is finished by going back to its beginning, which streams cannot.
    """
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
    try:
        with fresh.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


@contextmanager
def _stream(output: Path | None) -> Iterator[BinaryIO]:
    # A device or a pipe that was named as a file is written to, and never replaced.
    if output is not None:
        with output.open("wb") as file:
            yield file
    else:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
