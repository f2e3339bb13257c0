"""Embedded rows on the disk: the parts of a unit, and the mark that says that the unit is done.

::

    part-000003-0000000000-0000000256.parquet   rows 0 to 255 of unit 3, with their vectors
    part-000003-0000000000-0000000256.jsonl     its notes: where reading continues, rejected rows
    unit-000003.json                            unit 3 is done: written last

Each file is written whole or not at all. The notes of a part are written before the part: if the
part exists, all of its rows count, else none. Two processes may write the same unit, for instance
a worker that Ray believed dead and the one that replaced it. Their parts may overlap, so readers
take a chain of parts without gaps.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pyarrow
from pyarrow import parquet

from emberd.bulk.formats import dump_json, parquet_writer, vector_array, with_identity
from emberd.bulk.request import BulkRequest
from emberd.bulk.units import Chunk, Cursor, Outcome, RowError, Unit
from emberd.errors import EmberdError
from emberd.system import atomic_file

_PART_NAME: Final = re.compile(r"part-(\d+)-(\d+)-(\d+)\.parquet")
_MARK_NAME: Final = re.compile(r"unit-(\d+)\.json")

_PART_BYTES: Final = 32 << 20
_PART_ROWS: Final = 262_144
_FLOAT_BYTES: Final = 4
# A rejected row is quoted whole if it is not longer than this, else the beginning of its text.
_QUOTED_CHARACTERS: Final = 4096
_EXCERPT_CHARACTERS: Final = 400


@dataclass(frozen=True, slots=True)
class UnitPart:
    """Some embedded rows of a unit.

    Attributes:
        path: Parquet file of the rows that have vectors, which are its last column.
        unit: Index of the unit.
        start: Number of the first row in the unit.
        stop: Number after the last row.
        rows_before: Number of rows of the input before the unit; set for assembly.
        lines_before: Number of lines of the file before the unit; set for assembly.
    """

    path: Path
    unit: int
    start: int
    stop: int
    rows_before: int = 0
    lines_before: int = 0

    @property
    def notes_path(self) -> Path:
        """File of what is not in the table: a line of facts, then a line per rejected row."""
        return self.path.with_suffix(".jsonl")

    def after(self) -> Cursor:
        """Return where reading continues after the part."""
        with self.notes_path.open("rb") as file:
            return Cursor(**json.loads(file.readline())["after"])

    def rejects(self) -> Iterator[dict[str, Any]]:
        """Yield what is known of the rows without vectors, numbered as in the whole input."""
        with self.notes_path.open("rb") as file:
            file.readline()
            for line in file:
                reject = json.loads(line)
                reject["row"] += self.rows_before
                if "line" in reject:
                    reject["line"] += self.lines_before
                yield reject

    def table(self, columns: list[str] | None = None) -> Any:
        """Return the rows, with all columns or with ``columns``.

        Raises:
            EmberdError: The file is damaged.
        """
        with self._damage_errors(), parquet.ParquetFile(self.path) as file:
            return file.read(columns)

    def schema(self) -> Any:
        """Return the schema; raises as ``table``."""
        with self._damage_errors():
            return parquet.read_schema(self.path)

    def dimensions(self) -> int:
        """Return the length of the vectors; raises as ``table``."""
        length: int = self.schema().field(-1).type.list_size
        return length

    @contextmanager
    def _damage_errors(self) -> Iterator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            if getattr(error, "errno", None):
                raise  # of the disk: the content may be right
            raise EmberdError(
                f"{self.path} is damaged: {error}. Delete it, and run the same command again: its "
                f"rows will be embedded again."
            ) from error


@dataclass(frozen=True, slots=True)
class UnitDone:
    """Content of the mark that a unit is done.

    Attributes:
        rows: Number of rows of the unit, including those without vectors.
        lines: Number of lines of its last slice, including blank ones.
    """

    rows: int
    lines: int


@dataclass(frozen=True, slots=True)
class PartStore:
    """The parts of a job in a folder.

    Attributes:
        folder: The folder.
        before_rename: Called before a file gets its name; may raise.
    """

    folder: Path
    before_rename: Callable[[], None] | None = None

    def parts(self) -> dict[int, list[UnitPart]]:
        """Return the parts of each unit in order, up to the first missing row."""
        found: dict[int, list[UnitPart]] = {}
        for path in self.folder.iterdir():
            if (match := _PART_NAME.fullmatch(path.name)) is not None:
                part = UnitPart(path, *map(int, match.groups()))
                found.setdefault(part.unit, []).append(part)
        marks = self._marks()
        return {unit: _chain(found[unit], marks.get(unit)) for unit in sorted(found)}

    def done(self) -> dict[int, UnitDone]:
        """Return the units that are done: those with a mark and all of their parts."""
        parts = self.parts()
        return {
            unit: done
            for unit, done in sorted(self._marks().items())
            if parts.get(unit) and parts[unit][-1].stop == done.rows
        }

    def mark(self, unit: int, done: UnitDone) -> None:
        """Mark a unit as done."""
        with self.replacing(self.folder / f"unit-{unit:06d}.json") as file:
            file.write(json.dumps(asdict(done)).encode())

    def replacing(self, path: Path) -> Any:
        """Return a context whose file becomes ``path`` at its end."""
        return atomic_file.replacing(path, before_rename=self.before_rename)

    def _marks(self) -> dict[int, UnitDone]:
        marks: dict[int, UnitDone] = {}
        for path in self.folder.iterdir():
            if (match := _MARK_NAME.fullmatch(path.name)) is not None:
                marks[int(match[1])] = UnitDone(**json.loads(path.read_bytes()))
        return marks


def _chain(parts: Sequence[UnitPart], done: UnitDone | None) -> list[UnitPart]:
    """Return parts that follow each other from row 0, as far as possible or to the end."""
    reached: dict[int, UnitPart] = {}
    for part in sorted(parts, key=lambda part: (part.start, part.stop)):
        if part.start == 0 or part.start in reached:
            reached.setdefault(part.stop, part)
    end = done.rows if done is not None and done.rows in reached else max(reached, default=None)
    found: list[UnitPart] = []
    while end is not None and end in reached and not (found and found[-1].start == 0):
        found.append(reached[end])
        end = reached[end].start
    return found[::-1]


def dump_line(reject: dict[str, Any]) -> bytes:
    """Return a row that was rejected as a line of JSON."""
    try:
        return dump_json(reject).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(reject, default=str).encode() + b"\n"


@dataclass(slots=True)
class PartWriter:
    """Collects embedded rows of a unit and writes them as parts.

    Attributes:
        store: Where to write.
        request: The job.
        empty: A table like those of the chunks, without rows.
        unit: Index of the unit.
        start: Number of the first row of the next part in the unit.
        after: Where reading continues before the first chunk.
        dimensions: Length of the vectors.
        save_every_s: A part is due after this time.
    """

    store: PartStore
    request: BulkRequest
    empty: Any
    unit: int
    start: int
    after: Cursor
    dimensions: int
    save_every_s: float
    _chunks: list[tuple[Chunk, list[Outcome]]] = field(default_factory=list)
    _bytes: int = 0
    _since_s: float = field(default_factory=time.monotonic)

    @property
    def rows(self) -> int:
        """Number of rows since the last part."""
        return sum(len(outcomes) for _, outcomes in self._chunks)

    @property
    def is_due(self) -> bool:
        """Whether the next part is large enough, or the last one long enough ago."""
        return self.rows > 0 and (
            self._bytes >= _PART_BYTES
            or self.rows >= _PART_ROWS
            or time.monotonic() - self._since_s >= self.save_every_s
        )

    def add(self, chunk: Chunk, outcomes: list[Outcome]) -> None:
        """Add the rows of ``chunk`` with their outcomes."""
        self._bytes += chunk.rows.nbytes + len(outcomes) * self.dimensions * _FLOAT_BYTES
        # Later only the texts of rejected rows are quoted; the others would double the memory.
        pairs = zip(chunk.texts, outcomes, strict=True)
        texts = [text if isinstance(outcome, RowError) else "" for text, outcome in pairs]
        # In one step: Ctrl-C may come at any moment, and then this list is saved.
        self._chunks.append((replace(chunk, texts=texts), outcomes))

    def save(self) -> None:
        """Write the rows since the last part as a part."""
        tables, vectors = [self.empty], []
        rejects: list[dict[str, Any]] = []
        content = _line_content if self.request.is_jsonl else _content
        stop, after = self.start, self.after
        for chunk, outcomes in self._chunks:
            good = [row for row, each in enumerate(outcomes) if not isinstance(each, RowError)]
            tables += [chunk.rows.slice(*run) for run in _runs(good)]
            vectors += [outcomes[row] for row in good]
            for row, outcome in enumerate(outcomes):
                if isinstance(outcome, RowError):
                    reject = {"row": stop + row, **chunk.location(row), "reason": outcome.reason}
                    rejects.append({**reject, "content": content(chunk, row)})
            stop, after = stop + len(outcomes), chunk.after
        column, array = self.request.embedding_column, vector_array(vectors, self.dimensions)
        if self.request.output_format.keeps_rows:
            table = pyarrow.concat_tables(tables).append_column(column, array)
        else:
            table = pyarrow.table([array], names=[column])
        table = with_identity(table, self.request.identity)
        name = f"part-{self.unit:06d}-{self.start:010d}-{stop:010d}.parquet"
        part = UnitPart(self.store.folder / name, self.unit, self.start, stop)
        with self.store.replacing(part.notes_path) as file:
            file.write(json.dumps({"after": asdict(after)}).encode() + b"\n")
            file.writelines(dump_line(reject) for reject in rejects)
        with self.store.replacing(part.path) as file, parquet_writer(file, table.schema) as writer:
            writer.write_table(table)
        self.start, self.after, self._chunks, self._bytes = stop, after, [], 0
        self._since_s = time.monotonic()

    def finish(self) -> None:
        """Write the remaining rows and mark the unit as done; a unit has at least one part."""
        after = self._chunks[-1][0].after if self._chunks else self.after
        if self.rows or self.start == 0:
            self.save()
        self.store.mark(self.unit, UnitDone(self.start, after.line))


def place_parts(store: PartStore, units: Sequence[Unit]) -> list[UnitPart]:
    """Return all parts in the order of the input, with the rows and lines before their units."""
    done, parts = store.done(), store.parts()
    placed: list[UnitPart] = []
    rows = lines = 0
    for index, unit in enumerate(units):
        if unit.slices[0].start == 0:
            lines = 0  # else the unit continues the file with which the one before it ends
        placed += [replace(p, rows_before=rows, lines_before=lines) for p in parts[index]]
        rows += done[index].rows
        lines += done[index].lines
    return placed


def _runs(indices: list[int]) -> Iterator[tuple[int, int]]:
    """Yield start and length of each run of consecutive indices.

    Slicing works for columns of all types; taking rows by index does not.
    """
    for _, run in groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0]):
        members = [index for _, index in run]
        yield members[0], len(members)


def _content(chunk: Chunk, index: int) -> Any:
    row: Any
    try:
        (row,) = chunk.rows.slice(index, 1).to_pylist()
    except ValueError:  # not UTF-8, or nanoseconds where pandas is not installed
        return None
    if len(json.dumps(row, default=str)) <= _QUOTED_CHARACTERS:
        return row
    text = chunk.texts[index]
    return None if isinstance(text, RowError) else text[:_EXCERPT_CHARACTERS]


def _line_content(chunk: Chunk, index: int) -> Any:
    line = chunk.rows.column(0)[index].as_py()
    if len(line) > _QUOTED_CHARACTERS:
        return line[:_EXCERPT_CHARACTERS].decode(errors="replace")
    text = line.decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
