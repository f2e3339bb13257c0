"""PyArrow, imported at first use; and columns of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from emberd.errors import SettingError

IDENTITY_KEY: Final = b"emberd.index_identity"
"""Where the metadata of a Parquet file says what its vectors were made with."""


def modules() -> tuple[Any, Any]:
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


def vectors(rows: Sequence[Any], dimensions: int) -> Any:
    """Return vectors, ``(dimensions,)`` float32 each, as an array of lists of that length."""
    import numpy as np

    arrow, _ = modules()
    matrix = np.stack(rows) if rows else np.empty((0, dimensions), np.float32)
    flat = arrow.array(matrix.astype(np.float32, copy=False).reshape(-1))
    return arrow.FixedSizeListArray.from_arrays(flat, dimensions)


def writer(file: Any, schema: Any, vector_column: str) -> Any:
    """Return a writer of Parquet into ``file``.

    No dictionary is tried for the vectors: no number comes twice, and trying takes half the time.
    """
    _, parquet = modules()
    others = [name for name in schema.names if name != vector_column]
    return parquet.ParquetWriter(file, schema, use_dictionary=others)
