"""Units of work, cut from the input files, and their rows as chunks.

The units depend only on the input files, so that every run, local or on a cluster, has the same
units and can continue another one. A unit is a stretch of a large file (whole row groups, or bytes)
or several small files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from emberd.errors import TextError
from emberd.system import os_errors

# A unit is embedded again when its worker dies, so it is some seconds of work of a GPU.
UNIT_ROWS = 20_000
UNIT_BYTES = 16 << 20
UNIT_FILES = 1000

CUT_VERSION: Final = 2
"""Increased whenever units are cut in another way."""

CHUNK_ROWS: Final = 256
"""Maximum rows of a chunk; parts consist of whole chunks."""

CHUNK_BYTES: Final = 4 << 20
"""Approximate size of a chunk of long rows."""


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a row cannot be embedded, in one or two sentences."""

    reason: str


Outcome = Any
"""What became of a row: its vector, ``(dimensions,)`` float32, or a ``RowError``."""

_NUMBERED_TEXT: Final = re.compile(r"\b([Tt])ext \d+\b")


def text_row_error(error: TextError) -> RowError:
    """Return ``error`` without the number of the text, which counts those of one call."""
    return RowError(_NUMBERED_TEXT.sub(r"\1he text", str(error)))


def checked_text(value: Any) -> str | RowError:
    """Return ``value`` if it is a string, else why it cannot be embedded."""
    if value is None:
        return RowError("The text is null.")
    if isinstance(value, str | RowError):
        return value
    return RowError(f"The text is of type {type(value).__name__}, not a string.")


def column_values(column: Any) -> list[Any]:
    """Return the values of a PyArrow column of texts; a ``RowError`` for those that are not UTF-8.

    PyArrow does not check strings when it writes them.
    """
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        values = []
        for value in column:
            try:
                values.append(value.as_py())
            except UnicodeDecodeError:
                values.append(RowError("The text is not UTF-8."))
    return values


@dataclass(frozen=True, slots=True)
class FileSlice:
    """A stretch of a file.

    Attributes:
        path: The file as the user named it.
        start: First row group or byte.
        stop: Row group or byte after the last one.
        size: Number of rows, bytes or files.
        rows_before: Number of rows of the file before ``start``; Parquet only.
        is_whole: Whether it is the whole file.
    """

    path: Path
    start: int
    stop: int
    size: int
    rows_before: int = 0
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of work: one slice of a large file, or some whole files."""

    slices: tuple[FileSlice, ...]

    @property
    def size(self) -> int:
        """Number of rows, bytes or files."""
        return sum(each.size for each in self.slices)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A position between two rows of a unit.

    Attributes:
        index: Index of the slice.
        row: Number of rows of the slice before the position.
        line: Number of lines of the slice before it; JSON lines only.
        offset: Number of bytes of the file before it; JSON lines only.
        size: Number of rows, bytes or files of the unit before it.
    """

    index: int = 0
    row: int = 0
    line: int = 0
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive rows of a unit.

    Attributes:
        texts: The text of each row, or why it has none.
        rows: Table of what the output keeps of the rows.
        location: Returns where a row is (file, and line or row), given its index in the chunk.
            Lines are counted from the beginning of the slice.
        after: Position after the chunk.
        unit: Index of the unit.
        is_last: Whether the unit ends with it.
    """

    texts: list[str | RowError]
    rows: Any
    location: Callable[[int], dict[str, Any]]
    after: Cursor
    unit: int = 0
    is_last: bool = False


class InputReader(Protocol):
    """Reads one kind of input. The constructor reads only what is needed to check the input.

    Attributes:
        units: All units, in the order of the input. Their sizes count rows, bytes or files.
    """

    units: Sequence[Unit]

    def chunks(self, unit: Unit, start: Cursor) -> Iterator[Chunk]:
        """Yield the rows of ``unit`` after ``start``.

        Raises:
            EmberdError: A file cannot be read.
        """

    def empty(self) -> Any:
        """Return a table like those of the chunks, without rows."""


def unit_chunks(reader: InputReader, unit: int, start: Cursor) -> Iterator[Chunk]:
    """Yield the chunks of unit number ``unit`` after ``start``; the last one has no rows.

    Raises:
        EmberdError: A file cannot be read.
    """
    after = start
    for chunk in reader.chunks(reader.units[unit], start):
        after = chunk.after
        yield replace(chunk, unit=unit)
    after = replace(after, size=reader.units[unit].size)
    yield Chunk([], reader.empty(), lambda _: {}, after, unit, is_last=True)


def lines_before(piece: FileSlice) -> int:
    """Return how many lines of the file begin before ``piece``, by reading that part of the file.

    Only for error messages: the output counts lines from the marks of the units.
    """
    if not piece.start:
        return 0
    count, left = 1, piece.start - 1
    with os_errors.reading(piece.path), piece.path.open("rb") as file:
        while left and (block := file.read(min(left, UNIT_BYTES))):
            count += block.count(b"\n")
            left -= len(block)
    return count


def group_slices(slices: Iterable[FileSlice], limit: int) -> list[Unit]:
    """Return units of about ``limit``: small files together, slices of large ones by themselves."""
    units: list[Unit] = []
    group: list[FileSlice] = []
    size = 0
    for each in slices:
        is_full = size + each.size > limit or len(group) >= UNIT_FILES
        if group and (is_full or not each.is_whole or not group[-1].is_whole):
            units.append(Unit(tuple(group)))
            group, size = [], 0
        group.append(each)
        size += each.size
    return [*units, Unit(tuple(group))] if group else units
