"""Records: one vector as bytes, with what it takes to know that they are the right ones.

::

    magic "EMBV" | version | type of number | 0 0 | dimensions | CRC-32 | numbers, little-endian

The checksum covers the key as well: a store that hands out the record of another key, be it for a
damaged index or for mixed-up replies, hands out one that does not check out.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from emberd.cache.base import Found
from emberd.norms import is_unit

Floats = npt.NDArray[np.float32]

VERSION: Final = 1

_FRONT: Final = struct.Struct("<4sBBHI")
_CHECKSUM: Final = struct.Struct("<I")
_HEADER_BYTES: Final = _FRONT.size + _CHECKSUM.size
_MAGIC: Final = b"EMBV"
_CODES: Final = {"float32": 1, "float16": 2}
_NUMBERS: Final[dict[int, np.dtype[Any]]] = {1: np.dtype("<f4"), 2: np.dtype("<f2")}
_LOSSY: Final = _CODES["float16"]


def encode(keys: Sequence[bytes], vectors: Floats, dtype: str) -> dict[bytes, bytes]:
    """Return a record for each key, less those whose vector is not of length one.

    Args:
        keys: One a vector.
        vectors: ``(len(keys), native)``.
        dtype: ``float32``, which keeps each bit, or ``float16``, which takes half the space.

    Raises:
        ValueError: The shape is another.
    """
    if vectors.ndim != 2 or len(keys) != len(vectors):  # noqa: PLR2004 - texts by dimensions
        raise ValueError(
            f"{len(keys)} keys want vectors of shape ({len(keys)}, native), not {vectors.shape}: "
            f"give one row a key."
        )
    code = _CODES[dtype]
    front = _FRONT.pack(_MAGIC, VERSION, code, 0, vectors.shape[1])
    rows = np.ascontiguousarray(vectors, _NUMBERS[code])
    return {
        keys[index]: _record(keys[index], front, rows[index].tobytes())
        for index in np.flatnonzero(_are_units(vectors)).tolist()
    }


def _record(key: bytes, front: bytes, numbers: bytes) -> bytes:
    return front + _CHECKSUM.pack(_checksum(key, front, numbers)) + numbers


def _checksum(key: bytes, front: bytes, numbers: bytes | memoryview) -> int:
    return zlib.crc32(numbers, zlib.crc32(front, zlib.crc32(key)))


class Reader:
    """Takes records one after another, and gives the vectors of those that check out.

    Args:
        keys: All that may come.
        dtype: How this cache writes. One that keeps float16 reads float32 as well; one that
            keeps float32 leaves what another has rounded alone, and it counts as a miss.
        dimensions: Length of a native vector; None to let the first good record decide.
    """

    def __init__(self, keys: Sequence[bytes], dtype: str, dimensions: int | None = None) -> None:
        self.bad: list[bytes] = []
        self._keys = keys
        self._dimensions = dimensions
        self._codes = _NUMBERS.keys() if dtype == "float16" else {_CODES["float32"]}
        self._rows: Floats = np.empty((0, 0), np.float32)
        self._places: list[int] = []
        self._lossy: list[int] = []

    def take(self, first: int, records: Iterable[Any]) -> None:
        """Take what a store has for the keys from ``first`` on; None where it has nothing."""
        for place, record in enumerate(records, first):
            if record is None:
                continue
            code = self._code(self._keys[place], record)
            if code is None:
                self.bad.append(self._keys[place])
            elif code in self._codes:
                self._keep(place, record, code)

    def found(self) -> Found:
        """Return what has come so far. Numbers that are no unit vector are ``bad``."""
        rows = self._rows[: len(self._places)]
        places = np.array(self._places, np.intp)
        are_units = _are_units(rows)
        if not are_units.all():
            self.bad += [self._keys[place] for place in places[~are_units].tolist()]
            self._lossy = [int(are_units[:row].sum()) for row in self._lossy if are_units[row]]
            rows, places = rows[are_units], places[are_units]
        _normalise(rows, self._lossy)
        mask = np.zeros(len(self._keys), np.bool_)
        mask[places] = True
        return Found(mask, rows if len(rows) else np.empty((0, 0), np.float32))

    def _code(self, key: bytes, record: Any) -> int | None:
        """Return the type of a record's numbers; None for what is not this key's record."""
        # A damaged database gives text or numbers where bytes were put.
        if not isinstance(record, bytes) or len(record) < _HEADER_BYTES:
            return None
        magic, version, code, zero, dimensions = _FRONT.unpack_from(record)
        number = _NUMBERS.get(code)
        if (magic, version, zero) != (_MAGIC, VERSION, 0) or number is None:
            return None
        body = memoryview(record)[_HEADER_BYTES:]
        if len(body) != dimensions * number.itemsize or not dimensions:
            return None
        (told,) = _CHECKSUM.unpack_from(record, _FRONT.size)
        if told != _checksum(key, record[: _FRONT.size], body):
            return None
        if self._dimensions is None:
            self._dimensions = dimensions
        return code if dimensions == self._dimensions else None

    def _keep(self, place: int, record: bytes, code: int) -> None:
        if not self._rows.size:
            # Rows that nothing is written to are never given memory by the system.
            self._rows = np.empty((len(self._keys), self._dimensions or 0), np.float32)
        if code == _LOSSY:
            self._lossy.append(len(self._places))
        row = np.frombuffer(record, _NUMBERS[code], offset=_HEADER_BYTES)
        self._rows[len(self._places)] = row
        self._places.append(place)


def _norms(rows: Floats) -> npt.NDArray[np.float32]:
    norms: npt.NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return norms


def _are_units(rows: Floats) -> npt.NDArray[np.bool_]:
    # Infinity and NaN compare false, so they need no look of their own.
    with np.errstate(all="ignore"):
        return is_unit(_norms(rows))


def _normalise(rows: Floats, lossy: list[int]) -> None:
    """Make the rows that were rounded unit vectors again; the others stay as they are."""
    if len(lossy) == len(rows):
        rows /= _norms(rows)[:, None]
    elif lossy:
        rows[lossy] /= _norms(rows[lossy])[:, None]
