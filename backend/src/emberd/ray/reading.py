"""The rows of a piece of work, a batch at a time, and where each of them stands."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from emberd.bulk.inputs import Inputs, Kind
from emberd.bulk.json_rows import JsonRows, parsed
from emberd.bulk.parquet_rows import ParquetRows
from emberd.bulk.rows import Flaw
from emberd.errors import EmberdError, SettingError
from emberd.ray.units import Unit, is_packed

_ENCODING: Final = "utf-8-sig"
_PATH: Final = "path"
_MARK: Final = b"\xef\xbb\xbf"  # what some editors write at the beginning of a file


class Rows(NamedTuple):
    """Some rows of a piece.

    Attributes:
        table: Their columns, a ``pyarrow.Table``.
        places: Where each stands, for people: its file, and its row (from 0) or byte there.
    """

    table: Any
    places: list[dict[str, Any]]


class Refused(NamedTuple):
    """What is no row at all.

    Attributes:
        place: Where it stands.
        reason: Why it is none.
        text: What stands there.
    """

    place: dict[str, Any]
    reason: str
    text: str


def read(unit: Unit, column: str, added: str, rows: int) -> Iterator[Rows | Refused]:
    """Yield the rows of ``unit``.

    Args:
        unit: The piece of work.
        column: The column of texts; what whole files become.
        added: The column of vectors, which no object may have yet.
        rows: Most rows of Parquet at once.

    Raises:
        EmberdError: The file cannot be read, or the values of a field are of types that no one
            column can hold.
    """
    if unit.kind == Kind.PARQUET:
        yield from _parquet(unit, rows)
    elif unit.kind == Kind.TEXTS:
        yield from _texts(unit, column)
    else:
        yield from _json_lines(unit, column, added)


def check_columns(inputs: Inputs, column: str, added: str) -> None:
    """Check what can be known of the columns before anything is done, as without Ray.

    Args:
        inputs: What is to be read.
        column: The column of texts.
        added: The column of vectors, which must not be there yet.

    Raises:
        SettingError: Either is not so; the columns that there are are named.
        EmberdError: A file cannot be read.
    """
    if inputs.kind is Kind.PARQUET:
        ParquetRows(inputs.files, column, added, whole=True)
    elif inputs.kind is Kind.JSONL:
        JsonRows(inputs.files, column, added)
    elif len(set(names := (_PATH, column, added))) < len(names):
        raise SettingError(
            f"Rows of text files have the columns {_PATH!r}, {column!r} and {added!r}, which must "
            f"differ. Give another --column or --embedding-column."
        )


def _parquet(unit: Unit, rows: int) -> Iterator[Rows]:
    import pyarrow
    from pyarrow import parquet

    path, before = unit.paths[0], unit.rows_before
    try:
        with parquet.ParquetFile(path) as file:
            groups = list(range(unit.first, unit.end))
            for batch in file.iter_batches(rows, row_groups=groups):
                places = [{"file": path, "row": before + n} for n in range(batch.num_rows)]
                yield Rows(pyarrow.Table.from_batches([batch]), places)
                before += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise EmberdError(
            f"{path} cannot be read as Parquet, from row {before} on: {error}. Write it again, or "
            f"leave it out."
        ) from None


def _texts(unit: Unit, column: str) -> Iterator[Rows | Refused]:
    import pyarrow

    read: list[tuple[str, str]] = []
    for path in unit.paths:
        text = _text(Path(path))
        if isinstance(text, Flaw):
            yield Refused({"file": path}, text.reason, "")
        else:
            read.append((path, text))
    paths, texts = [path for path, _ in read], [text for _, text in read]
    columns = {_PATH: paths, column: texts}
    arrays = {name: pyarrow.array(each, pyarrow.string()) for name, each in columns.items()}
    yield Rows(pyarrow.table(arrays), [{"file": path} for path in paths])


def _text(path: Path) -> str | Flaw:
    try:
        # As bytes: read as text, the ends of its lines would be changed.
        return path.read_bytes().decode(_ENCODING)
    except UnicodeDecodeError as error:
        return Flaw(f"The file is not UTF-8 at byte {error.start}.")
    except OSError as error:
        return Flaw(f"The file cannot be read: {error.strerror}.")


def _json_lines(unit: Unit, column: str, added: str) -> Iterator[Rows | Refused]:
    # As one table, whatever its size: a field that is null in one batch and a number in the next
    # would else be of two types in one file.
    read, places = [], []
    for offset, line in _lines(unit):
        place = {"file": unit.paths[0], "byte": offset}
        row = _row(line, column, added)
        if isinstance(row, Flaw):
            yield Refused(place, row.reason, line.decode(errors="replace"))
        else:
            read.append(row)
            places.append(place)
    if read:
        yield Rows(_table(unit, column, read), places)


def _row(line: bytes, column: str, added: str) -> dict[str, Any] | Flaw:
    row = parsed(line)
    if isinstance(row, Flaw):
        return row
    if added in row:
        return Flaw(
            f"The object has a field {added!r} already. Name the new one: --embedding-column NAME"
        )
    text = row.get(column)
    if not isinstance(text, str | None):
        return Flaw(f"The text is of type {type(text).__name__}, not a string.")
    return row


def _lines(unit: Unit) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that begin in the piece, blank ones not, and where each begins."""
    try:
        yield from _lines_of(unit)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise EmberdError(
            f"{unit.paths[0]} cannot be unpacked: {error}. Fetch or pack it again."
        ) from None


def _lines_of(unit: Unit) -> Iterator[tuple[int, bytes]]:
    at = unit.first
    with _opened(Path(unit.paths[0])) as file:
        if at:
            # Whether a line begins with the piece, the byte before it tells.
            file.seek(at - 1)
            at += len(file.readline()) - 1
        while at < unit.end and (line := file.readline()):
            bare = (line.removeprefix(_MARK) if at == 0 else line).strip()
            if bare:
                yield at, bare
            at += len(line)


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.open(path) if is_packed(path) else path.open("rb")


def _table(unit: Unit, column: str, read: list[dict[str, Any]]) -> Any:
    import pyarrow

    # A row may be without the text: then it is set aside, and not the piece with it.
    names = dict.fromkeys([column, *(name for row in read for name in row)])
    columns = {name: _array(unit, name, [row.get(name) for row in read]) for name in names}
    return pyarrow.table(columns)


def _array(unit: Unit, name: str, values: list[Any]) -> Any:
    import pyarrow

    try:
        array = pyarrow.array(values)
    except (pyarrow.ArrowException, TypeError, OverflowError) as error:
        raise EmberdError(
            f"{name!r} has values of several types in {unit.paths[0]}, from byte {unit.first} on: "
            f"{error}. A column of Parquet has one type: make them alike."
        ) from None
    if _has_empty_struct(array.type):
        # Parquet has no structs without a field.
        values = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
        return pyarrow.array(values, pyarrow.string())
    # Of type null, readers would take it for a number where another part has texts.
    return array.cast(pyarrow.string()) if pyarrow.types.is_null(array.type) else array


def _has_empty_struct(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind) and kind.num_fields == 0:
        return True
    return any(_has_empty_struct(kind.field(i).type) for i in range(kind.num_fields))
