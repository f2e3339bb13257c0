"""``emberd logs``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

import typer

from emberd.cli import options, output
from emberd.cli.output import ExitCode
from emberd.cli.status import RUNNING
from emberd.cli.stop import Model
from emberd.errors import StateFolderError
from emberd.system import ownership
from emberd.verified_manager import Manager

if TYPE_CHECKING:
    from emberd.manager import ServerStatus

_LINES: Final = 50
_BLOCK_BYTES: Final = 64 * 1024
_POLL_S: Final = 0.2
_MARK_BYTES: Final = 4096

Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Print new lines until the server stops.")
]
Lines = Annotated[int, typer.Option("-n", "--lines", min=0, metavar="N", help="Number of lines.")]
Place = Annotated[bool, typer.Option("--path", help="Print the path of the log instead.")]


def logs(
    name: options.ModelName = None,
    model: Model = None,
    lines: Lines = _LINES,
    follow: Follow = False,
    path: Place = False,
) -> None:
    """Show the last lines of a server's log.

    If there are several logs, shows that of the running server, or of the newest one running.
    Logs of failed starts are kept. The exit code is 3 if there is no log.
    """
    own = _choose(options.resolve_model(name, model))
    log = Path(own.log_path)
    if path:
        output.write_line(str(log))
        return
    with _opened(log) as file:
        _write(_tail(file, lines))
        known = _last_read(file)
        runs = follow
        while runs:
            # Before reading, so that the last output is read after the server has stopped.
            now = next((s for s in Manager().status() if s.start_id == own.start_id), None)
            runs = now is not None and now.state in RUNNING
            new = _unread(file, known)
            _write(new)
            # Not read again from the file, which may have become shorter since.
            known = (known + new)[-_MARK_BYTES:]
            if runs:
                time.sleep(_POLL_S)


def _choose(model: str | None) -> ServerStatus:
    known = [own for own in Manager().status() if model in (None, own.spec.model)]
    logged = [own for own in known if own.log_path and Path(own.log_path).exists()]
    if not logged:
        external = " (logs of external servers are elsewhere)" if known else ""
        of_model = f" of {model}" if model else ""
        output.note(f"No server{of_model} has a log here{external}. `emberd up` starts one.")
        raise typer.Exit(ExitCode.NOTHING_RUNNING)
    chosen = min(logged, key=lambda own: (own.state not in RUNNING, own.seconds))
    if len(logged) > 1:
        output.note(
            f"Showing the log of {chosen.spec.model} ({chosen.state}). "
            f"Pass --model to show another."
        )
    return chosen


@contextmanager
def _opened(log: Path) -> Iterator[BinaryIO]:
    """Open a log; anything but a file of this user is neither waited for nor shown.

    Raises:
        StateFolderError: It is something else, or it cannot be opened.
    """
    try:
        descriptor = ownership.open_file(log)
    except OSError as error:
        raise StateFolderError(
            f"{log} cannot be read ({error.strerror}). `emberd up` starts a server with a new log."
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        ownership.check(log, os.fstat(descriptor))
        yield file


def _tail(file: BinaryIO, lines: int) -> bytes:
    """Return the last ``lines`` lines of ``file``, and leave it at its end."""
    end = start = file.seek(0, os.SEEK_END)
    found = b""
    # One more line end than lines: the one before the first line.
    while start > 0 and found.count(b"\n") <= lines:
        start = max(0, start - _BLOCK_BYTES)
        file.seek(start)
        found = file.read(end - start)
    file.seek(end)
    return b"".join(found.splitlines(keepends=True)[-lines:]) if lines else b""


def _last_read(file: BinaryIO) -> bytes:
    """Return the last bytes before the position of ``file``."""
    end = file.tell()
    start = max(0, end - _MARK_BYTES)
    return os.pread(file.fileno(), end - start, start)


def _unread(file: BinaryIO, known: bytes) -> bytes:
    """Return what is new in ``file``, of which ``known`` was read last.

    The supervisor removes the middle of a log that becomes too large, so that what was read last
    moves to another place.
    """
    here = file.tell()
    if here == 0 or (known and os.pread(file.fileno(), len(known), here - len(known)) == known):
        return file.read()
    file.seek(0)
    content = file.read()
    at = content.rfind(known) if known else -1
    return content[at + len(known) :] if at >= 0 else content[-_BLOCK_BYTES:]


def _write(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()
