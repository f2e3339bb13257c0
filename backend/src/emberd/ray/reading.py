"""The rows of a piece of work, a batch at a time, and where each of them stands."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from emberd.bulk.inputs import Inputs, Kind
from emberd.bulk.json_rows import parsed
from emberd.bulk.rows import Flaw
from emberd.errors import EmberdError, SettingError
from emberd.ray.units import PACKED, Unit

_ENCODING: Final = "utf-8-sig"
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


def read(unit: Unit, column: str, rows: int) -> Iterator[Rows | Refused]:
    """Yield the rows of ``unit``.

    Args:
        unit: The piece of work.
        column: The column of texts; what whole files become.
        rows: Most rows of Parquet at once.

    Raises:
        EmberdError: The values of a field are of types that no one column can hold.
    """
    if unit.kind == Kind.PARQUET:
        yield from _parquet(unit, rows)
    elif unit.kind == Kind.TEXTS:
        yield from _texts(unit, column)
    else:
        yield from _json_lines(unit, column)


def check_columns(inputs: Inputs, column: str, added: str) -> None:
    """Check that the first file has a column of texts, before anything is done.

    Args:
        inputs: What is to be read.
        column: The column of texts.
        added: The column of vectors, which must not be there yet.

    Raises:
        SettingError: Either is not so; the columns that there are are named.
    """
    names = _names(inputs, column)
    known = ", ".join(map(repr, names)) or "none"
    if column not in names:
        raise SettingError(
            f"{inputs.files[0]} has no column {column!r}. There are: {known}. Give --column NAME."
        )
    if added in names:
        raise SettingError(
            f"{inputs.files[0]} has a column {added!r} already. There are: {known}. "
            f"Give --embedding-column NAME."
        )


def _names(inputs: Inputs, column: str) -> list[str]:
    if inputs.kind is Kind.TEXTS:
        return ["path", column]
    path = inputs.files[0]
    return _names_of_parquet(path) if inputs.kind is Kind.PARQUET else _names_of_json(path)


def _names_of_parquet(path: Path) -> list[str]:
    from pyarrow import parquet

    return list(parquet.read_schema(path).names)


def _names_of_json(path: Path) -> list[str]:
    with _opened(path) as file:
        rows = (parsed(line.removeprefix(_MARK)) for line in file)
        return list(next((row for row in rows if isinstance(row, dict)), {}))


def _parquet(unit: Unit, rows: int) -> Iterator[Rows]:
    import pyarrow
    from pyarrow import parquet

    before = unit.rows_before
    with parquet.ParquetFile(unit.paths[0]) as file:
        groups = list(range(unit.first, unit.end))
        for batch in file.iter_batches(rows, row_groups=groups):
            places = [{"file": unit.paths[0], "row": before + n} for n in range(batch.num_rows)]
            yield Rows(pyarrow.Table.from_batches([batch]), places)
            before += batch.num_rows


def _texts(unit: Unit, column: str) -> Iterator[Rows | Refused]:
    import pyarrow

    read: list[tuple[str, str]] = []
    for path in unit.paths:
        try:
            read.append((path, Path(path).read_text(_ENCODING)))
        except UnicodeDecodeError as error:
            yield Refused({"file": path}, f"The file is not UTF-8 at byte {error.start}.", "")
    paths, texts = [path for path, _ in read], [text for _, text in read]
    table = pyarrow.table({"path": paths, column: pyarrow.array(texts, pyarrow.string())})
    yield Rows(table, [{"file": path} for path in paths])


def _json_lines(unit: Unit, column: str) -> Iterator[Rows | Refused]:
    # As one table, whatever its size: a field that is null in one batch and a number in the next
    # would else be of two types in one file.
    read, places = [], []
    for offset, line in _lines(unit):
        place = {"file": unit.paths[0], "byte": offset}
        row = parsed(line)
        if isinstance(row, Flaw):
            yield Refused(place, row.reason, line.decode(errors="replace"))
        else:
            read.append(row)
            places.append(place)
    if read:
        yield Rows(_table(unit, column, read), places)


def _lines(unit: Unit) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that begin in the piece, blank ones not, and where each begins."""
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
    return gzip.open(path) if path.suffix == PACKED else path.open("rb")


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
    # Of type null, readers would take it for a number where another part has texts.
    return array.cast(pyarrow.string()) if pyarrow.types.is_null(array.type) else array
