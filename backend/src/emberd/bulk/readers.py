"""Readers of the kinds of input: ``ParquetReader``, ``JsonLinesReader``, ``TextFilesReader``.

A reader cuts its files into units and yields the rows of a unit. Readers can be pickled: workers
receive them.
"""

from __future__ import annotations

import difflib
import gzip
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import pyarrow
from pyarrow import parquet

from emberd.bulk import units
from emberd.bulk.formats import InvalidLineError, parse_object
from emberd.bulk.request import BulkRequest, InputKind
from emberd.bulk.units import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    Chunk,
    Cursor,
    FileSlice,
    InputReader,
    RowError,
    Unit,
    checked_text,
    column_values,
    group_slices,
)
from emberd.errors import EmberdError, SettingError
from emberd.system import os_errors

LINE: Final = "line"
"""Column of the tables of JSON lines: each line as it is in the file, stripped."""

# Without a buffer size, PyArrow reads a column of a whole row group at once.
_BUFFER_BYTES: Final = 1 << 20
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_ENDLESS: Final = sys.maxsize  # the unpacked size of a gzip file is not known
_TEXT_FILE_COLUMNS: Final = ("path", "text")


@os_errors.raised_as(SettingError)
def open_reader(request: BulkRequest) -> InputReader:
    """Return the reader of the input, which checks it.

    Raises:
        SettingError: A column does not exist or cannot be used.
        EmberdError: A file cannot be read.
    """
    files, column = request.inputs.files, request.column
    keeps_rows = request.output_format.keeps_rows
    added = request.embedding_column if keeps_rows else None
    if request.inputs.kind is InputKind.PARQUET:
        return ParquetReader(files, column, added)
    if request.inputs.kind is InputKind.JSONL:
        return JsonLinesReader(files, column, added)
    return TextFilesReader(files, request.embedding_column)


class ParquetReader:
    """Reads Parquet files.

    Args:
        files: The files in reading order.
        column: Column of the texts.
        embedding_column: Column that will be added; None if the rows are not kept, and only the
            texts are read.

    Raises:
        SettingError: A file has no such column, or it does not contain texts;
            a file has ``embedding_column``; or the files have no common schema.
    """

    def __init__(self, files: Sequence[Path], column: str, embedding_column: str | None) -> None:
        self._column = column
        metadata = []
        for path in files:
            with _parquet_errors(path):
                metadata.append(parquet.read_metadata(path))
        schemas = [each.schema.to_arrow_schema() for each in metadata]
        for path, schema in zip(files, schemas, strict=True):
            _check_name(path, schema, column)
            if embedding_column in schema.names:
                raise SettingError(
                    f"{path} has a column {embedding_column!r} already. Name the new one: "
                    f"--embedding-column NAME"
                )
        schema = _common_schema(files, schemas)
        kind = schema.field(column).type
        if not _is_text(kind):
            # In an earlier file the column may hold only nulls.
            kinds = (each.field(column).type for each in schemas)
            path = next(path for path, own in zip(files, kinds, strict=True) if not _is_text(own))
            raise SettingError(
                f"The column {column!r} of {path} holds {kind}, not texts. Name another "
                f"--column, or cast it to string."
            )
        keeps_rows = embedding_column is not None
        self._columns = None if keeps_rows else [column]
        self._schema = schema if keeps_rows else pyarrow.schema([schema.field(column)])
        pairs = zip(files, metadata, strict=True)
        slices = (each for path, facts in pairs for each in _row_group_slices(path, facts))
        self.units: Sequence[Unit] = group_slices(slices, units.UNIT_ROWS)

    def empty(self) -> Any:
        """Return a table like those of the chunks, without rows."""
        return self._schema.empty_table()

    def chunks(self, unit: Unit, start: Cursor) -> Iterator[Chunk]:
        """Yield the rows of ``unit`` after ``start``.

        Raises:
            EmberdError: A file cannot be read.
        """
        size = start.size
        for index in range(start.index, len(unit.slices)):
            piece = unit.slices[index]
            row = start.row if index == start.index else 0
            for table in self._tables(piece, row):
                first = piece.rows_before + row
                row += table.num_rows
                size += table.num_rows
                yield self._chunk(table, piece.path, first, Cursor(index, row, size=size))

    def _tables(self, piece: FileSlice, skip: int) -> Iterator[Any]:
        with (
            _parquet_errors(piece.path),
            parquet.ParquetFile(piece.path, buffer_size=_BUFFER_BYTES) as file,
        ):
            groups, skip = _groups_after(file.metadata, piece, skip)
            for batch in file.iter_batches(
                _batch_rows(file.metadata), row_groups=groups, columns=self._columns
            ):
                rest = batch.slice(skip)
                skip -= batch.num_rows - rest.num_rows
                if not rest.num_rows:
                    continue
                table = pyarrow.Table.from_batches([rest])
                if not table.schema.equals(self._schema):
                    # Adds missing columns and casts the others.
                    both = [self.empty(), table]
                    table = pyarrow.concat_tables(both, promote_options="permissive")
                yield table.replace_schema_metadata(self._schema.metadata)

    def _chunk(self, table: Any, path: Path, first: int, after: Cursor) -> Chunk:
        texts = [checked_text(value) for value in column_values(table[self._column])]
        return Chunk(
            texts, table, lambda index: {"file": str(path), "file_row": first + index}, after
        )


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    with os_errors.reading(path):
        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            if getattr(error, "errno", None):
                raise  # of the disk: the content may be right
            raise EmberdError(
                f"{path} cannot be read as Parquet: {error}. Write it again, or omit it."
            ) from error


