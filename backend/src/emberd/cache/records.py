"""Records: one vector as bytes, with a header that proves that it is intact and of its key.

::

    magic "EMBV" | version | type of number | 0 0 | dimensions | CRC-32 | numbers, little-endian

The checksum covers the key as well: a store that returns the record of another key (a corrupt
index, replies in the wrong order) returns one that fails its check.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from emberd.catalog import is_unit

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class CachedVectors:
    """The result of a lookup.

    Attributes:
        mask: Which keys were found, ``(len(keys),)``.
        vectors: Their unit vectors in the order of the keys, ``(mask.sum(), native)``; ``(0, 0)``
            if no key was found.
    """

    mask: npt.NDArray[np.bool_]
    vectors: Floats


VERSION: Final = 1

_FRONT: Final = struct.Struct("<4sBBHI")
_CHECKSUM: Final = struct.Struct("<I")
_HEADER_BYTES: Final = _FRONT.size + _CHECKSUM.size
_MAGIC: Final = b"EMBV"
_CODES: Final = {"float32": 1, "float16": 2}
_NUMBERS: Final[dict[int, np.dtype[Any]]] = {1: np.dtype("<f4"), 2: np.dtype("<f2")}
_LOSSY: Final = _CODES["float16"]


def encode(keys: Sequence[bytes], vectors: Floats, dtype: str) -> dict[bytes, bytes]:
    """Return a record for each key whose vector is a unit vector.

    Args:
        keys: One for each vector.
        vectors: ``(len(keys), native)``.
        dtype: ``float32``, which is exact, or ``float16``, which takes half the space.

    Raises:
        ValueError: ``vectors`` has another shape.
    """
    if vectors.ndim != 2 or len(keys) != len(vectors):  # noqa: PLR2004 - texts by dimensions
        raise ValueError(
            f"expected vectors of shape ({len(keys)}, native) for {len(keys)} keys, "
            f"got {vectors.shape}"
        )
    code = _CODES[dtype]
    front = _FRONT.pack(_MAGIC, VERSION, code, 0, vectors.shape[1])
    rows = np.ascontiguousarray(vectors, _NUMBERS[code])
    records = {}
    for index in np.flatnonzero(_are_units(vectors)).tolist():
        numbers = rows[index].tobytes()
        checksum = _CHECKSUM.pack(_checksum(keys[index], front, numbers))
        records[keys[index]] = front + checksum + numbers
    return records


def _checksum(key: bytes, front: bytes, numbers: bytes | memoryview) -> int:
    return zlib.crc32(numbers, zlib.crc32(front, zlib.crc32(key)))


class Reader:
    """Checks and decodes records one after another.

    Args:
        keys: The keys of the lookup.
        dtype: The type that this cache writes. With float16, float32 records are read as well;
            with float32, a float16 record is neither read nor removed and counts as a miss.
        dimensions: Length of a native vector; if None, the first valid record decides.

    Attributes:
        corrupt: Keys whose record failed a check.
    """

    def __init__(self, keys: Sequence[bytes], dtype: str, dimensions: int | None = None) -> None:
        self.corrupt: list[bytes] = []
        self._keys = keys
        self._dimensions = dimensions
        self._codes = _NUMBERS.keys() if dtype == "float16" else {_CODES["float32"]}
        self._rows: Floats = np.empty((0, 0), np.float32)
        self._indexes: list[int] = []
        self._lossy: list[int] = []

    def take(self, first: int, records: Iterable[Any]) -> None:
        """Read the records of the keys from index ``first`` on; None stands for a missing one."""
        for index, record in enumerate(records, first):
            if record is None:
                continue
            code = self._code(self._keys[index], record)
            if code is None:
                self.corrupt.append(self._keys[index])
            elif code in self._codes:
                self._keep(index, record, code)

    def found(self) -> CachedVectors:
        """Return the vectors so far; keys of vectors that are not unit are added to ``corrupt``."""
        rows = self._rows[: len(self._indexes)]
        indexes = np.array(self._indexes, np.intp)
        are_units = _are_units(rows)
        if not are_units.all():
            self.corrupt += [self._keys[index] for index in indexes[~are_units].tolist()]
            self._lossy = [int(are_units[:row].sum()) for row in self._lossy if are_units[row]]
            rows, indexes = rows[are_units], indexes[are_units]
        # Rounded vectors are normalised again; exact ones stay as they are, to the bit.
        if len(self._lossy) == len(rows):
            rows /= _norms(rows)[:, None]
        elif self._lossy:
            rows[self._lossy] /= _norms(rows[self._lossy])[:, None]
        mask = np.zeros(len(self._keys), np.bool_)
        mask[indexes] = True
        return CachedVectors(mask, rows if len(rows) else np.empty((0, 0), np.float32))

    def _code(self, key: bytes, record: Any) -> int | None:
        """Return the type of a record's numbers; None if it is not a valid record of ``key``."""
        # A corrupt database may return text or numbers instead of bytes.
        if not isinstance(record, bytes) or len(record) < _HEADER_BYTES:
            return None
        magic, version, code, zero, dimensions = _FRONT.unpack_from(record)
        number = _NUMBERS.get(code)
        if (magic, version, zero) != (_MAGIC, VERSION, 0) or number is None:
            return None
        body = memoryview(record)[_HEADER_BYTES:]
        if len(body) != dimensions * number.itemsize or not dimensions:
            return None
        (stated,) = _CHECKSUM.unpack_from(record, _FRONT.size)
        if stated != _checksum(key, record[: _FRONT.size], body):
            return None
        if self._dimensions is None:
            self._dimensions = dimensions
        return code if dimensions == self._dimensions else None

    def _keep(self, index: int, record: bytes, code: int) -> None:
        if not self._rows.size:
            # The system allocates no memory for rows that are never written.
            self._rows = np.empty((len(self._keys), self._dimensions or 0), np.float32)
        if code == _LOSSY:
            self._lossy.append(len(self._indexes))
        row = np.frombuffer(record, _NUMBERS[code], offset=_HEADER_BYTES)
        self._rows[len(self._indexes)] = row
        self._indexes.append(index)


def _norms(rows: Floats) -> npt.NDArray[np.float32]:
    norms: npt.NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return norms


def _are_units(rows: Floats) -> npt.NDArray[np.bool_]:
    # Comparisons with infinity and NaN are false, so these need no check of their own.
    with np.errstate(all="ignore"):
        return is_unit(_norms(rows))
