"""Records: one vector as bytes, with a header that proves that it is intact and of its key.

::

    magic "EMBV" | version | type of number | 0 0 | dimensions | CRC-32 | numbers, little-endian

The checksum covers the key as well: a store that returns the record of another key (a corrupt
index, replies in the wrong order) returns one that fails its check.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from emberd.catalog import is_unit

Floats = npt.NDArray[np.float32]


class CachedVectors(NamedTuple):
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
_FLOAT32: Final = 1
_FLOAT16: Final = 2
_CODES: Final = {"float32": _FLOAT32, "float16": _FLOAT16}
_NUMBERS: Final[dict[int, np.dtype[Any]]] = {_FLOAT32: np.dtype("<f4"), _FLOAT16: np.dtype("<f2")}


def encode(keys: Sequence[bytes], vectors: Floats, dtype: str) -> dict[bytes, bytes]:
    """Return a record for each key whose vector is a unit vector.

    Args:
        keys: One for each vector.
        vectors: ``(len(keys), native)``.
        dtype: ``float32``, which is exact, or ``float16``, which takes half the space.
    """
    code = _CODES[dtype]
    front = _FRONT.pack(_MAGIC, VERSION, code, 0, vectors.shape[1])
    rows = np.ascontiguousarray(vectors, _NUMBERS[code])
    records = {}
    for index in np.flatnonzero(is_unit(_norms(vectors))).tolist():
        numbers = rows[index].tobytes()
        checksum = _CHECKSUM.pack(_checksum(keys[index], front, numbers))
        records[keys[index]] = front + checksum + numbers
    return records


def decode(
    keys: Sequence[bytes], records: Mapping[bytes, Any], dtype: str, dimensions: int | None
) -> tuple[CachedVectors, list[bytes]]:
    """Check and decode the records of a lookup.

    Args:
        keys: The keys of the lookup; may contain a key twice.
        records: What the store returned for them; a missing record is absent or None.
        dtype: The type that this cache writes. With float16, float32 records are read as well;
            with float32, a float16 record is neither read nor removed and counts as a miss.
        dimensions: Length of a native vector; if None, the first valid record decides.

    Returns:
        The vectors, and the keys whose record failed a check.
    """
    corrupt: list[bytes] = []
    indexes, rows, rounded = [], [], []
    for index, key in enumerate(keys):
        record = records.get(key)
        if record is None:
            continue
        code = _checked(key, record)
        row = np.frombuffer(record, _NUMBERS[code], offset=_HEADER_BYTES) if code else None
        if row is None or dimensions not in (None, len(row)):
            corrupt.append(key)
            continue
        dimensions = len(row)
        if code == _FLOAT16 and dtype != "float16":
            continue
        indexes.append(index)
        rows.append(row)
        rounded.append(code == _FLOAT16)
    mask = np.zeros(len(keys), np.bool_)
    if not rows:
        return CachedVectors(mask, np.empty((0, 0), np.float32)), corrupt
    vectors = np.stack(rows).astype(np.float32, copy=False)
    norms = _norms(vectors)
    are_units = is_unit(norms)
    # Rounded vectors are normalised again; exact ones stay as they are, to the bit.
    lossy = np.array(rounded) & are_units
    if lossy.any():
        vectors[lossy] /= norms[lossy, None]
    mask[indexes] = are_units
    if not are_units.all():
        corrupt += [keys[indexes[place]] for place in np.flatnonzero(~are_units)]
        vectors = vectors[are_units]
    return CachedVectors(mask, vectors), corrupt


def _checked(key: bytes, record: Any) -> int | None:
    """Return the type of a record's numbers; None if it is not a valid record of ``key``."""
    # A corrupt database may return text or numbers instead of bytes.
    if not isinstance(record, bytes) or len(record) < _HEADER_BYTES:
        return None
    magic, version, code, zero, dimensions = _FRONT.unpack_from(record)
    if (magic, version, zero) != (_MAGIC, VERSION, 0) or code not in _NUMBERS or not dimensions:
        return None
    numbers = memoryview(record)[_HEADER_BYTES:]
    if len(numbers) != dimensions * _NUMBERS[code].itemsize:
        return None
    (stated,) = _CHECKSUM.unpack_from(record, _FRONT.size)
    if stated != _checksum(key, record[: _FRONT.size], numbers):
        return None
    return int(code)


def _checksum(key: bytes, front: bytes, numbers: bytes | memoryview) -> int:
    return zlib.crc32(numbers, zlib.crc32(front, zlib.crc32(key)))


def _norms(rows: Floats) -> npt.NDArray[np.float32]:
    # Of an infinite or undefined number the norm is neither one nor near it.
    with np.errstate(all="ignore"):
        norms: npt.NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return norms
