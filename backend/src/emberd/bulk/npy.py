"""NumPy's file format, written from the front: the number of rows is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO


def header(file: BinaryIO, kind: str, shape: tuple[int, ...]) -> None:
    """Write the header of an array of ``kind``, such as ``"<f4"``, whose content comes next."""
    import numpy as np

    content = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, content)


def numbers(start: int, stop: int, without: Sequence[int]) -> Any:
    """Return the numbers from ``start`` to before ``stop`` without some, as bytes of int64."""
    import numpy as np

    kept = np.ones(stop - start, np.bool_)
    kept[np.asarray(without, np.int64) - start] = False
    return (np.flatnonzero(kept) + start).astype("<i8").tobytes()
