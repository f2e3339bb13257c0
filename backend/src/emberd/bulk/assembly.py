"""The output, assembled from the parts; and the writers of its formats, which text lines share."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final

from emberd.bulk.parts import UnitPart, dump_line
from emberd.bulk.tables import (
    ColumnMismatchError,
    JsonFields,
    dump_json,
    json_objects,
    parquet_writer,
    vector_matrix,
)
from emberd.errors import EmberdError
from emberd.system import atomic_file

OnPart = Callable[[int], None]
"""Called with the number of parts that are in the output."""

Shaped = Callable[[Any], Any]
"""Returns the table in the output for the table of a part."""

_VECTORS: Final = "<f4"
_ROW_NUMBERS: Final = "<i8"


class OutputFormat(StrEnum):
    """Format of the output; ``FOLDER`` is a folder of Parquet files."""

    PARQUET = "parquet"
    FOLDER = "folder"
    NPY = "npy"
    JSONL = "jsonl"

    @property
    def keeps_rows(self) -> bool:
        """Whether the output contains the rows of the input."""
        return self is not OutputFormat.NPY


# ---------------------------------------------------------------- writers


class NpyWriter:
    """Writes an array row by row; its header is written again when the number is known.

    Args:
        file: An empty file that can seek.
        kind: Type of the numbers, such as ``"<f4"``.
        row_shape: Shape of a row: ``(dimensions,)``, or ``()`` for a number.
    """

    def __init__(self, file: BinaryIO, kind: str, row_shape: tuple[int, ...]) -> None:
        self._file = file
        self._kind = kind
        self._row_shape = row_shape
        self._rows = 0
        self._write_header()

    def write(self, rows: Any) -> None:
        """Append rows, ``(n, *row_shape)``."""
        self._file.write(rows.astype(self._kind, copy=False).tobytes())
        self._rows += len(rows)

    def close(self) -> None:
        """Complete the header."""
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        import numpy as np

        shape = (self._rows, *self._row_shape)
        content = {"descr": self._kind, "fortran_order": False, "shape": shape}
        # NumPy pads the header so that its size does not depend on the number of rows.
        np.lib.format.write_array_header_1_0(self._file, content)


def json_lines(
    rows: Iterable[bytes | Mapping[str, Any]], column: str, vectors: Any
) -> Iterator[bytes]:
    """Yield lines of JSON: each row with its vector.

    Args:
        rows: Rows as dictionaries, or as lines of JSON, which are kept to the byte.
        column: Field of the vectors.
        vectors: ``(len(rows), dimensions)`` float32.
    """
    for row, vector in zip(rows, vectors.tolist(), strict=True):
        if isinstance(row, bytes):
            # The object is not written again: numbers would lose digits.
            head = row.rstrip().removesuffix(b"}").rstrip()
            yield head + b", " + dump_json({column: vector})[1:].encode() + b"\n"
        else:
            yield dump_json({**row, column: vector}, default=_json_text).encode() + b"\n"


def _json_text(value: Any) -> str:
    """Return the text for what JSON cannot represent: ISO 8601 for dates, base64 for bytes."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat() if hasattr(value, "isoformat") else value)


# ---------------------------------------------------------------- assembly


