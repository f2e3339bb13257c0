"""What readers give: chunks of rows, each with the place after it, where reading can go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

CHUNK_ROWS: Final = 256
"""Most rows in a chunk: what a kill can undo is counted in chunks, when parts are as small."""

CHUNK_BYTES: Final = 4 << 20
"""About how many bytes a chunk of long rows has."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why a row cannot be embedded.

    Attributes:
        reason: A sentence for people.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place between two rows of the input.

    Attributes:
        file: Which of the input's files.
        row: How many of its rows come before.
        line: How many of its lines come before, where it has lines.
        offset: How many of its bytes come before, where it has lines.
        units: How much of the whole input comes before, in the units of its reader.
    """

    file: int = 0
    row: int = 0
    line: int = 0
    offset: int = 0
    units: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows that follow each other.

    Attributes:
        texts: What is to be embedded, or why a row cannot be.
        kept: A table of what goes to the output beside the vectors, one row a text.
        place: Says in which file a row is, and where there; takes its index in the chunk.
        after: Where reading goes on.
    """

    texts: list[str | Flaw]
    kept: Any
    place: Callable[[int], dict[str, Any]]
    after: Cursor


class Reader(Protocol):
    """Reads one kind of input. To construct one opens no more than it takes to check the input."""

    unit: str
    """What ``total`` counts: rows, bytes or files."""

    total: int
    """How much there is to read."""

    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """Yield the rows after ``start``; no more than a chunk is in memory."""

    def empty(self) -> Any:
        """Return a table like those of the chunks, without a row."""
