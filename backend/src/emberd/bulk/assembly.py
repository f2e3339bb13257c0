"""The output, assembled from the parts of a job."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow

from emberd.bulk.formats import NpyWriter, json_lines, parquet_writer, parse_object, vector_matrix
from emberd.bulk.parts import UnitPart, dump_line
from emberd.bulk.readers import LINE
from emberd.bulk.request import BulkRequest, OutputFormat
from emberd.bulk.units import CHUNK_ROWS
from emberd.errors import EmberdError
from emberd.system import atomic_file

OnPart = Callable[[int], None]
"""Called with the number of parts that are in the output."""

Convert = Callable[[Any], Any]
"""Returns the table in the output for the table of a part."""

_VECTORS: Final = "<f4"
_ROW_NUMBERS: Final = "<i8"
_MISMATCH: Final = (ValueError, TypeError, OverflowError, NotImplementedError)


def assemble(
    request: BulkRequest, parts: Sequence[UnitPart], target: Path, on_part: OnPart
) -> None:
    """Write ``target``.

    Args:
        request: The job.
        parts: At least one, in order.
        target: A path that does not exist.
        on_part: Called after each part.

    Raises:
        EmberdError: A value cannot be written in this format, or the vectors of parts differ in
            length.
    """
    lengths = {part.dimensions() for part in parts}
    if len(lengths) > 1:
        raise EmberdError(
            f"The vectors have different lengths: {', '.join(map(str, sorted(lengths)))}. Check "
            f"the servers of the nodes, and pass --restart to start again."
        )
    if request.output_format is OutputFormat.NPY:
        _write_vectors(parts, target, on_part)
        return
    if request.output_format is OutputFormat.JSONL:
        _write_json_lines(parts, target, is_jsonl=request.is_jsonl, on_part=on_part)
        return
    write = _write_file if request.output_format is OutputFormat.PARQUET else _write_folder
    if not request.is_jsonl:
        write(parts, target, None, on_part)
        return
    on_part(0)  # the types are found first, which takes a while for many parts
    tables = (part.table([LINE]) for part in parts)
    lines = chain.from_iterable(table.column(0).to_pylist() for table in tables)
    columns = _JsonColumns(lines, request.column)
    while True:
        try:
            write(parts, target, columns.table, on_part)
        except _ColumnMismatchError as error:
            # A number too large for the type of the others: noticed only when it is written.
            columns.make_text(error.column)
        else:
            return


def write_row_numbers(parts: Sequence[UnitPart], target: Path) -> None:
    """Write ``target``: the number of the row of each vector in the input, as int64."""
    with atomic_file.replacing(target) as file:
        writer = NpyWriter(file, _ROW_NUMBERS, ())
        for part in parts:
            start = part.rows_before + part.start
            kept = np.ones(part.stop - part.start, np.bool_)
            kept[np.asarray([row["row"] - start for row in part.rejects()], np.int64)] = False
            writer.write(np.flatnonzero(kept) + start)
        writer.close()


def write_rejects(parts: Sequence[UnitPart], target: Path) -> int:
    """Write ``target`` if there are rows without vectors, and return their number."""
    count = 0
    with atomic_file.replacing(target) as file:
        for part in parts:
            for reject in part.rejects():
                file.write(dump_line(reject))
                count += 1
    if not count:
        target.unlink()
    return count


def _write_vectors(parts: Sequence[UnitPart], target: Path, on_part: OnPart) -> None:
    with atomic_file.replacing(target) as file:
        writer = NpyWriter(file, _VECTORS, (parts[0].dimensions(),))
        for done, part in enumerate(parts, start=1):
            for chunk in part.table().column(-1).chunks:
                writer.write(vector_matrix(chunk))
            on_part(done)
        writer.close()


# ---------------------------------------------------------------- Parquet


def _write_file(
    parts: Sequence[UnitPart], target: Path, convert: Convert | None, on_part: OnPart
) -> None:
    metadata = parts[0].schema().metadata

    def table(part: UnitPart) -> Any:
        rows = part.table()
        return (convert(rows) if convert else rows).replace_schema_metadata(metadata)

    tables = map(table, parts)
    first = next(tables)
    with atomic_file.replacing(target) as file, parquet_writer(file, first.schema) as writer:
        for done, each in enumerate(chain([first], tables), start=1):
            writer.write_table(each)
            on_part(done)


def _write_folder(
    parts: Sequence[UnitPart], target: Path, convert: Convert | None, on_part: OnPart
) -> None:
    target.mkdir(exist_ok=True)
    for index, part in enumerate(parts):
        path = target / f"part-{index:06d}.parquet"
        if convert is not None:
            _write_file([part], path, convert, lambda _: None)
        else:
            try:
                os.link(part.path, path)
            except OSError:  # the file system has no hard links
                with part.path.open("rb") as old, atomic_file.replacing(path) as new:
                    shutil.copyfileobj(old, new)
        on_part(index + 1)
    atomic_file.sync_folder(target)


# ---------------------------------------------------------------- JSON lines


def _write_json_lines(
    parts: Sequence[UnitPart], target: Path, *, is_jsonl: bool, on_part: OnPart
) -> None:
    with atomic_file.replacing(target) as file:
        for done, part in enumerate(parts, start=1):
            table = part.table().combine_chunks()
            rows: Iterable[Any] = table.column(0).to_pylist() if is_jsonl else _json_objects(table)
            for chunk in table.column(-1).chunks:  # at most one
                file.writelines(json_lines(rows, table.schema.names[-1], vector_matrix(chunk)))
            on_part(done)


def _json_objects(table: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``table`` as dictionaries, without the last column."""
    names: Sequence[str] = table.schema.names[:-1]
    columns: list[list[Any]] = []
    for index, name in enumerate(names):
        try:
            columns.append(table.column(index).to_pylist())
        except ValueError as error:  # not UTF-8, or nanoseconds where pandas is not installed
            raise EmberdError(
                f"The column {name!r} cannot be written as JSON: {error}. Write Parquet "
                f"(--output NAME.parquet), or remove the column from the input."
            ) from error
    for row in range(table.num_rows):
        yield {name: values[row] for name, values in zip(names, columns, strict=True)}


