"""Rows and their vectors on the way into the next part."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from emberd.bulk import arrow, parts
from emberd.bulk.feed import Outcome
from emberd.bulk.json_rows import LINE
from emberd.bulk.parts import Part
from emberd.bulk.rows import Chunk, Cursor, Flaw
from emberd.errors import EmberdError

_PART_BYTES: Final = 32 << 20
_PART_ROWS: Final = 262_144
_FLOAT_BYTES: Final = 4
# Of a row that was set aside, all is told if it is no longer than this; else the text's beginning.
_SHOWN_CHARACTERS: Final = 4096
_EXCERPT_CHARACTERS: Final = 400


class Gathering:
    """Collects the rows of a part, and writes it.

    Args:
        empty: A table like those that are kept; None where no rows are.
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
        self._after = Cursor()
        self._start = self._stop = start
        self._clear()

    @property
    def is_empty(self) -> bool:
        """Whether there is no row since the last part."""
        return self._stop == self._start

    @property
    def is_due(self) -> bool:
        """Whether it is time for a part: by its size, or by how long it is since the last."""
        return (
            self._bytes >= _PART_BYTES
            or self._stop - self._start >= _PART_ROWS
            or time.monotonic() - self._since_s >= self._save_every_s
        )

    def add(self, chunk: Chunk, outcomes: list[Outcome]) -> None:
        """Take the rows of ``chunk``, and a vector or a Flaw for each.

        Raises:
            EmberdError: A row has a Flaw, and that is to be an error; it is named.
        """
        good = [index for index, each in enumerate(outcomes) if not isinstance(each, Flaw)]
        if len(good) < len(outcomes):
            self._set_aside(chunk, outcomes)
        if self._empty is not None:
            for first, stop in _runs(good):
                kept = chunk.kept.slice(first, stop - first)
                self._tables.append(kept)
                self._bytes += kept.nbytes
        self._vectors += [outcomes[index] for index in good]
        self._bytes += len(good) * self._dimensions * _FLOAT_BYTES
        self._stop += len(outcomes)
        self._after = chunk.after

    def commit(self, folder: Path) -> Part:
        """Write the part into ``folder``, and begin the next."""
        table, rejects = self._table(), self._rejects
        rows = range(self._start, self._stop)
        part = parts.commit(folder, rows, table, rejects, self._after)
        self._start = self._stop
        self._clear()
        return part

    def _clear(self) -> None:
        self._tables: list[Any] = []
        self._vectors: list[Outcome] = []
        self._rejects: list[dict[str, Any]] = []
        self._bytes = 0
        self._since_s = time.monotonic()

    def _table(self) -> Any:
        lib, _ = arrow.modules()
        vectors = arrow.vectors(self._vectors, self._dimensions)
        if self._empty is None:
            table = lib.table([vectors], names=[self._added])
        else:
            kept = lib.concat_tables([self._empty, *self._tables])
            table = kept.append_column(self._added, vectors)
        metadata = {**(table.schema.metadata or {}), arrow.IDENTITY_KEY: self._identity.encode()}
        return table.replace_schema_metadata(metadata)

    def _set_aside(self, chunk: Chunk, outcomes: list[Outcome]) -> None:
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
            self._rejects.append(row | {"content": _content(chunk, index)})


def _runs(indices: list[int]) -> Iterator[tuple[int, int]]:
    """Yield where runs of indices that follow each other begin, and the index after their last.

    Slices are there for columns of all types; taking rows by their index is not.
    """
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        yield members[0], members[-1] + 1


def _content(chunk: Chunk, index: int) -> Any:
    row: Any
    try:
        (row,) = chunk.kept.slice(index, 1).to_pylist()
    except UnicodeDecodeError:
        return None
    if LINE in row and isinstance(row[LINE], bytes):
        return _of_line(row[LINE])
    if len(json.dumps(row, default=str)) <= _SHOWN_CHARACTERS:
        return row
    text = chunk.texts[index]
    return None if isinstance(text, Flaw) else text[:_EXCERPT_CHARACTERS]


def _of_line(line: bytes) -> Any:
    if len(line) > _SHOWN_CHARACTERS:
        return line[:_EXCERPT_CHARACTERS].decode(errors="replace")
    text = line.decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
