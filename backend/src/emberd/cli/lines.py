"""Reading texts, one a line, a window at a time: large input is never in memory as a whole."""

from __future__ import annotations

import io
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from emberd.errors import EmberdError, SettingError

STDIN: Final = "-"
# A mark at the beginning, which some editors write, is no part of the first text.
_ENCODING: Final = "utf-8-sig"
# A byte that is not UTF-8 is let through as half of a surrogate pair, which UTF-8 never gives:
# an error of the decoder's comes a block ahead of the line that it is in.
_ERRORS: Final = "surrogateescape"
_WRONG: Final = re.compile("[\udc80-\udcff]")
_WRONG_FROM: Final = 0xDC00


class Line(NamedTuple):
    """One text and where it stands.

    Attributes:
        text: Without its line end; may be blank.
        source: The file, or what stands for it.
        number: Its number there, from 1.
    """

    text: str
    source: str
    number: int


def check(files: Iterable[str]) -> None:
    """Check that all files can be opened, before a server is asked for.

    Raises:
        SettingError: One is not there; it is named.
        OSError: One cannot be opened.
    """
    for name in files:
        if name == STDIN:
            continue
        if not Path(name).exists():
            raise SettingError(
                f"{name} is no file. A text on the command line wants --text: "
                f"emberd embed --text {name!r}"
            )
        with Path(name).open("rb"):
            pass


def read(files: Iterable[str], texts: Iterable[str] = ()) -> Iterator[Line]:
    """Yield ``texts`` and then the lines of ``files``, blank ones too.

    Raises:
        EmberdError: A file is not UTF-8.
    """
    for number, text in enumerate(texts, start=1):
        yield Line(text, "--text", number)
    for name in files:
        if name == STDIN:
            # Not closed at the end: it belongs to the process.
            stdin = io.TextIOWrapper(sys.stdin.buffer, encoding=_ENCODING, errors=_ERRORS)
            yield from _of(stdin, "stdin", "")
            stdin.detach()
        else:
            with Path(name).open(encoding=_ENCODING, errors=_ERRORS) as file:
                yield from _of(file, name, f" {shlex.quote(name)}")


def window(lines: Iterator[Line], size: int) -> list[Line]:
    """Return the next ``size`` lines, or what there is of them."""
    return list(islice(lines, size))


def _of(file: TextIO, source: str, argument: str) -> Iterator[Line]:
    for number, line in enumerate(file, start=1):
        if (wrong := _WRONG.search(line)) is not None:
            byte = ord(wrong[0]) - _WRONG_FROM
            raise EmberdError(
                f"{source} is not UTF-8 in line {number} (byte {byte:#04x}). "
                f"Convert it: iconv -f ENCODING -t UTF-8{argument}"
            )
        yield Line(line.removesuffix("\n"), source, number)