class _ColumnMismatchError(Exception):
    """A value does not fit the type of its column, which has to become a column of JSON text."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


class _JsonColumns:
    """JSON objects as Parquet columns: the types that fit all of their values.

    A field whose values have no common type becomes JSON text.

    Args:
        lines: All objects, which are valid.
        column: Name of the only column if there are no fields.
    """

    def __init__(self, lines: Iterable[bytes], column: str) -> None:
        self._types: dict[str, Any] = {}
        self._as_text: set[str] = set()
        lines = iter(lines)
        # In groups of one size, whichever parts the lines are in: so each run finds the same types.
        while rows := [parse_object(line) for line in islice(lines, CHUNK_ROWS)]:
            for name in dict.fromkeys(name for row in rows for name in row):
                if name not in self._as_text:
                    self._add_values(name, [row.get(name) for row in rows])
        # Parquet has no structs without fields.
        for name in [name for name, kind in self._types.items() if _has_empty_struct(kind)]:
            self.make_text(name)
        if not self._types:
            self._types[column] = pyarrow.string()

    def make_text(self, name: str) -> None:
        """Make ``name`` a column of JSON text."""
        self._types[name] = pyarrow.string()
        self._as_text.add(name)

    def table(self, lines: Any) -> Any:
        """Return a table with a column of JSON lines and one of vectors as a table of all fields.

        Raises:
            _ColumnMismatchError: A value does not fit its column.
        """
        rows = [parse_object(line) for line in lines.column(0).to_pylist()]
        arrays = []
        for name, kind in self._types.items():
            values = [row.get(name) for row in rows]
            if name in self._as_text:
                values = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
            try:
                arrays.append(pyarrow.array(values, kind))
            except _MISMATCH:
                raise _ColumnMismatchError(name) from None
        # By position: the vectors may have any name.
        return pyarrow.table(
            [*arrays, lines.column(-1)],
            names=[*self._types, lines.schema.names[-1]],
            metadata=lines.schema.metadata,
        )

    def _add_values(self, name: str, values: list[Any]) -> None:
        try:
            kind = pyarrow.array(values).type
            pair = [pyarrow.schema([(name, each)]) for each in (self._types.get(name, kind), kind)]
            joined = pyarrow.unify_schemas(pair, promote_options="permissive")
        except _MISMATCH:
            self.make_text(name)
        else:
            self._types[name] = joined.field(0).type


def _has_empty_struct(kind: Any) -> bool:
    if pyarrow.types.is_struct(kind) and kind.num_fields == 0:
        return True
    return any(_has_empty_struct(kind.field(i).type) for i in range(kind.num_fields))
