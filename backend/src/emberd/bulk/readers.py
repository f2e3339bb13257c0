"""Readers of the kinds of input: ``ParquetReader``, ``JsonLinesReader``, ``TextFilesReader``.

A reader cuts its files into units and yields the rows of a unit. Readers can be pickled: workers
receive them.
"""

from __future__ import annotations

import difflib
import gzip
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from emberd.bulk import units
from emberd.bulk.input_files import InputKind, Inputs
from emberd.bulk.tables import InvalidLineError, arrow_modules, parse_object
from emberd.bulk.units import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    NULL_TEXT,
    Chunk,
    Cursor,
    FileSlice,
    InputReader,
    RowError,
    Unit,
    column_texts,
    group_slices,
    type_error,
)
from emberd.errors import EmberdError, SettingError

LINE: Final = "line"
"""Column of the tables of JSON lines: each line as it is in the file, stripped."""

# Without a buffer size, PyArrow reads a column of a whole row group at once.
_BUFFER_BYTES: Final = 1 << 20
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_ENDLESS: Final = sys.maxsize  # the unpacked size of a gzip file is not known
_TEXT_FILE_COLUMNS: Final = ("path", "text")


def open_inputs(
    inputs: Inputs, column: str, embedding_column: str, *, keeps_rows: bool
) -> InputReader:
    """Return the reader for ``inputs``.

    Args:
        inputs: The files.
        column: Column or field of the texts.
        embedding_column: Column or field that will be added.
        keeps_rows: Whether the output contains the rows of the input.

    Raises:
        SettingError: A column does not exist or cannot be used.
        EmberdError: A file cannot be read.
    """
    if inputs.kind is InputKind.PARQUET:
        return ParquetReader(inputs.files, column, embedding_column, keeps_rows=keeps_rows)
    if inputs.kind is InputKind.JSONL:
        return JsonLinesReader(inputs.files, column, embedding_column if keeps_rows else None)
    return TextFilesReader(inputs.files, embedding_column)


class ParquetReader:
    """Reads Parquet files.

    Args:
        files: The files in reading order.
        column: Column of the texts.
        embedding_column: Column that will be added.
        keeps_rows: Whether all columns are read, or only the texts.

    Raises:
        SettingError: A file has no such column, or it does not contain texts;
            ``embedding_column`` exists; or the files have no common schema.
    """

    measure = "rows"

    def __init__(
        self, files: Sequence[Path], column: str, embedding_column: str, *, keeps_rows: bool
    ) -> None:
        self._column = column
        metadata = [_read_metadata(path) for path in files]
        schemas = [each.schema.to_arrow_schema() for each in metadata]
        for path, schema in zip(files, schemas, strict=True):
            _check_name(path, schema, column)
        schema = _common_schema(files, schemas)
        _check_schema(files[0], schema, column, embedding_column if keeps_rows else None)
        if not keeps_rows:
            arrow, _ = arrow_modules()
            schema = arrow.schema([schema.field(column)])
        self._columns = None if keeps_rows else [column]
        self._schema = schema
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
        arrow, parquet = arrow_modules()
        try:
            with parquet.ParquetFile(piece.path, buffer_size=_BUFFER_BYTES) as file:
                groups, skip = _groups_after(file.metadata, piece, skip)
                for batch in file.iter_batches(
                    _batch_rows(file.metadata), row_groups=groups, columns=self._columns
                ):
                    rest = batch.slice(skip)
                    skip -= batch.num_rows - rest.num_rows
                    if rest.num_rows:
                        yield self._unified(arrow.Table.from_batches([rest]))
        except (arrow.ArrowException, OSError) as error:
            raise _unreadable(piece.path, error) from error

    def _unified(self, table: Any) -> Any:
        if not table.schema.equals(self._schema):
            arrow, _ = arrow_modules()
            # Adds missing columns and casts the others.
            table = arrow.concat_tables([self.empty(), table], promote_options="permissive")
        return table.replace_schema_metadata(self._schema.metadata)

    def _chunk(self, table: Any, path: Path, first: int, after: Cursor) -> Chunk:
        texts = [NULL_TEXT if text is None else text for text in column_texts(table[self._column])]
        return Chunk(
            texts, table, lambda index: {"file": str(path), "file_row": first + index}, after
        )