def assemble(
    output_format: OutputFormat,
    parts: Sequence[UnitPart],
    target: Path,
    *,
    is_jsonl: bool,
    column: str,
    on_part: OnPart,
) -> None:
    """Write ``target``.

    Args:
        output_format: Format of the output.
        parts: At least one, in order.
        target: A path that does not exist.
        is_jsonl: Whether the rows are JSON lines, in the first column.
        column: Column of the texts.
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
    if output_format is OutputFormat.NPY:
        _write_vectors(parts, target, on_part)
    elif output_format is OutputFormat.JSONL:
        _write_json_lines(parts, target, is_jsonl=is_jsonl, on_part=on_part)
    elif is_jsonl:
        _write_json_columns(output_format, parts, target, column, on_part)
    else:
        _write_parquet(output_format, parts, target, None, on_part)


def write_row_numbers(parts: Sequence[UnitPart], target: Path) -> None:
    """Write ``target``: the number of the row of each vector in the input, as int64."""
    import numpy as np

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
    rejects = (reject for part in parts for reject in part.rejects())
    if (first := next(rejects, None)) is None:
        return 0
    count = 0
    with atomic_file.replacing(target) as file:
        for count, reject in enumerate(chain([first], rejects), start=1):  # noqa: B007 - counted
            file.write(dump_line(reject))
    return count


def _write_vectors(parts: Sequence[UnitPart], target: Path, on_part: OnPart) -> None:
    with atomic_file.replacing(target) as file:
        writer = NpyWriter(file, _VECTORS, (parts[0].dimensions(),))
        for done, part in enumerate(parts, start=1):
            for chunk in part.table().column(-1).chunks:
                writer.write(vector_matrix(chunk))
            on_part(done)
        writer.close()


def _write_json_lines(
    parts: Sequence[UnitPart], target: Path, *, is_jsonl: bool, on_part: OnPart
) -> None:
    with atomic_file.replacing(target) as file:
        for done, part in enumerate(parts, start=1):
            table = part.table().combine_chunks()
            rows: Iterable[Any] = table.column(0).to_pylist() if is_jsonl else json_objects(table)
            try:
                for chunk in table.column(-1).chunks:  # at most one
                    file.writelines(json_lines(rows, table.schema.names[-1], vector_matrix(chunk)))
            except ColumnMismatchError as error:
                raise EmberdError(
                    f"The column {error.column!r} cannot be written as JSON: {error.__cause__}. "
                    f"Write Parquet (--output NAME.parquet), or leave the column out of the input."
                ) from error
            on_part(done)


def _write_json_columns(
    output_format: OutputFormat,
    parts: Sequence[UnitPart],
    target: Path,
    column: str,
    on_part: OnPart,
) -> None:
    fields = JsonFields()
    for part in parts:
        fields.add_json(part.facts()["fields"])
    fields.finish(column)
    while True:
        try:
            _write_parquet(output_format, parts, target, fields.table, on_part)
        except ColumnMismatchError as error:
            # A number too large for the type of the others: noticed only when it is written.
            fields.make_text(error.column)
        else:
            return


def _write_parquet(
    output_format: OutputFormat,
    parts: Sequence[UnitPart],
    target: Path,
    shaped: Shaped | None,
    on_part: OnPart,
) -> None:
    write = _write_file if output_format is OutputFormat.PARQUET else _write_folder
    write(parts, target, shaped, on_part)


def _output_table(part: UnitPart, shaped: Shaped | None, metadata: Mapping[bytes, bytes]) -> Any:
    table = part.table()
    return (shaped(table) if shaped else table).replace_schema_metadata(metadata)


def _write_file(
    parts: Sequence[UnitPart], target: Path, shaped: Shaped | None, on_part: OnPart
) -> None:
    metadata = parts[0].schema().metadata
    first = _output_table(parts[0], shaped, metadata)
    with (
        atomic_file.replacing(target) as file,
        parquet_writer(file, first.schema) as writer,
    ):
        for done, part in enumerate(parts, start=1):
            writer.write_table(_output_table(part, shaped, metadata))
            on_part(done)


def _write_folder(
    parts: Sequence[UnitPart], target: Path, shaped: Shaped | None, on_part: OnPart
) -> None:
    target.mkdir(exist_ok=True)
    for done, part in enumerate(parts, start=1):
        path = target / f"part-{done - 1:06d}.parquet"
        path.unlink(missing_ok=True)
        if shaped is None:
            _link(part.path, path)
        else:
            table = _output_table(part, shaped, part.schema().metadata)
            with (
                atomic_file.replacing(path) as file,
                parquet_writer(file, table.schema) as writer,
            ):
                writer.write_table(table)
        on_part(done)
    atomic_file.sync_folder(target)


def _link(source: Path, target: Path) -> None:
    """Give ``source`` a second name; copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as old, atomic_file.replacing(target) as new:
            shutil.copyfileobj(old, new)
