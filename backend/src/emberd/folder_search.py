"""Search of the text files in a folder by meaning.

The vector cache is the only index. Each search reads the files again, divides them into passages
and asks the cache for their vectors, so only passages that are new or changed are embedded. A
result cannot be out of date, and a removed file is not found.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emberd import folder_texts
from emberd.errors import TextError, TextTooLongError

if TYPE_CHECKING:
    from emberd.embedder import Embedder

_LEAST_PASSAGE_BYTES: Final = 100


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
        exclude: See ``folder_texts.text_files``.

    Raises:
        ServerError: No server is available.
        RequestError: The server refused a request, failed, or sent an invalid reply.
    """
    query = embedder.embed_query(question)
    longest = _longest_passage(embedder)
    known = _misses(embedder)  # the question may be one, and so may the text that was tried
    sizes = {path: folder_texts.size(path) for path in folder_texts.text_files(folder, exclude)}
    progress = SearchProgress(all_bytes=sum(sizes.values()))
    waiting: deque[Passage] = deque()
    read_bytes = array("Q", [0])  # up to the end of each passage, about

    def texts() -> Iterator[str]:
        before = 0
        for path, size in sizes.items():
            content = folder_texts.read_text(path)
            if content is None:
                progress.skipped.append(path)
                progress.all_bytes -= size
                continue
            progress.files += 1
            lines = content.count("\n") + 1
            for line, text in folder_texts.passages(content, longest):
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
    size = folder_texts.PASSAGE_BYTES
    while size > _LEAST_PASSAGE_BYTES:
        with suppress(TextTooLongError):
            # Some servers strip white space, and then the client refuses it at the end of a text.
            embedder.embed_documents([("word " * size)[:size].rstrip()])
            break
        size //= 2
    return size


def _misses(embedder: Embedder) -> int:
    return embedder.cache.stats().misses if embedder.cache else 0
