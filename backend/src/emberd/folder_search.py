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
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emberd.errors import TextError, TextTooLongError

if TYPE_CHECKING:
    from emberd.embedder import Embedder

MOST_FILE_BYTES: Final = 4 * 1000**2
"""Larger files are skipped: they are data or logs rather than text that someone wrote."""

PASSAGE_BYTES: Final = 1000
"""Longest passage: about a paragraph or two, and within the 512 tokens of the smallest models for
all but unusual text."""
_LEAST_PASSAGE_BYTES: Final = 100

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
        passages: Passages that have their vector.
        embedded: Those of them that were not in the cache, once all files are read.
        done_bytes: Size of the files, or parts of them, that are done.
        all_bytes: Size of all files, without those that were skipped so far.
        rejected: Passages that the model cannot embed.
        first_rejection: Why it cannot embed the first of them.
        skipped: Files that are not text, are too large or cannot be read, and folders that
            cannot be listed.
    """

    files: int = 0
    passages: int = 0
    embedded: int = 0
    rejected: int = 0
    first_rejection: TextError | None = None
    done_bytes: int = 0
    all_bytes: int = 0
    skipped: list[Path] = field(default_factory=list)


def search(
    embedder: Embedder,
    folder: Path,
    question: str,
    top: int,
    on_progress: Callable[[SearchProgress], None],
    *,
    exclude: Sequence[str] = (),
) -> tuple[list[Hit], SearchProgress]:
    """Return the passages that answer a question best, the best first, and what was read.

    Args:
        embedder: Embeds; without a cache, each search embeds the whole folder.
        folder: The folder.
        question: The question.
        top: How many passages to return.
        on_progress: Called after each reply of the server.
        exclude: See ``text_files``.

    Raises:
        ServerError: No server is available.
        RequestError: The server refused a request, failed, or sent an invalid reply.
    """
    query = embedder.embed_query(question)
    longest = _longest_passage(embedder)
    known = _misses(embedder)  # the question may be one, and so may the text that was tried
    sizes = {path: _size(path) for path in text_files(folder, exclude)}
    progress = SearchProgress(all_bytes=sum(sizes.values()))
    waiting: deque[Passage] = deque()
    read_bytes = array("Q", [0])  # up to the end of each passage, about

    def texts() -> Iterator[str]:
        before = 0
        for path, size in sizes.items():
            content = read_text(path)
            if content is None:
                progress.skipped.append(path)
                progress.all_bytes -= size
                continue
            progress.files += 1
            lines = content.count("\n") + 1
            for line, text in passages(content, longest):
                waiting.append(Passage(path, line, text))
                read_bytes.append(before + size * line // lines)
                yield text
            before += size

    def report(count: int) -> None:
        progress.passages, progress.done_bytes = count, read_bytes[count]
        on_progress(progress)

    best: list[tuple[float, int, Passage]] = []  # a heap; the number keeps equal scores in order
    vectors = embedder.iter_documents(texts(), set_aside=True, on_done=report)
    for number, vector in enumerate(vectors):
        passage = waiting.popleft()
        if isinstance(vector, TextError):
            progress.rejected += 1
            progress.first_rejection = progress.first_rejection or vector
        else:
            entry = (float(vector @ query), -number, passage)
            (heapq.heappush if len(best) < top else heapq.heappushpop)(best, entry)
    progress.embedded = _misses(embedder) - known if embedder.cache else progress.passages
    hits = [Hit(passage, score) for score, _, passage in sorted(best, reverse=True)]
    return hits, progress


def _longest_passage(embedder: Embedder) -> int:
    """Return the length of passages that the server accepts, in bytes.

    A server that cannot count tokens may cut a text that could be too long by its bytes, so the
    client refuses it. The prompt of documents counts too.
    """
    size = PASSAGE_BYTES
    while size > _LEAST_PASSAGE_BYTES:
        with suppress(TextTooLongError):
            # Some servers strip white space, and then the client refuses it at the end of a text.
            embedder.embed_documents([("word " * size)[:size].rstrip()])
            break
        size //= 2
    return size


def _misses(embedder: Embedder) -> int:
    return embedder.cache.stats().misses if embedder.cache else 0


def _size(path: Path) -> int:
    """Return the size of a file; 0 if it is not searched because of its size."""
    try:
        size = path.lstat().st_size
    except OSError:
        return 0
    return size if size <= MOST_FILE_BYTES else 0


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
