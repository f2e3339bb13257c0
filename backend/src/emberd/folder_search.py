"""Search of the text files in a folder by meaning.

The vector cache is the only index. Each search reads the files again, divides them into passages
and asks the cache for their vectors, so only passages that are new or changed are embedded. A
result cannot be out of date, and a removed file is not found.
"""

from __future__ import annotations

import heapq
import html
import os
import re
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emberd.errors import TextError

if TYPE_CHECKING:
    from emberd.embedder import Embedder

MOST_FILE_BYTES: Final = 4 * 1000**2
"""Larger files are skipped: they are data or logs rather than text that someone wrote."""

PASSAGE_BYTES: Final = 1000
"""Longest passage: about a paragraph or two, and within the 512 tokens of the smallest models for
all but unusual text."""

_BINARY_SAMPLE_BYTES: Final = 8192
_HTML: Final = frozenset({".htm", ".html", ".xhtml"})
_NOT_SHOWN: Final = frozenset({"script", "style", "template"})
_LINE_END: Final = re.compile(r"\r?\n")  # as editors and grep count lines


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a file.

    Attributes:
        path: The file.
        line: Number of its first line, from 1.
        text: The text.
    """

    path: Path
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found.

    Attributes:
        passage: The passage.
        score: Cosine similarity to the question, -1 to 1.
    """

    passage: Passage
    score: float


@dataclass(slots=True)
class SearchProgress:
    """What a search has read so far.

    Attributes:
        files: Files that were read.
        passages: Passages that were compared with the question.
        embedded: Those of them that were not in the cache, once all files are read.
        rejected: Passages that the model cannot embed.
        skipped: Files that are not text, are too large or cannot be read, and folders that
            cannot be listed.
    """

    files: int = 0
    passages: int = 0
    embedded: int = 0
    rejected: int = 0
    skipped: list[Path] = field(default_factory=list)


def search(
    embedder: Embedder,
    folder: Path,
    question: str,
    top: int,
    on_progress: Callable[[SearchProgress], None],
) -> tuple[list[Hit], SearchProgress]:
    """Return the passages that answer a question best, the best first, and what was read.

    Args:
        embedder: Embeds; without a cache, each search embeds the whole folder.
        folder: The folder.
        question: The question.
        top: How many passages to return.
        on_progress: Called after each passage.

    Raises:
        ServerError: No server is available.
        RequestError: The server refused a request, failed, or sent an invalid reply.
    """
    query = embedder.embed_query(question)
    known = _misses(embedder)  # the question may be one
    progress = SearchProgress()
    waiting: deque[Passage] = deque()

    def texts() -> Iterator[str]:
        for path in text_files(folder):
            content = read_text(path)
            if content is None:
                progress.skipped.append(path)
                continue
            progress.files += 1
            for line, text in passages(content):
                waiting.append(Passage(path, line, text))
                yield text

    best: list[tuple[float, int, Passage]] = []  # a heap; the number keeps equal scores in order
    for vector in embedder.iter_documents(texts(), set_aside=True):
        passage = waiting.popleft()
        progress.passages += 1
        if isinstance(vector, TextError):
            progress.rejected += 1
        else:
            entry = (float(vector @ query), -progress.passages, passage)
            (heapq.heappush if len(best) < top else heapq.heappushpop)(best, entry)
        on_progress(progress)
    progress.embedded = _misses(embedder) - known if embedder.cache else progress.passages
    hits = [Hit(passage, score) for score, _, passage in sorted(best, reverse=True)]
    return hits, progress


def _misses(embedder: Embedder) -> int:
    return embedder.cache.stats().misses if embedder.cache else 0


def text_files(folder: Path) -> Iterator[Path]:
    """Yield the regular files of a folder and its subfolders, in order, without hidden ones.

    A folder that cannot be listed is yielded too, and so is what may be a file.
    """
    unread: list[Path] = []
    walk = os.walk(folder, onerror=lambda error: unread.append(Path(error.filename)))
    for parent, folders, names in walk:
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and _may_be_file(path):
                yield path
    yield from unread


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


def passages(text: str) -> Iterator[tuple[int, str]]:
    """Yield the passages of a text, and the number of the first line of each.

    Paragraphs stay together up to ``PASSAGE_BYTES``. A longer one is divided between lines, and a
    line that is longer by itself between characters.
    """
    begin, held, size, paragraph_ended = 1, list[str](), 0, False
    for number, line in enumerate(_LINE_END.split(text), start=1):
        for part in _parts(line.rstrip()):
            length = len(part.encode()) + 1
            # A paragraph that starts in the second half of a passage may not fit into it.
            starts_late = paragraph_ended and size > PASSAGE_BYTES // 2
            if held and part and (size + length > PASSAGE_BYTES or starts_late):
                yield begin, "\n".join(held).rstrip()
                held, size = [], 0
            if part and not held:
                begin = number
            if part or held:
                held.append(part)
                size += length
            paragraph_ended = not part
    if held:
        yield begin, "\n".join(held).rstrip()


def _parts(line: str) -> Iterator[str]:
    """Yield a line in parts of at most ``PASSAGE_BYTES`` bytes."""
    if len(line.encode()) < PASSAGE_BYTES:
        yield line
        return
    raw = line.encode()
    while raw:
        part = raw[: PASSAGE_BYTES - 1].decode("utf-8", "ignore")  # without half a character
        yield part
        raw = raw[len(part.encode()) :]


class _HtmlText(HTMLParser):
    """Collects what a browser shows of a page, at the line where it stands."""

    def __init__(self, line_count: int) -> None:
        # A reference may stand for a line end, which is none of the file.
        super().__init__(convert_charrefs=False)
        self.lines = [""] * line_count
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - given by the parser
        self._hidden += tag in _NOT_SHOWN

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in _NOT_SHOWN))

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            for line, text in enumerate(data.split("\n"), start=self.getpos()[0] - 1):
                self.lines[line] += text

    def handle_entityref(self, name: str) -> None:
        self.handle_data(" ".join(html.unescape(f"&{name};").split("\n")))

    def handle_charref(self, name: str) -> None:
        self.handle_entityref(f"#{name}")


def _html_text(page: str) -> str | None:
    """Return the text of a page; None if it cannot be parsed."""
    parser = _HtmlText(page.count("\n") + 1)
    try:
        parser.feed(page)
        parser.close()
    except AssertionError:  # an unknown marked section, in Python 3.11 to 3.13
        return None
    return "\n".join(line.strip() for line in parser.lines)