def _row_group_slices(path: Path, metadata: Any) -> list[FileSlice]:
    slices: list[FileSlice] = []
    first = before = rows = 0
    last = metadata.num_row_groups - 1
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows - before >= units.UNIT_ROWS or group == last:
            whole = first == 0 and group == last
            slices.append(FileSlice(path, first, group + 1, rows - before, before, is_whole=whole))
            first, before = group + 1, rows
    return slices or [FileSlice(path, 0, 0, 0)]


def _groups_after(metadata: Any, piece: FileSlice, skip: int) -> tuple[list[int], int]:
    """Return the row groups with the rows after the first ``skip``, and how many to skip there."""
    for group in range(piece.start, piece.stop):
        rows = metadata.row_group(group).num_rows
        if skip < rows:
            return list(range(group, piece.stop)), skip
        skip -= rows
    return [], 0


def _common_schema(files: Sequence[Path], schemas: Sequence[Any]) -> Any:
    common = schemas[0]
    for path, schema in zip(files[1:], schemas[1:], strict=True):
        if schema.equals(schemas[0]):
            continue
        try:
            common = pyarrow.unify_schemas([common, schema], promote_options="permissive")
        except pyarrow.ArrowException as error:
            raise SettingError(
                f"The columns of {path} differ from those of {files[0]}: {error}. Embed the files "
                f"in separate runs, or give their columns the same types."
            ) from None
    return common.with_metadata(schemas[0].metadata)


def _check_name(path: Path, schema: Any, column: str) -> None:
    if column not in schema.names:
        raise SettingError(
            f"{path} has no column {column!r}. Its columns are: {', '.join(schema.names)}. "
            f"{_suggestion(column, schema.names)}"
        )
    if schema.names.count(column) > 1:
        raise SettingError(
            f"{path} has several columns {column!r}. Give each its own name, and write it again."
        )


