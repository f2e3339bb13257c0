"""The output, put together from the parts, one after the other."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from emberd.bulk import arrow, durable, json_values, npy
from emberd.bulk.json_columns import Columns, UnfitError
from emberd.bulk.parts import CURSOR_KEY, Part
from emberd.errors import EmberdError

OnPart = Callable[[int], None]
"""Called with the number of parts that are in the output."""

Shaped = Callable[[Any], Any]
"""Returns the table that stands in the output for a part's."""


class Shape(StrEnum):
    """What the output is."""

    PARQUET = "parquet"
    FOLDER = "folder"
    NPY = "npy"
    JSONL = "jsonl"

    @property
    def keeps_rows(self) -> bool:
        """Whether the rows of the input stand beside their vectors."""
        return self is not Shape.NPY


def assemble(
    shape: Shape,
    parts: Sequence[Part],
    target: Path,
    *,
    of_lines: bool,
    column: str,
    on_part: OnPart,
) -> None:
    """Write ``target`` from ``parts``, of which there is at least one.

    Args:
        shape: What to write.
        parts: In order.
        target: A path where nothing is yet.
        of_lines: Whether the rows are lines of JSON, and the first column holds them.
        column: The field of the texts.
        on_part: Told of each part.

    Raises:
        EmberdError: A value cannot be written in this shape, and its column is named.
    """
    if shape is Shape.NPY:
        _vectors(parts, target, on_part)
    elif shape is Shape.JSONL:
        with durable.written(target) as file:
            for done, part in enumerate(parts, start=1):
                file.writelines(_lines(part.table(), of_lines=of_lines))
                on_part(done)
    elif of_lines:
        _from_json(shape, parts, target, column, on_part)
    else:
        _tables(shape, parts, target, None, on_part)


def row_numbers(parts: Sequence[Part], target: Path) -> None:
    """Write ``target``: of each vector the number of its row in the input, as int64."""
    with durable.written(target) as file:
        npy.header(file, "<i8", (sum(part.metadata().num_rows for part in parts),))
        for part in parts:
            file.write(npy.numbers(part.start, part.stop, [r["row"] for r in part.rejects()]))


def rejects(parts: Sequence[Part], target: Path) -> int:
    """Write ``target`` from the rows that were set aside, if there are any; return their number."""
    paths = [part.rejects_path for part in parts if part.rejects_path.exists()]
    if not paths:
        return 0
    count = 0
    with durable.written(target) as file:
        for path in paths:
            content = path.read_bytes()
            count += content.count(b"\n")
            file.write(content)
    return count


def _vectors(parts: Sequence[Part], target: Path, on_part: OnPart) -> None:
    rows = sum(part.metadata().num_rows for part in parts)
    with durable.written(target) as file:
        npy.header(file, "<f4", (rows, parts[0].dimensions))
        for done, part in enumerate(parts, start=1):
            for chunk in part.table().column(-1).chunks:
                file.write(_matrix(chunk).astype("<f4", copy=False).tobytes())
            on_part(done)


def _matrix(chunk: Any) -> Any:
    return chunk.flatten().to_numpy().reshape(-1, chunk.type.list_size)


def _from_json(
    shape: Shape, parts: Sequence[Part], target: Path, column: str, on_part: OnPart
) -> None:
    columns = Columns((part.table() for part in parts), column)
    while True:
        try:
            _tables(shape, parts, target, columns.table, on_part)
        except UnfitError as error:
            # Numbers too large for the type that all others have: seen only in writing.
            columns.turn_into_json(error.column)
        else:
            return


def _tables(
    shape: Shape,
    parts: Sequence[Part],
    target: Path,
    shaped: Shaped | None,
    on_part: OnPart,
) -> None:
    write = _one_file if shape is Shape.PARQUET else _folder
    write(parts, target, shaped, on_part)


def _one_file(parts: Sequence[Part], target: Path, shaped: Shaped | None, on_part: OnPart) -> None:
    shaped = shaped or _as_it_is
    first = _told(shaped(parts[0].table()), parts[0])
    with (
        durable.written(target) as file,
        arrow.writer(file, first.schema, first.schema.names[-1]) as writer,
    ):
        for done, part in enumerate(parts, start=1):
            writer.write_table(shaped(part.table()).replace_schema_metadata(first.schema.metadata))
            on_part(done)


def _as_it_is(table: Any) -> Any:
    return table


def _folder(parts: Sequence[Part], target: Path, shaped: Shaped | None, on_part: OnPart) -> None:
    target.mkdir(exist_ok=True)
    for done, part in enumerate(parts, start=1):
        path = target / part.path.name
        path.unlink(missing_ok=True)
        if shaped is None:
            durable.linked(part.path, path)
        else:
            table = _told(shaped(part.table()), part)
            with (
                durable.written(path) as file,
                arrow.writer(file, table.schema, table.schema.names[-1]) as writer,
            ):
                writer.write_table(table)
        on_part(done)
    durable.sync(target)


def _told(table: Any, part: Part) -> Any:
    """Return ``table`` with what the metadata of ``part`` has for readers, and no more."""
    known = part.metadata().schema.to_arrow_schema().metadata or {}
    kept = {key: value for key, value in known.items() if key != CURSOR_KEY}
    return table.replace_schema_metadata(kept)


def _lines(table: Any, *, of_lines: bool) -> Iterator[bytes]:
    vectors = [row for chunk in table.column(-1).chunks for row in _matrix(chunk).tolist()]
    name = table.schema.names[-1]
    kept: Iterable[Any]
    write: Callable[[Any, str, list[float]], bytes]
    if of_lines:
        kept = table.column(0).to_pylist()
        write = _spliced
    else:
        kept = _objects(table)
        write = _dumped
    for row, vector in zip(kept, vectors, strict=True):
        yield write(row, name, vector)


def _objects(table: Any) -> Iterator[dict[str, Any]]:
    names = table.schema.names[:-1]
    columns = [_values(name, table.column(index)) for index, name in enumerate(names)]
    for index in range(table.num_rows):
        yield {name: values[index] for name, values in zip(names, columns, strict=True)}


def _values(name: str, column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except ValueError as error:  # no UTF-8, or nanoseconds where pandas is not installed
        raise EmberdError(
            f"The column {name!r} cannot be written as JSON: {error}. Write Parquet, which holds "
            f"it as it is (--output NAME.parquet), or leave the column out of the input."
        ) from error
    return values


def _spliced(line: bytes, name: str, vector: list[float]) -> bytes:
    # The object stays as it was written, to the byte: numbers lose no digit.
    more = json_values.dumped({name: vector})
    return line.rstrip().removesuffix(b"}").rstrip() + b", " + more[1:].encode() + b"\n"


def _dumped(row: dict[str, Any], name: str, vector: list[float]) -> bytes:
    return json_values.dumped({**row, name: vector}, default=_as_json).encode() + b"\n"


def _as_json(value: Any) -> str:
    """Return the text for what JSON knows nothing of: dates as ISO 8601, bytes as base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat() if hasattr(value, "isoformat") else value)
