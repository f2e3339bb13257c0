"""PyArrow, imported at first use; columns of vectors; JSON values; columns from JSON lines."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from emberd.errors import SettingError

IDENTITY_KEY: Final = b"emberd.index_identity"
"""Key in the metadata of Parquet files: what the vectors were made with."""

_MISMATCH: Final = (ValueError, TypeError, OverflowError, NotImplementedError)
_SHOWN_CHARACTERS: Final = 80


def arrow_modules() -> tuple[Any, Any]:
    """Return ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        SettingError: PyArrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SettingError(
            f"Parquet, JSON lines and folders need pyarrow ({error}). "
            f"Run: pip install 'emberd[parquet]'"
        ) from None
    return pyarrow, parquet


def vector_array(rows: Any, dimensions: int) -> Any:
    """Return vectors as a PyArrow array of lists of fixed size.

    Args:
        rows: ``(n, dimensions)`` numbers, or a sequence of n vectors ``(dimensions,)``.
        dimensions: Length of each vector.
    """
    import numpy as np

    arrow, _ = arrow_modules()
    matrix = np.asarray(rows, np.float32) if len(rows) else np.empty((0, dimensions), np.float32)
    return arrow.FixedSizeListArray.from_arrays(arrow.array(matrix.reshape(-1)), dimensions)


def vector_matrix(chunk: Any) -> Any:
    """Return an array of lists of fixed size as a NumPy matrix, ``(n, dimensions)`` float32."""
    return chunk.flatten().to_numpy().reshape(-1, chunk.type.list_size)


