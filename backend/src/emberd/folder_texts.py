"""The texts of a folder: which files are read, their text, and its passages."""

from __future__ import annotations

import html
import os
import re
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

MOST_FILE_BYTES: Final = 4 * 1000**2
"""Larger files are skipped: they are data or logs rather than text that someone wrote."""

PASSAGE_BYTES: Final = 1000
"""Longest passage: about a paragraph or two, and within the 512 tokens of the smallest models for
all but unusual text."""

_BINARY_SAMPLE_BYTES: Final = 8192
_HTML: Final = frozenset({".htm", ".html", ".xhtml"})
# Each pattern reads a page once, however it is damaged: what has no end goes on to the end of the
# page, and a tag contains no other one.
_NOT_SHOWN: Final = re.compile(
    r"(?is)<!--.*?(?:-->|\Z)|<(script|style|template)\b[^<>]*>.*?(?:</\1\b[^<>]*>|\Z)"
)
_TAG: Final = re.compile(r"<[a-zA-Z/!?][^<>\n]*>")
_LONG_TAG: Final = re.compile(r"<[a-zA-Z/!?][^<>]*>")
_LINE_END: Final = re.compile(r"\r?\n")  # as editors and grep count lines


def text_files(folder: Path, exclude: Sequence[str] = ()) -> Iterator[Path]:
    """Yield the regular files of a folder and its subfolders, in order, without hidden ones.

    A folder that cannot be listed is yielded too, and so is what may be a file.

    Args:
        folder: The folder.
        exclude: Patterns of files and folders to leave out, as ``fnmatch`` has them: of names, or
            of paths from the folder on if they contain a slash.
    """
    patterns = [pattern.rstrip("/") for pattern in exclude]
    names_left_out = [each for each in patterns if "/" not in each]
    # Also ./old, as shells complete it.
    paths_left_out = [os.path.normpath(each).lstrip("/") for each in patterns if "/" in each]

    def is_wanted(parent: str, name: str) -> bool:
        if name.startswith(".") or any(fnmatchcase(name, each) for each in names_left_out):
            return False
        path = os.path.relpath(os.path.join(parent, name), folder) if paths_left_out else name
        return not any(fnmatchcase(path, each) for each in paths_left_out)

    unread: list[Path] = []
    walk = os.walk(folder, onerror=lambda error: unread.append(Path(error.filename)))
    for parent, folders, names in walk:
        folders[:] = sorted(name for name in folders if is_wanted(parent, name))
        for name in sorted(names):
            path = Path(parent, name)
            if is_wanted(parent, name) and _may_be_file(path):
                yield path
    yield from unread


def size(path: Path) -> int:
    """Return the size of a file; 0 if it is not searched because of its size."""
    try:
        size = path.lstat().st_size
    except OSError:
        return 0
    return size if size <= MOST_FILE_BYTES else 0


def _may_be_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return True  # it cannot be read either, which is counted


def read_text(path: Path) -> str | None:
    """Return the text of a file; None if it is not text, too large, or cannot be read.

    A page of HTML becomes the text that a browser shows, on the lines where it stands.
    """
    try:
        # A file may have become a pipe, which would block.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_FILE_BYTES:
                return None
            raw = file.read(MOST_FILE_BYTES)
    except OSError:
        return None
    if b"\0" in raw[:_BINARY_SAMPLE_BYTES]:
        return None
    text = raw.decode("utf-8-sig", "replace")
    return _html_text(text) if path.suffix.lower() in _HTML else text


def passages(text: str, most_bytes: int = PASSAGE_BYTES) -> Iterator[tuple[int, str]]:
    """Yield the passages of a text, and the number of the first line of each.

    Paragraphs stay together up to ``most_bytes``. A longer one is divided between lines, and a line
    that is longer by itself between characters. None begins or ends with white space, which some
    servers remove: the client then refuses it.
    """
    begin, held, size, paragraph_ended = 1, list[str](), 0, False
    for number, line in enumerate(_LINE_END.split(text), start=1):
        for part in _parts(line.rstrip(), most_bytes):
            length = len(part.encode()) + 1
            # A paragraph that starts in the second half of a passage may not fit into it.
            starts_late = paragraph_ended and size > most_bytes // 2
            if held and part and (size + length > most_bytes or starts_late):
                yield begin, "\n".join(held).strip()
                held, size = [], 0
            if part and not held:
                begin = number
            if part or held:
                held.append(part)
                size += length
            paragraph_ended = not part
    if held:
        yield begin, "\n".join(held).strip()


def _parts(line: str, most_bytes: int) -> Iterator[str]:
    if len(line.encode()) < most_bytes:
        yield line
        return
    raw = line.encode()
    while raw:
        part = raw[: most_bytes - 1].decode("utf-8", "ignore")  # without half a character
        if part.strip():
            yield part
        raw = raw[len(part.encode()) :]


def _html_text(page: str) -> str:
    """Return what a browser shows of a page, each line where it stands.

    A parser of the standard library takes ten times as long, at each search.
    """
    shown = _TAG.sub("", _NOT_SHOWN.sub(_line_ends, page))
    lines = _LONG_TAG.sub(_line_ends, shown).split("\n")
    # A reference may stand for a line end, which is none of the file.
    return "\n".join(html.unescape(line).replace("\n", " ").strip() for line in lines)


def _line_ends(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")
