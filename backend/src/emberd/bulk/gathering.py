"""Rows and their vectors on the way into the next part."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Final

from emberd.bulk import arrow, parts
from emberd.bulk.feed import Outcome
from emberd.bulk.parts import Part
from emberd.bulk.rows import Chunk, Cursor, Flaw
from emberd.errors import EmberdError

_PART_BYTES: Final = 32 << 20
_PART_ROWS: Final = 262_144
_FLOAT_BYTES: Final = 4
# Of a row that was set aside, all is told if it is no longer than this; else the text's beginning.
_SHOWN_CHARACTERS: Final = 4096
_EXCERPT_CHARACTERS: Final = 400


@dataclass(frozen=True, slots=True)
class _Piece:
    """What a chunk brought, and how far the part is with it: rows and bytes."""

    tables: list[Any]
    vectors: list[Outcome]
    rejects: list[dict[str, Any]]
    stop: int
    size: int
    after: Cursor


class Gathering:
    """Collects the rows of a part, and writes it.

    Args:
        empty: A table like those that are kept; None where no rows are.
        of_lines: Whether the rows are lines of JSON.
        added: The column of the vectors.
        dimensions: Their length.
        start: The number of the first row.
        identity: What the vectors are made with.
        save_every_s: After how long a part is due.
        fails_on_bad_row: Raise for a row that cannot be embedded.
    """

    def __init__(
        self,
        empty: Any,
        added: str,
        dimensions: int,
        *,
        of_lines: bool,
        start: int,
        identity: str,
        save_every_s: float,
        fails_on_bad_row: bool,
    ) -> None:
        self._empty = empty
        self._added = added
        self._dimensions = dimensions
        self._identity = identity
        self._save_every_s = save_every_s
        self._fails_on_bad_row = fails_on_bad_row
        self._of_lines = of_lines
        self._start = start
        self._clear()

    @property
    def _stop(self) -> int:
        return self._pieces[-1].stop if self._pieces else self._start

    @property
    def _size(self) -> int:
        return self._pieces[-1].size if self._pieces else 0

    @property
    def is_empty(self) -> bool:
        """Whether there is no row since the last part."""
        return self._stop == self._start

    @property
    def is_due(self) -> bool:
        """Whether it is time for a part: by its size, or by how long it is since the last."""
        return (
            self._size >= _PART_BYTES
            or self._stop - self._start >= _PART_ROWS
            or time.monotonic() - self._since_s >= self._save_every_s
        )

    def add(self, chunk: Chunk, outcomes: list[Outcome]) -> None:
        """Take the rows of ``chunk``, and a vector or a Flaw for each.

        Raises:
            EmberdError: A row has a Flaw, and that is to be an error; it is named.
        """
        good = [index for index, each in enumerate(outcomes) if not isinstance(each, Flaw)]
        rejects = self._set_aside(chunk, outcomes) if len(good) < len(outcomes) else []
        tables = [] if self._empty is None else [chunk.kept.slice(*run) for run in _runs(good)]
        size = sum(table.nbytes for table in tables) + len(good) * self._dimensions * _FLOAT_BYTES
        vectors = [outcomes[index] for index in good]
        stop = self._stop + len(outcomes)
        # In one step: Ctrl-C may come at any moment, and what is here is saved then.
        self._pieces.append(_Piece(tables, vectors, rejects, stop, self._size + size, chunk.after))

    def commit(self, folder: Path) -> Part:
        """Write the part into ``folder``, and begin the next."""
        rejects = list(chain.from_iterable(piece.rejects for piece in self._pieces))
        after = self._pieces[-1].after if self._pieces else Cursor()
        rows = range(self._start, self._stop)
        part = parts.commit(folder, rows, self._table(), rejects, after)
        self._start = self._stop
        self._clear()
        return part

    def _clear(self) -> None:
        self._pieces: list[_Piece] = []
        self._since_s = time.monotonic()

    def _table(self) -> Any:
        lib, _ = arrow.modules()
        rows = list(chain.from_iterable(piece.vectors for piece in self._pieces))
        vectors = arrow.vectors(rows, self._dimensions)
        if self._empty is None:
            table = lib.table([vectors], names=[self._added])
        else:
            tables = chain.from_iterable(piece.tables for piece in self._pieces)
            kept = lib.concat_tables([self._empty, *tables])
            table = kept.append_column(self._added, vectors)
        metadata = {**(table.schema.metadata or {}), arrow.IDENTITY_KEY: self._identity.encode()}
        return table.replace_schema_metadata(metadata)

    def _set_aside(self, chunk: Chunk, outcomes: list[Outcome]) -> list[dict[str, Any]]:
        rejects: list[dict[str, Any]] = []
        for index, flaw in enumerate(outcomes):
            if not isinstance(flaw, Flaw):
                continue
            place = chunk.place(index)
            if self._fails_on_bad_row:
                told = ", ".join(f"{name} {value}" for name, value in place.items())
                raise EmberdError(
                    f"A row cannot be embedded ({told}): {flaw.reason} Mend the row, or give "
                    f"--bad-rows set-aside to go on without it."
                )
            row = {"row": self._stop + index, **place, "reason": flaw.reason}
            content = _of_line(chunk, index) if self._of_lines else _content(chunk, index)
            rejects.append(row | {"content": content})
        return rejects


def _runs(indices: list[int]) -> Iterator[tuple[int, int]]:
    """Yield where runs of indices that follow each other begin, and how long they are.

    Slices are there for columns of all types; taking rows by their index is not.
    """
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        yield members[0], len(members)


def _content(chunk: Chunk, index: int) -> Any:
    row: Any
    try:
        (row,) = chunk.kept.slice(index, 1).to_pylist()
    except ValueError:  # no UTF-8, or nanoseconds where pandas is not installed
        return None
    if len(json.dumps(row, default=str)) <= _SHOWN_CHARACTERS:
        return row
    text = chunk.texts[index]
    return None if isinstance(text, Flaw) else text[:_EXCERPT_CHARACTERS]


def _of_line(chunk: Chunk, index: int) -> Any:
    line = chunk.kept.column(0)[index].as_py()
    if len(line) > _SHOWN_CHARACTERS:
        return line[:_EXCERPT_CHARACTERS].decode(errors="replace")
    text = line.decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