def with_metadata(table: Any, more: Mapping[bytes, bytes]) -> Any:
    """Return ``table`` with ``more`` added to the metadata of its schema."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **more})


def parquet_writer(file: Any, schema: Any) -> Any:
    """Return a Parquet writer for rows whose last column holds the vectors.

    Vectors are written without a dictionary: their numbers do not repeat, and building one takes
    half of the time.
    """
    _, parquet = arrow_modules()
    return parquet.ParquetWriter(file, schema, use_dictionary=schema.names[:-1])


# ---------------------------------------------------------------- values as JSON


def dump_json(content: Any, default: Callable[[Any], str] = str) -> str:
    """Return ``content`` as strict JSON; NaN and infinities become null.

    Args:
        content: The value.
        default: Returns the text for values of types that JSON does not have.
    """
    try:
        return json.dumps(content, ensure_ascii=False, allow_nan=False, default=default)
    except ValueError:
        return json.dumps(_finite(content), ensure_ascii=False, default=default)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


class InvalidLineError(ValueError):
    """A line is not a JSON object that can be written again; the text says why."""


def parse_object(line: bytes) -> dict[str, Any]:
    """Return the object in a line of JSON.

    Raises:
        InvalidLineError: The line is not UTF-8, not JSON, not an object, or contains a lone
            surrogate.
    """
    try:
        row = json.loads(line.decode())
        if b"\\u" in line:
            # JSON can express half of a surrogate pair, UTF-8 cannot.
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise InvalidLineError(
            f"The line is not UTF-8 at byte {error.start} ({line[error.start]:#04x})."
        ) from None
    except UnicodeEncodeError as error:
        raise InvalidLineError(
            f"The line contains the lone surrogate {error.object[error.start]!r}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidLineError(f"The line is not JSON: {error}.") from None
    if not isinstance(row, dict):
        raise InvalidLineError(f"The line is not a JSON object: {str(row)[:_SHOWN_CHARACTERS]!r}.")
    return row


# ---------------------------------------------------------------- JSON lines as columns


class ColumnMismatchError(Exception):
    """A value does not fit the type of its column.

    Attributes:
        column: Name of the column; it has to become a column of JSON text.
    """

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


class JsonFields:
    """The fields of JSON objects and the Parquet types that fit all of their values.

    A field whose values have no common type becomes JSON text.
    """

    def __init__(self) -> None:
        self._types: dict[str, Any] = {}
        self._as_text: set[str] = set()

    def add_lines(self, lines: Iterable[bytes]) -> None:
        """Extend the types so that they fit the objects in ``lines``, which are valid."""
        rows = [parse_object(line) for line in lines]
        arrow, _ = arrow_modules()
        for name in dict.fromkeys(name for row in rows for name in row):
            if name not in self._as_text:
                try:
                    self._unify(name, arrow.array([row.get(name) for row in rows]).type)
                except _MISMATCH:
                    self.make_text(name)

    def add_json(self, content: Mapping[str, Any]) -> None:
        """Extend the types by those that ``to_json`` returned for other objects."""
        arrow, _ = arrow_modules()
        schema = arrow.ipc.read_schema(arrow.py_buffer(base64.b64decode(content["schema"])))
        for field in schema:
            if field.name in content["text"]:
                self.make_text(field.name)
            elif field.name not in self._as_text:
                self._unify(field.name, field.type)

    def to_json(self) -> dict[str, Any]:
        """Return a description of the fields that JSON can represent."""
        arrow, _ = arrow_modules()
        schema = arrow.schema(list(self._types.items())).serialize().to_pybytes()
        return {"schema": base64.b64encode(schema).decode(), "text": sorted(self._as_text)}

    def make_text(self, name: str) -> None:
        """Make ``name`` a column of JSON text."""
        arrow, _ = arrow_modules()
        self._types[name] = arrow.string()
        self._as_text.add(name)

    def finish(self, column: str) -> None:
        """Replace types that Parquet does not have, when all lines have been seen.

        Args:
            column: Name of the only column if there are no fields.
        """
        arrow, _ = arrow_modules()
        # Parquet has no structs without fields.
        for name in [name for name, kind in self._types.items() if _has_empty_struct(kind)]:
            self.make_text(name)
        if not self._types:
            self._types[column] = arrow.string()

    def table(self, lines: Any) -> Any:
        """Return a table with a column of JSON lines and one of vectors as a table of all fields.

        Raises:
            ColumnMismatchError: A value does not fit its column.
        """
        arrow, _ = arrow_modules()
        rows = [parse_object(line) for line in lines.column(0).to_pylist()]
        arrays = [self._array(name, rows) for name in self._types]
        # By position: the vectors may have any name.
        return arrow.table(
            [*arrays, lines.column(-1)],
            names=[*self._types, lines.schema.names[-1]],
            metadata=lines.schema.metadata,
        )

    def _array(self, name: str, rows: list[dict[str, Any]]) -> Any:
        arrow, _ = arrow_modules()
        values = [row.get(name) for row in rows]
        if name in self._as_text:
            values = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
        try:
            return arrow.array(values, self._types[name])
        except _MISMATCH:
            raise ColumnMismatchError(name) from None

    def _unify(self, name: str, kind: Any) -> None:
        arrow, _ = arrow_modules()
        pair = [arrow.schema([(name, each)]) for each in (self._types.get(name, kind), kind)]
        try:
            joined = arrow.unify_schemas(pair, promote_options="permissive").field(0).type
        except _MISMATCH:
            self.make_text(name)
        else:
            self._types[name] = joined


def _has_empty_struct(kind: Any) -> bool:
    arrow, _ = arrow_modules()
    if arrow.types.is_struct(kind) and kind.num_fields == 0:
        return True
    return any(_has_empty_struct(kind.field(i).type) for i in range(kind.num_fields))


def json_objects(table: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``table`` as dictionaries, without the last column.

    Raises:
        ColumnMismatchError: A column contains what Python cannot represent; its cause says what.
    """
    names: Sequence[str] = table.schema.names[:-1]
    columns = [_python_values(name, table.column(i)) for i, name in enumerate(names)]
    for row in range(table.num_rows):
        yield {name: values[row] for name, values in zip(names, columns, strict=True)}


def _python_values(name: str, column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except ValueError as error:  # not UTF-8, or nanoseconds where pandas is not installed
        raise ColumnMismatchError(name) from error
    return values
