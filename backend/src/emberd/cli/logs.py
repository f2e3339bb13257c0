"""``emberd logs``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import typer

from emberd.cli import options, output, serve_background
from emberd.cli.output import ExitCode
from emberd.cli.serve_background import GATEWAY
from emberd.cli.shown_servers import RUNNING
from emberd.cli.stop import Model
from emberd.errors import StateFolderError
from emberd.gateway.background_gateway import BackgroundGateway, GatewayStatus
from emberd.manager import ServerStatus
from emberd.manager.process_tree import REMOVED
from emberd.system import ownership
from emberd.system.redaction import Redact, redactor
from emberd.verified_manager import Manager

_LINES: Final = 50
_BLOCK_BYTES: Final = 64 * 1024
_POLL_S: Final = 0.2
_MARK_BYTES: Final = 4096
_RESTART_S: Final = 3.0

Logged = ServerStatus | GatewayStatus
"""What has a log."""

Follow = Annotated[
    bool,
    typer.Option(
        "--follow",
        "-f",
        help="Print new lines until the server stops; if it is started again at once, go on with "
        "its new log.",
    ),
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
    Logs of failed starts are kept. Keys and passwords are replaced by ***; the file itself, which
    only you can read, contains them. The exit code is 3 if there is no log.
    """
    own: Logged
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
        writer = Writer(own)
        writer.write(last)
        if follow:
            _follow(own, Follower(file, mark), writer)
        writer.finish()
    was_running = own.state in RUNNING
    while follow and was_running and (successor := _await_restart(own)) is not None:
        own = successor
        output.note(f"{_name(own)} was started again.")
        with _opened(log) as file:
            writer = Writer(own)
            _follow(own, Follower(file, b""), writer)
            writer.finish()


def _follow(own: Logged, follower: Follower, writer: Writer) -> None:
    """Write what is new in a log until what it is of has stopped."""
    while True:
        # Before reading, so that the last output is read after the server has stopped.
        now = next((each for each in _known(own) if each.start_id == own.start_id), None)
        if now is not None:
            writer.hide_key_of(now)
        writer.write(follower.read())
        if now is None or now.state not in RUNNING:
            return
        time.sleep(_POLL_S)


def _await_restart(own: Logged) -> Logged | None:
    """Return the next start of what has stopped; None if there is none for some time."""
    until_s = time.monotonic() + _RESTART_S
    while time.monotonic() < until_s:
        for each in _known(own):
            if each.log_path == own.log_path and each.start_id != own.start_id:
                return each
        time.sleep(_POLL_S)
    return None


def _known(own: Logged) -> Sequence[Logged]:
    """Return what there is of the kind of ``own``: servers, or the gateway."""
    if isinstance(own, ServerStatus):
        return Manager().status()
    gateway = BackgroundGateway().status()
    return [gateway] if gateway is not None else []


def _name(own: Logged) -> str:
    return own.spec.model if isinstance(own, ServerStatus) else "The gateway"


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


class Writer:
    """Writes a log as the result, without the secrets in it.

    It writes whole lines: what is read may end in the middle of a secret.
    """

    def __init__(self, own: Logged) -> None:
        """Write the log of ``own``, whose key is a secret."""
        self._rest = b""
        self._key: str | None = None
        self._redact: Redact = redactor()
        self.hide_key_of(own)

    def hide_key_of(self, own: Logged) -> None:
        """Replace the key of a server, if it has one by now, in what is written from now on."""
        # The key of a server that is starting is not known yet. It is recognized by its name in the
        # log, as secrets in the arguments of the engine are.
        key = own.api_key if isinstance(own, ServerStatus) else None
        if key and key != self._key:
            self._key, self._redact = key, redactor(more=[key])

    def write(self, piece: bytes) -> None:
        """Write what is complete of a piece of the log."""
        content = self._rest + piece
        end = max(content.rfind(b"\n"), content.rfind(b"\r")) + 1
        self._write(content[:end])
        self._rest = content[end:]

    def finish(self) -> None:
        """Write the rest: the last line may have no end."""
        self._write(self._rest)
        self._rest = b""

    def _write(self, lines: bytes) -> None:
        # Line by line: no secret has a line end, and a rule must not join the words of two lines.
        for line in lines.splitlines(keepends=True):
            text = self._redact(line.decode(errors="surrogateescape"))
            sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
        sys.stdout.flush()
