"""Rows and vectors in Parquet, JSON lines and npy; the command uses it for lines of text too.

PyArrow is optional and imported at first use here. The modules of bulk jobs import it directly,
after ``require_pyarrow``.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Final

from emberd.errors import SettingError

IDENTITY_KEY: Final = b"emberd.index_identity"
"""Key in the metadata of Parquet files: what the vectors were made with."""

_SHOWN_CHARACTERS: Final = 80


# ---------------------------------------------------------------- Parquet


def require_pyarrow() -> None:
    """Check that PyArrow is installed.

    Raises:
        SettingError: It is not.
    """
    try:
        from pyarrow import parquet  # noqa: F401 - only whether it can be imported
    except ImportError as error:
        raise SettingError(
            f"Parquet, JSON lines and folders need pyarrow ({error}). "
            f"Run: pip install 'emberd[parquet]'"
        ) from None


def vector_array(rows: Any, dimensions: int) -> Any:
    """Return vectors as a PyArrow array of lists of fixed size.

    Args:
        rows: ``(n, dimensions)`` numbers, or a sequence of n vectors ``(dimensions,)``.
        dimensions: Length of each vector.
    """
    import numpy as np
    import pyarrow

    matrix = np.asarray(rows, np.float32) if len(rows) else np.empty((0, dimensions), np.float32)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(matrix.reshape(-1)), dimensions)


def vector_matrix(chunk: Any) -> Any:
    """Return an array of lists of fixed size as a NumPy matrix, ``(n, dimensions)`` float32."""
    return chunk.flatten().to_numpy().reshape(-1, chunk.type.list_size)


def with_identity(table: Any, identity: str) -> Any:
    """Return ``table`` with ``identity``, what the vectors were made with, in its metadata."""
    metadata = {**(table.schema.metadata or {}), IDENTITY_KEY: identity.encode()}
    return table.replace_schema_metadata(metadata)


def parquet_writer(file: Any, schema: Any) -> Any:
    """Return a Parquet writer for rows whose last column holds the vectors.

    Vectors are written without a dictionary: their numbers do not repeat, and building one takes
    half of the time.
    """
    from pyarrow import parquet

    return parquet.ParquetWriter(file, schema, use_dictionary=schema.names[:-1])


# ---------------------------------------------------------------- npy


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


# ---------------------------------------------------------------- JSON


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