def _read_metadata(path: Path) -> Any:
    arrow, parquet = arrow_modules()
    try:
        return parquet.read_metadata(path)
    except (arrow.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> EmberdError:
    return EmberdError(
        f"{path} cannot be read as Parquet: {error}. Write it again, or leave it out."
    )


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
    arrow, _ = arrow_modules()
    common = schemas[0]
    for path, schema in zip(files[1:], schemas[1:], strict=True):
        if schema.equals(schemas[0]):
            continue
        try:
            common = arrow.unify_schemas([common, schema], promote_options="permissive")
        except arrow.ArrowException as error:
            raise SettingError(
                f"{path} has other columns than {files[0]}: {error}. Embed the files in separate "
                f"runs, or give their columns the same types."
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


def _check_schema(path: Path, schema: Any, column: str, embedding_column: str | None) -> None:
    kind = schema.field(column).type
    if not _is_text(kind):
        raise SettingError(
            f"The column {column!r} of {path} holds {kind}, not texts. Name another --column, or "
            f"cast it to string."
        )
    if embedding_column in schema.names:
        raise SettingError(
            f"{path} has a column {embedding_column!r} already. Name the new one: "
            f"--embedding-column NAME"
        )


def _is_text(kind: Any) -> bool:
    arrow, _ = arrow_modules()
    types = arrow.types
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

    measure = "bytes"

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
            piece = unit.slices[index]
            cursor = start if index == start.index else Cursor(index)
            row = cursor.row
            for numbers, lines, line, offset, done in _line_groups(piece, cursor):
                row += len(lines)
                after = Cursor(index, row, line, offset, before + done)
                yield self._chunk(piece.path, numbers, lines, after)
            before += piece.size

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
        text = row[self._column]
        if text is None:
            return NULL_TEXT
        if not isinstance(text, str):
            return type_error(text)
        return text

    def _check_first_objects(self) -> None:
        """Raise for a wrong field name now, and not when all rows have been rejected."""
        found = (c for unit in self.units for c in self.chunks(unit, Cursor()) if c.texts)
        first = next(found, None)
        if first is None:
            return
        objects = list(_valid_objects(first.rows[LINE].to_pylist()))
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


def _valid_objects(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield parse_object(line)
        except InvalidLineError:
            continue


def _line_table(lines: list[bytes]) -> Any:
    arrow, _ = arrow_modules()
    return arrow.table({LINE: arrow.array(lines, arrow.large_binary())})


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


def _line_groups(
    piece: FileSlice, cursor: Cursor
) -> Iterator[tuple[list[int], list[bytes], int, int, int]]:
    """Yield the lines that begin in ``piece`` after ``cursor``, a chunk at a time.

    Yields:
        Numbers and bytes of the lines that are not blank; then how many lines of the slice, how
        many bytes of the file and how much of the slice have been read.
    """
    numbers: list[int] = []
    lines: list[bytes] = []
    size = 0
    with _open_lines(piece.path) as (file, raw):
        at = _seek_line(file, cursor.offset or piece.start, is_line_start=cursor.offset > 0)
        begin, number = at, cursor.line

        def group() -> tuple[list[int], list[bytes], int, int, int]:
            # Of a packed file only the packed size is known.
            done = raw.tell() if raw is not file else at - piece.start
            return numbers, lines, number, at, min(done, piece.size)

        while at < piece.stop and (line := file.readline()):
            bare = (line.removeprefix(_BYTE_ORDER_MARK) if at == 0 else line).strip()
            at += len(line)
            number += 1
            if bare:
                numbers.append(number)
                lines.append(bare)
                size += len(bare)
            if len(lines) == CHUNK_ROWS or size >= CHUNK_BYTES:
                yield group()
                numbers, lines, size, begin = [], [], 0, at
        if at > begin:
            yield group()


def _seek_line(file: BinaryIO, offset: int, *, is_line_start: bool) -> int:
    """Go to the first line that begins at ``offset`` or after it, and return where it begins."""
    if is_line_start or not offset:
        file.seek(offset)
        return offset
    # The byte before the offset tells whether a line begins there.
    file.seek(offset - 1)
    return offset - 1 + len(file.readline())


@contextmanager
def _open_lines(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Yield the file of lines, and the file whose position is the progress."""
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        if not _is_packed(path):
            yield raw, raw
            return
        packed: Any = stack.enter_context(gzip.GzipFile(fileobj=raw))
        try:
            yield packed, raw
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

    measure = "files"

    def __init__(self, files: Sequence[Path], embedding_column: str) -> None:
        if embedding_column in _TEXT_FILE_COLUMNS:
            raise SettingError(
                f"--embedding-column {embedding_column!r} is taken: rows of text files have the "
                f"columns {' and '.join(_TEXT_FILE_COLUMNS)}. Pass another name."
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
    arrow, _ = arrow_modules()
    shown = [path.as_posix().encode(errors="replace").decode() for path in paths]
    kept = ["" if isinstance(text, RowError) else text for text in texts]
    columns = [arrow.array(shown, arrow.string()), arrow.array(kept, arrow.large_string())]
    return arrow.table(dict(zip(_TEXT_FILE_COLUMNS, columns, strict=True)))


def _file_text(path: Path) -> str | RowError:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return RowError(f"The file is not UTF-8 at byte {error.start}.")
    except OSError as error:
        return RowError(f"The file cannot be read: {error.strerror}.")
