"""``emberd logs``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer

from emberd.cli import options, output, serve_background
from emberd.cli.output import ExitCode
from emberd.cli.serve_background import GATEWAY
from emberd.cli.status import RUNNING
from emberd.cli.stop import Model
from emberd.errors import StateFolderError
from emberd.gateway.background_gateway import BackgroundGateway, GatewayStatus
from emberd.manager import ServerStatus
from emberd.manager.process_tree import REMOVED
from emberd.system import ownership
from emberd.verified_manager import Manager

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
    """Show the last lines of a server's log, or of that of the gateway.

    MODEL is a model, or "gateway" for `emberd serve --background`.

    If there are several logs, shows that of the running server, or of the newest one running.
    Logs of failed starts are kept. The exit code is 3 if there is no log.
    """
    own: ServerStatus | GatewayStatus
    if name == GATEWAY and model is None:
        own = serve_background.logged()
    else:
        own = _choose(options.resolve_model(name, model))
    log = Path(own.log_path)
    if path:
        output.write_line(str(log))
        return
    with _opened(log) as file:
        last, mark = _tail(file, lines)
        _write(last)
        follower = Follower(file, mark)
        runs = follow
        while runs:
            # Before reading, so that the last output is read after the server has stopped.
            runs = _is_running(own)
            _write(follower.read())
            if runs:
                time.sleep(_POLL_S)


def _is_running(own: ServerStatus | GatewayStatus) -> bool:
    """Return whether what a log is of still runs."""
    gateways = [BackgroundGateway().status()]
    seen: Iterable[ServerStatus | GatewayStatus | None]
    seen = Manager().status() if isinstance(own, ServerStatus) else gateways
    now = next((each for each in seen if each and each.start_id == own.start_id), None)
    return now is not None and now.state in RUNNING


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


def _tail(file: BinaryIO, lines: int) -> tuple[bytes, bytes]:
    """Return the last ``lines`` lines of ``file`` and its last bytes, and leave it at its end."""
    end = start = file.seek(0, os.SEEK_END)
    found = b""
    # One more line end than lines: the one before the first line.
    while start > 0 and found.count(b"\n") <= lines:
        start = max(0, start - _BLOCK_BYTES)
        file.seek(start)
        found = file.read(end - start)
    file.seek(end)
    last = b"".join(found.splitlines(keepends=True)[-lines:]) if lines else b""
    return last, found[-_MARK_BYTES:]


class Follower:
    """Reads what is new in a log, which its supervisor may shorten at any moment.

    The supervisor removes the middle of a log that becomes too large, so that what was read last
    moves to another place. There it is recognized by its content.
    """

    def __init__(self, file: BinaryIO, mark: bytes) -> None:
        """Follow ``file`` from its position on.

        Args:
            file: The log.
            mark: The last bytes that were read.
        """
        self._file = file
        self._mark = mark

    def read(self) -> bytes:
        """Return what is new since the last call; all that is left if its place is not found."""
        file, mark = self._file, self._mark
        start = file.tell() - len(mark)
        if start >= 0 and os.pread(file.fileno(), len(mark), start) == mark:
            new = file.read()
            # Not read again from the file, which may have become shorter since.
            self._mark = (mark + new)[-_MARK_BYTES:]
            return new
        file.seek(0)
        content = file.read()
        self._mark = content[-_MARK_BYTES:]
        if (at := content.rfind(mark) if mark else -1) >= 0:
            return content[at + len(mark) :]
        removed = content.rfind(REMOVED.encode())
        return content[content.rfind(b"\n", 0, removed) + 1 :] if removed >= 0 else content


def _write(piece: bytes) -> None:
    sys.stdout.buffer.write(piece)
    sys.stdout.flush()
