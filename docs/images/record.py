"""Records a session in a terminal as an animated SVG: ``python docs/images/record.py``.

The commands run for real, in a new folder with a new ``EMBERD_HOME``, in a shell behind a
pseudo-terminal. Waits longer than ``_LONGEST_WAIT_S`` are shortened; nothing else is changed. It
needs emberd with both integrations, its demo model, and pyte: ``make venv`` installs them.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import socket
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Final

import pyte

SESSION: Final = Path(__file__).with_name("session.svg")
# Chromium does not tell a picture that its user prefers less motion, so the page chooses this one.
LAST_FRAME: Final = Path(__file__).with_name("session-still.svg")
# Two programs that ask for the same model. The session prints them, so they are short.
PROGRAMS: Final = {
    "langchain_app.py": """\
from langchain_emberd import EmberdEmbeddings
vector = EmberdEmbeddings(model="emberd/demo").embed_query("Why does dough grow?")
print("LangChain ", len(vector), vector[:2])
""",
    "llama_index_app.py": """\
from llama_index.embeddings.emberd import EmberdEmbedding
embed_model = EmberdEmbedding(model_name="emberd/demo")
vector = embed_model.get_query_embedding("Why does dough grow?")
print("LlamaIndex", len(vector), vector[:2])
""",
}
COMMANDS: Final = (
    "cat *.py",
    "(python langchain_app.py & python llama_index_app.py & wait)",
    "emberd status",
)

_COLUMNS: Final = 84
_ROWS: Final = 22
_PROMPT: Final = "$ "
_SHOWN_PROMPT: Final = "\033[1;34m$\033[0m "
_LONGEST_WAIT_S: Final = 2.0
_KEY_S: Final = 0.04
_AFTER_COMMAND_S: Final = 1.2
_AT_THE_END_S: Final = 6.0
_TIMES: Final = 3
_FRAME_S: Final = 0.06  # changes that are closer together are one frame
_COMMAND_LIMIT_S: Final = 120.0

_CELL: Final = 8.4
_LINE: Final = 19
_MARGIN: Final = 14
_FONTS: Final = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace'
_WIDTH: Final = round(_COLUMNS * _CELL + 2 * _MARGIN)
_HEIGHT: Final = _ROWS * _LINE + 2 * _MARGIN
# By name of pyte: the colour on a light and on a dark background.
_COLOURS: Final = {
    "default": ("#1c2733", "#dfe5ec"),
    "red": ("#b3261e", "#ff8a80"),
    "green": ("#1a7f37", "#6fd08c"),
    "brown": ("#8a5a00", "#e3b341"),
    "blue": ("#0b57d0", "#8ab4f8"),
    "magenta": ("#8e24aa", "#d7a3e8"),
    "cyan": ("#00697a", "#6fd3e0"),
}


@dataclass(frozen=True)
class Run:
    """Characters of a row with the same style."""

    column: int
    text: str
    style: str


Row = tuple[Run, ...]


@dataclass(frozen=True)
class Frame:
    """What the terminal shows from a time on."""

    at_s: float
    rows: tuple[Row, ...]
    cursor: tuple[int, int]


class _Terminal:
    """A shell behind a pseudo-terminal, and the frames of what it shows."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.frames: list[Frame] = []
        self._screen = pyte.Screen(_COLUMNS, _ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self._now_s = 0.0
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (_ROWS, _COLUMNS))
        self._shell = subprocess.Popen(
            ["/bin/sh"],
            cwd=folder,
            env={**environment, "PS1": _SHOWN_PROMPT, "TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Without a controlling terminal the shell warns. This process has one thread.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY),  # noqa: PLW1509
        )
        os.close(slave)

    def run(self, command: str) -> None:
        """Type a command and show its output."""
        self._wait_for_prompt()
        for key in command:
            os.write(self._master, key.encode())
            self._read(_KEY_S)
        self._now_s += 0.3
        os.write(self._master, b"\n")
        self._wait_for_prompt()
        self._now_s += _AFTER_COMMAND_S

    def close(self) -> None:
        """End the shell."""
        os.write(self._master, b"exit\n")
        self._shell.wait(timeout=10)
        os.close(self._master)

    def _wait_for_prompt(self) -> None:
        deadline = time.monotonic() + _COMMAND_LIMIT_S
        while self._screen.display[self._screen.cursor.y].rstrip() != _PROMPT.rstrip():
            if time.monotonic() > deadline:
                raise SystemExit("The command did not end:\n" + "\n".join(self._screen.display))
            self._read(0.5)

    def _read(self, wait_s: float) -> None:
        """Show what arrives within a time; the session's clock advances with it."""
        end = time.monotonic() + wait_s
        quiet_since = time.monotonic()
        while (left := end - time.monotonic()) > 0:
            ready, _, _ = select.select([self._master], [], [], left)
            waited = time.monotonic() - quiet_since
            quiet_since += waited
            self._now_s += waited
            if ready:
                self._stream.feed(os.read(self._master, 65536))
                self._show()

    def _show(self) -> None:
        rows = tuple(_row(self._screen.buffer[y]) for y in range(_ROWS))
        frame = Frame(self._now_s, rows, (self._screen.cursor.x, self._screen.cursor.y))
        if self.frames and self._now_s - self.frames[-1].at_s < _FRAME_S:
            frame = Frame(self.frames.pop().at_s, frame.rows, frame.cursor)
        self.frames.append(frame)


def record() -> list[Frame]:
    """Run the session and return its frames, with long waits shortened."""
    with tempfile.TemporaryDirectory(prefix="emb-") as place:
        folder, home = Path(place) / "session", Path(place) / "home"
        folder.mkdir()
        for name, source in PROGRAMS.items():
            (folder / name).write_text(source, encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if "EMBERD" not in name}
        environment["EMBERD_HOME"] = str(home)
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        terminal = _Terminal(folder, environment)
        try:
            for command in COMMANDS:
                terminal.run(command)
        finally:
            terminal.close()
            subprocess.run(
                [sys.executable, "-m", "emberd", "stop"],
                env=environment,
                check=True,
                stdout=subprocess.DEVNULL,
            )
    return _without_long_waits([frame for frame in terminal.frames if any(frame.rows)])


def draw(frames: list[Frame]) -> str:
    """Return an SVG that shows the frames one after another, some times, and ends with the last."""
    places = {row: number for number, row in enumerate(dict.fromkeys(_all_rows(frames)))}
    duration = frames[-1].at_s + _AT_THE_END_S
    steps = "".join(
        f"{100 * frame.at_s / duration:.3f}%{{transform:translateY(-{number * _HEIGHT}px)}}"
        for number, frame in [*enumerate(frames), (len(frames) - 1, Frame(duration, (), (0, 0)))]
    )
    last = f"translateY(-{(len(frames) - 1) * _HEIGHT}px)"
    light, dark = (
        "".join(f".{name}{{fill:{both[side]}}}" for name, both in _COLOURS.items())
        for side in (0, 1)
    )
    rows = "\n".join(f'<g id="r{number}">{_drawn(row)}</g>' for row, number in places.items())
    strip = "\n".join(_drawn_frame(frame, number, places) for number, frame in enumerate(frames))
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" \
height="{_HEIGHT}" role="img">
<title>A session in a terminal: two programs ask for a model at once and share one server</title>
<style>
text{{font:14px {_FONTS};white-space:pre}}
.bold{{font-weight:600}}
.back{{fill:#f6f8fa;stroke:#d0d7de}}.cursor{{fill:#6b7785;opacity:.7}}
{light}
@media (prefers-color-scheme:dark){{.back{{fill:#14181e;stroke:#30363d}}{dark}}}
@keyframes play{{{steps}}}
.strip{{animation:play {duration:.2f}s steps(1,end) {_TIMES} forwards}}
@media (prefers-reduced-motion:reduce){{.strip{{animation:none;transform:{last}}}}}
</style>
<defs>
<rect id="cursor" class="cursor" width="{_CELL}" height="{_LINE - 2}"/>
{rows}
</defs>
<rect class="back" x=".5" y=".5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="8"/>
<g class="strip">
{strip}
</g>
</svg>
"""


def _row(cells: dict[int, pyte.screens.Char]) -> Row:
    def style(column: int) -> str:
        cell = cells[column]
        return f"{cell.fg if cell.fg in _COLOURS else 'default'}{' bold' if cell.bold else ''}"

    runs = []
    for name, columns in groupby(range(_COLUMNS), style):
        own = list(columns)
        text = "".join(cells[column].data for column in own).rstrip()
        skipped = len(text) - len(text.lstrip())
        if text:
            runs.append(Run(own[0] + skipped, text.lstrip(), name))
    return tuple(runs)


def _without_long_waits(frames: list[Frame]) -> list[Frame]:
    shortened, now_s, before_s = [], 0.0, frames[0].at_s
    for frame in frames:
        now_s += min(frame.at_s - before_s, _LONGEST_WAIT_S)
        before_s = frame.at_s
        shortened.append(Frame(now_s, frame.rows, frame.cursor))
    return shortened


def _all_rows(frames: list[Frame]) -> list[Row]:
    return [row for frame in frames for row in frame.rows if row]


def _drawn(row: Row) -> str:
    return "".join(
        f'<text class="{run.style}" x="{_MARGIN + run.column * _CELL:.1f}" '
        f'textLength="{len(run.text) * _CELL:.1f}">{escape(run.text, quote=False)}</text>'
        for run in row
    )


def _drawn_frame(frame: Frame, number: int, places: dict[Row, int]) -> str:
    top = number * _HEIGHT + _MARGIN
    column, line = frame.cursor
    rows = "".join(
        f'<use href="#r{places[row]}" y="{top + y * _LINE + 14}"/>'
        for y, row in enumerate(frame.rows)
        if row
    )
    x = f"{_MARGIN + column * _CELL:.1f}"
    return f'<g>{rows}<use href="#cursor" x="{x}" y="{top + line * _LINE}"/></g>'


def main() -> None:
    """Record the session, unless it shows something of this machine."""
    frames = record()
    drawing = draw(frames)
    private = [socket.gethostname(), str(Path.home()), tempfile.gettempdir(), sys.prefix]
    found = [name for name in private if name in re.sub("<[^>]*>", "", drawing)]
    if found:
        raise SystemExit(f"The session shows {', '.join(found)}, so it was not written.")
    SESSION.write_text(drawing, encoding="utf-8")
    LAST_FRAME.write_text(draw([Frame(0.0, frames[-1].rows, frames[-1].cursor)]), encoding="utf-8")


if __name__ == "__main__":
    main()