def _suggestion(column: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(column, names, n=1)
    return f"Did you mean --column {near[0]!r}?" if near else "Name one: --column NAME"


def _is_text(kind: Any) -> bool:
    types = pyarrow.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    is_view = getattr(types, "is_string_view", lambda _: False)
    checks = (types.is_string, types.is_large_string, is_view, types.is_null)
    return any(check(kind) for check in checks)


def _batch_rows(metadata: Any) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    widest = max(
        (group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=1.0
    )
    return max(1, min(CHUNK_ROWS, int(CHUNK_BYTES / max(widest, 1.0))))


class JsonLinesReader:
    """Reads files of JSON lines; files whose names end with .gz are unpacked.

    Args:
        files: The files in reading order.
        column: Field of the texts.
        embedding_column: Field that will be added; None if the rows are not kept.

    Raises:
        SettingError: The first objects have no such field, or all of them have
            ``embedding_column``.
    """

    def __init__(self, files: Sequence[Path], column: str, embedding_column: str | None) -> None:
        self._column = column
        self._embedding_column = embedding_column
        slices = (each for path in files for each in _byte_slices(path))
        self.units: Sequence[Unit] = group_slices(slices, units.UNIT_BYTES)
        self._check_first_objects()

    def empty(self) -> Any:
        """Return a table like those of the chunks, without rows."""
        return _line_table([])

    def chunks(self, unit: Unit, start: Cursor) -> Iterator[Chunk]:
        """Yield the lines of ``unit`` after ``start``; blank lines are not rows.

        A last chunk without rows stands for blank lines at the end of a slice: its position counts
        them.

        Raises:
            EmberdError: A file cannot be read.
        """
        before = sum(each.size for each in unit.slices[: start.index])
        for index in range(start.index, len(unit.slices)):
            cursor = start if index == start.index else Cursor(index)
            yield from self._slice_chunks(unit.slices[index], cursor, before)
            before += unit.slices[index].size

    def _slice_chunks(self, piece: FileSlice, cursor: Cursor, before: int) -> Iterator[Chunk]:
        """Yield the lines that begin in ``piece`` after ``cursor``.

        ``before`` is the size of the slices of the unit before it.
        """
        numbers: list[int] = []
        lines: list[bytes] = []
        size, row, number = 0, cursor.row, cursor.line
        with _open_lines(piece.path) as (file, raw):
            at = cursor.offset or piece.start
            if piece.start and not cursor.offset:
                # The byte before the start tells whether a line begins there.
                file.seek(at - 1)
                at += len(file.readline()) - 1
            else:
                file.seek(at)
            begin = at
            while True:
                line = file.readline() if at < piece.stop else b""
                bare = (line.removeprefix(_BYTE_ORDER_MARK) if at == 0 else line).strip()
                at += len(line)
                number += bool(line)
                if bare:
                    numbers.append(number)
                    lines.append(bare)
                    size += len(bare)
                is_full = len(lines) == CHUNK_ROWS or size >= CHUNK_BYTES
                if is_full or (not line and at > begin):
                    row += len(lines)
                    # Of a packed file only the packed size is known.
                    done = raw.tell() if raw is not file else at - piece.start
                    done = before + min(done, piece.size)
                    after = Cursor(cursor.index, row, number, at, done)
                    yield self._chunk(piece.path, numbers, lines, after)
                    numbers, lines, size, begin = [], [], 0, at
                if not line:
                    break

    def _chunk(self, path: Path, numbers: list[int], lines: list[bytes], after: Cursor) -> Chunk:
        return Chunk(
            [self._text(line) for line in lines],
            _line_table(lines),
            lambda index: {"file": str(path), "line": numbers[index]},
            after,
        )

    def _text(self, line: bytes) -> str | RowError:
        try:
            row = parse_object(line)
        except InvalidLineError as error:
            return RowError(str(error))
        if self._column not in row:
            return RowError(f"The object has no field {self._column!r}.")
        if self._embedding_column in row:
            return RowError(
                f"The object has a field {self._embedding_column!r} already. "
                f"Name the new one: --embedding-column NAME"
            )
        return checked_text(row[self._column])

    def _check_first_objects(self) -> None:
        """Raise for a wrong field name now, and not when all rows have been rejected."""
        found = (c for unit in self.units for c in self.chunks(unit, Cursor()) if c.texts)
        first = next(found, None)
        if first is None:
            return
        objects = []
        for line in first.rows[LINE].to_pylist():
            with suppress(InvalidLineError):
                objects.append(parse_object(line))
        names = list(dict.fromkeys(name for row in objects for name in row))
        path = first.location(0)["file"]
        if objects and all(self._embedding_column in row for row in objects):
            raise SettingError(
                f"The objects of {path} have a field {self._embedding_column!r} already. Name the "
                f"new one: --embedding-column NAME"
            )
        if objects and self._column not in names:
            raise SettingError(
                f"{path} has no field {self._column!r} in its first objects. Their fields are: "
                f"{', '.join(names) or 'none'}. {_suggestion(self._column, names)}"
            )


def _line_table(lines: list[bytes]) -> Any:
    return pyarrow.table({LINE: pyarrow.array(lines, pyarrow.large_binary())})


def _byte_slices(path: Path) -> Iterator[FileSlice]:
    size = path.stat().st_size
    if _is_packed(path):
        yield FileSlice(path, 0, _ENDLESS, size)
        return
    for start in range(0, size, units.UNIT_BYTES) or [0]:
        stop = min(start + units.UNIT_BYTES, size)
        yield FileSlice(path, start, stop, stop - start, is_whole=size <= units.UNIT_BYTES)


def _is_packed(path: Path) -> bool:
    return path.suffix.casefold() == ".gz"


@contextmanager
def _open_lines(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Yield the file of lines, and the file whose position is the progress."""
    with os_errors.reading(path), path.open("rb") as raw:
        if not _is_packed(path):
            yield raw, raw
            return
        with gzip.GzipFile(fileobj=raw) as packed:
            try:
                yield cast("BinaryIO", packed), raw
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise EmberdError(
                    f"{path} cannot be unpacked: {error}. Fetch or pack it again."
                ) from error


class TextFilesReader:
    """Reads text files, each of which is a row with the columns ``path`` and ``text``.

    Args:
        files: The files in the order of the rows.
        embedding_column: Column that will be added.

    Raises:
        SettingError: ``embedding_column`` is one of those columns.
    """

    def __init__(self, files: Sequence[Path], embedding_column: str) -> None:
        if embedding_column in _TEXT_FILE_COLUMNS:
            raise SettingError(
                f"--embedding-column {embedding_column!r} conflicts with a column of text files "
                f"({' and '.join(_TEXT_FILE_COLUMNS)}). Pass another name."
            )
        self.units: Sequence[Unit] = group_slices(
            (FileSlice(path, 0, 1, 1) for path in files), units.UNIT_FILES
        )

    def empty(self) -> Any:
        """Return a table like those of the chunks, without rows."""
        return _file_table([], [])

    def chunks(self, unit: Unit, start: Cursor) -> Iterator[Chunk]:
        """Yield the files of ``unit`` after ``start``; a file that cannot be read is a bad row."""
        paths: list[Path] = []
        texts: list[str | RowError] = []
        size = 0
        for done, piece in enumerate(unit.slices[start.index :], start=start.index + 1):
            text = _file_text(piece.path)
            paths.append(piece.path)
            texts.append(text)
            size += len(text) if isinstance(text, str) else 0
            if len(paths) == CHUNK_ROWS or size >= CHUNK_BYTES or done == len(unit.slices):
                yield _file_chunk(paths, texts, Cursor(done, size=done))
                paths, texts, size = [], [], 0


def _file_chunk(paths: list[Path], texts: list[str | RowError], after: Cursor) -> Chunk:
    table = _file_table(paths, texts)
    return Chunk(texts, table, lambda index: {"file": str(paths[index])}, after)


def _file_table(paths: list[Path], texts: list[str | RowError]) -> Any:
    shown = [path.as_posix().encode(errors="replace").decode() for path in paths]
    kept = ["" if isinstance(text, RowError) else text for text in texts]
    columns = [pyarrow.array(shown, pyarrow.string()), pyarrow.array(kept, pyarrow.large_string())]
    return pyarrow.table(dict(zip(_TEXT_FILE_COLUMNS, columns, strict=True)))


def _file_text(path: Path) -> str | RowError:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return RowError(f"The file is not UTF-8 at byte {error.start}.")
    except OSError as error:
        return RowError(f"The file cannot be read: {error.strerror}.")
