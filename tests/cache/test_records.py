from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cache.made import keys, units
from emberd.cache import open_cache
from emberd.cache.records import CachedVectors, decode, encode

KEYS = keys(range(4))
VECTORS = units(range(4), 8)


def read(
    records: dict[bytes, bytes], dtype: str = "float32", dimensions: int | None = 8
) -> tuple[CachedVectors, list[bytes]]:
    return decode(KEYS, records, dtype, dimensions)


def test_float32_comes_back_to_the_bit_in_the_order_of_the_keys() -> None:
    found, _ = read(encode(KEYS, VECTORS, "float32"))
    assert found.mask.all()
    assert found.vectors.dtype == np.float32
    assert np.array_equal(found.vectors, VECTORS)


def test_float16_takes_half_the_space_and_comes_back_of_length_one() -> None:
    vectors = units(range(4), 2560)
    whole, half = encode(KEYS, vectors, "float32"), encode(KEYS, vectors, "float16")
    assert len(whole[KEYS[0]]) - 16 == 2 * (len(half[KEYS[0]]) - 16)
    found, _ = read(half, "float16", 2560)
    assert np.abs(np.linalg.norm(found.vectors, axis=1) - 1).max() < 1e-6
    assert np.abs(found.vectors - vectors).max() < 1e-4


def test_what_is_missing_is_left_out() -> None:
    records = encode(KEYS, VECTORS, "float32")
    del records[KEYS[1]]
    found, _ = read(records)
    assert found.mask.tolist() == [True, False, True, True]
    assert np.array_equal(found.vectors, VECTORS[[0, 2, 3]])


def test_no_hits_give_an_empty_array() -> None:
    found, _ = read({})
    assert found.vectors.shape == (0, 0)
    assert not found.mask.any()


def test_every_bit_of_a_record_counts() -> None:
    (record,) = encode(KEYS[:1], VECTORS[:1], "float32").values()
    for place in range(len(record)):
        for bit in range(8):
            broken = bytearray(record)
            broken[place] ^= 1 << bit
            found, corrupt = read({KEYS[0]: bytes(broken)}, dimensions=None)
            assert not found.mask.any(), (place, bit)
            assert corrupt == KEYS[:1]


def test_a_record_of_every_other_length_is_bad() -> None:
    (record,) = encode(KEYS[:1], VECTORS[:1], "float32").values()
    for length in range(len(record)):
        assert read({KEYS[0]: record[:length]})[1] == KEYS[:1]
    assert read({KEYS[0]: record + b"\0"})[1] == KEYS[:1]


def test_the_record_of_another_key_is_bad() -> None:
    records = encode(KEYS, VECTORS, "float32")
    found, corrupt = read({KEYS[0]: records[KEYS[1]]})
    assert not found.mask.any()
    assert corrupt == [KEYS[0]]


def test_other_values_are_corrupt() -> None:
    for other in (b"", "text", 5, 0.5, b"EMBV", b"\0" * 100):
        assert read({KEYS[2]: other})[1] == [KEYS[2]]  # type: ignore[dict-item]


def test_a_record_of_another_length_than_the_models_is_bad() -> None:
    mixed = encode(KEYS[:2], VECTORS[:2], "float32") | encode(KEYS[2:], units([2, 3], 4), "float32")
    found, corrupt = read(mixed)
    assert found.mask.tolist() == [True, True, False, False]
    assert corrupt == KEYS[2:]


def test_where_no_length_is_known_the_first_record_decides() -> None:
    mixed = encode(KEYS[:1], VECTORS[:1], "float32") | encode(KEYS[1:2], units([1], 4), "float32")
    found, corrupt = read(mixed, dimensions=None)
    assert found.vectors.shape == (1, 8)
    assert corrupt == [KEYS[1]]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1.5, 1e30])
def test_vectors_that_are_not_unit_are_neither_stored_nor_returned(wrong: float) -> None:
    vectors = VECTORS.copy()
    vectors[1, 3] = wrong
    assert list(encode(KEYS, vectors, "float32")) == [KEYS[0], KEYS[2], KEYS[3]]
    # As another program, or a version with a fault, might have written it.
    forged = _forged(vectors)
    found, corrupt = read(forged)
    assert found.mask.tolist() == [True, False, True, True]
    assert corrupt == [KEYS[1]]
    assert np.array_equal(found.vectors, VECTORS[[0, 2, 3]])


def test_a_cache_of_float32_leaves_rounded_records_alone() -> None:
    found, corrupt = read(encode(KEYS, VECTORS, "float16"), "float32")
    assert not found.mask.any()
    assert corrupt == []


def test_a_cache_of_float16_reads_whole_records_as_they_are() -> None:
    mixed = encode(KEYS[:2], VECTORS[:2], "float16") | encode(KEYS[2:], VECTORS[2:], "float32")
    found, _ = read(mixed, "float16")
    assert found.mask.all()
    assert np.array_equal(found.vectors[2:], VECTORS[2:])
    assert np.abs(np.linalg.norm(found.vectors, axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("shape", [(3, 8), (5, 8), (32,), (4, 8, 1)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    cache = open_cache(f"sqlite://{tmp_path}/v.db")
    with pytest.raises(ValueError, match="shape .4, native. for 4 keys"):
        cache.put_many(KEYS, np.zeros(shape, np.float32))


def _forged(vectors: np.ndarray) -> dict[bytes, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emberd.cache.records.is_unit", lambda norms: np.ones(len(norms), np.bool_))
        return encode(KEYS, vectors, "float32")
