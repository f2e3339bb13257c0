"""Rows of Parquet files, a few at a time."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from emberd.bulk import arrow
from emberd.bulk.rows import CHUNK_BYTES, CHUNK_ROWS, Chunk, Cursor, Flaw
from emberd.errors import EmberdError, SettingError

# Without it, PyArrow reads a column of a whole row group at once.
_BUFFER_BYTES: Final = 1 << 20
_NOT_UTF8: Final = Flaw("The text is not UTF-8.")
_NULL: Final = Flaw("The text is null.")


class ParquetRows:
    """Reads Parquet files.

    Args:
        files: In the order of their rows.
        column: The one that holds the texts.
        added: The column that will be added.
        whole: Whether all columns are kept, or none but the texts.

    Raises:
        SettingError: There is no such column, it holds no texts, ``added`` is there already, or
            the files cannot be one table.
    """

    unit = "rows"

    def __init__(self, files: Sequence[Path], column: str, added: str, *, whole: bool) -> None:
        self._files = files
        self._column = column
        metas = [_metadata(path) for path in files]
        self.total: int = sum(meta.num_rows for meta in metas)
        schemas = [meta.schema.to_arrow_schema() for meta in metas]
        for path, each in zip(files, schemas, strict=True):
            _check_name(path, each, column)
        schema = _one_schema(files, schemas)
        _check(files[0], schema, column, added if whole else None)
        self._columns = None if whole else [column]
        self._schema = schema if whole else _alone(schema, column)

    def empty(self) -> Any:
        """Return a table like those of the chunks, without a row."""
        return self._schema.empty_table()

    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """Yield the rows after ``start``.

        Raises:
            EmberdError: A file cannot be read, and is named.
        """
        units = start.units
        for index in range(start.file, len(self._files)):
            row = start.row if index == start.file else 0
            for table in self._tables(self._files[index], row):
                first, row = row, row + table.num_rows
                units += table.num_rows
                yield self._chunk(table, self._files[index], first, Cursor(index, row, units=units))

    def _tables(self, path: Path, skip: int) -> Iterator[Any]:
        _, parquet = arrow.modules()
        lib, _ = arrow.modules()
        try:
            with parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES) as file:
                groups, skip = _groups_after(file.metadata, skip)
                for batch in file.iter_batches(
                    _batch_rows(file.metadata), row_groups=groups, columns=self._columns
                ):
                    rest = batch.slice(skip)
                    skip -= batch.num_rows - rest.num_rows
                    if rest.num_rows:
                        yield self._fitting(lib.Table.from_batches([rest]))
        except (lib.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error

    def _fitting(self, table: Any) -> Any:
        names = self._schema.names
        if table.schema.names != names:
            lib, _ = arrow.modules()
            missing = {
                name: lib.nulls(table.num_rows) for name in names if name not in table.schema.names
            }
            for name, nulls in missing.items():
                table = table.append_column(name, nulls)
            table = table.select(names)
        table = table.replace_schema_metadata(self._schema.metadata)
        return table if table.schema.equals(self._schema) else table.cast(self._schema)

    def _chunk(self, table: Any, path: Path, first: int, after: Cursor) -> Chunk:
        texts = [_NULL if text is None else text for text in _texts(table[self._column])]
        return Chunk(
            texts, table, lambda index: {"file": str(path), "file_row": first + index}, after
        )


def _metadata(path: Path) -> Any:
    lib, parquet = arrow.modules()
    try:
        return parquet.read_metadata(path)
    except (lib.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> EmberdError:
    return EmberdError(
        f"{path} cannot be read as Parquet: {error}. Write it again, or leave it out."
    )


def _one_schema(files: Sequence[Path], schemas: Sequence[Any]) -> Any:
    lib, _ = arrow.modules()
    first = whole = schemas[0]
    for path, schema in zip(files[1:], schemas[1:], strict=True):
        if schema.equals(first):
            continue
        try:
            whole = lib.unify_schemas([whole, schema], promote_options="permissive")
        except lib.ArrowException as error:
            raise SettingError(
                f"{path} has other columns than {files[0]}: {error}. Embed them by runs of their "
                f"own, or give them the same types."
            ) from None
    return whole.with_metadata(first.metadata)


def _check_name(path: Path, schema: Any, column: str) -> None:
    if column not in schema.names:
        near = difflib.get_close_matches(column, schema.names, n=1)
        wanted = f"Did you mean --column {near[0]!r}?" if near else "Name one: --column NAME"
        raise SettingError(
            f"{path} has no column {column!r}. Its columns are: {', '.join(schema.names)}. {wanted}"
        )
    if schema.names.count(column) > 1:
        raise SettingError(
            f"{path} has several columns {column!r}. Give each its own name, and write it again."
        )


def _check(path: Path, schema: Any, column: str, added: str | None) -> None:
    if not _holds_texts(schema.field(column).type):
        raise SettingError(
            f"The column {column!r} of {path} holds {schema.field(column).type}, not texts. Give "
            f"another --column, or cast it to string."
        )
    if added in schema.names:
        raise SettingError(
            f"{path} has a column {added!r} already. Name the new one: --embedding-column NAME"
        )


def _holds_texts(kind: Any) -> bool:
    lib, _ = arrow.modules()
    types = lib.types
    if types.is_dictionary(kind):
        return _holds_texts(kind.value_type)
    views = getattr(types, "is_string_view", lambda _: False)
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or views(kind) or types.is_null(kind)
    )


def _alone(schema: Any, column: str) -> Any:
    lib, _ = arrow.modules()
    return lib.schema([schema.field(column)])


def _groups_after(metadata: Any, skip: int) -> tuple[list[int], int]:
    """Return the row groups that hold the rows after the first ``skip``, and what is left of it."""
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if skip < rows:
            return list(range(group, metadata.num_row_groups)), skip
        skip -= rows
    return [], 0


def _batch_rows(metadata: Any) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    widest = max(
        (group.total_byte_size / group.num_rows for group in groups if group.num_rows), default=1.0
    )
    return max(1, min(CHUNK_ROWS, int(CHUNK_BYTES / max(widest, 1.0))))


def _texts(column: Any) -> list[str | Flaw | None]:
    try:
        texts: list[str | Flaw | None] = column.to_pylist()
    except UnicodeDecodeError:
        # Nothing checked the file when it was written. The other rows are fine.
        texts = [_text(value) for value in column]
    return texts


def _text(value: Any) -> str | Flaw | None:
    try:
        text: str | None = value.as_py()
    except UnicodeDecodeError:
        return _NOT_UTF8
    return text
