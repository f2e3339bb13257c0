from __future__ import annotations

import numpy as np
import pytest

from cache.made import keys, units
from emberd.cache.records import Reader, encode

KEYS = keys(range(4))
VECTORS = units(range(4), 8)


def read(records: dict[bytes, bytes], dtype: str = "float32", dimensions: int | None = 8) -> Reader:
    reader = Reader(KEYS, dtype, dimensions)
    reader.take(0, [records.get(key) for key in KEYS])
    return reader


def test_float32_comes_back_to_the_bit_in_the_order_of_the_keys() -> None:
    found = read(encode(KEYS, VECTORS, "float32")).found()
    assert found.mask.all()
    assert found.vectors.dtype == np.float32
    assert np.array_equal(found.vectors, VECTORS)


def test_float16_takes_half_the_space_and_comes_back_of_length_one() -> None:
    vectors = units(range(4), 2560)
    whole, half = encode(KEYS, vectors, "float32"), encode(KEYS, vectors, "float16")
    assert len(whole[KEYS[0]]) - 16 == 2 * (len(half[KEYS[0]]) - 16)
    found = read(half, "float16", 2560).found()
    assert np.abs(np.linalg.norm(found.vectors, axis=1) - 1).max() < 1e-6
    assert np.abs(found.vectors - vectors).max() < 1e-4


def test_what_is_missing_is_left_out() -> None:
    records = encode(KEYS, VECTORS, "float32")
    del records[KEYS[1]]
    found = read(records).found()
    assert found.mask.tolist() == [True, False, True, True]
    assert np.array_equal(found.vectors, VECTORS[[0, 2, 3]])


def test_no_hits_give_an_empty_array() -> None:
    found = read({}).found()
    assert found.vectors.shape == (0, 0)
    assert not found.mask.any()


def test_every_bit_of_a_record_counts() -> None:
    (record,) = encode(KEYS[:1], VECTORS[:1], "float32").values()
    for place in range(len(record)):
        for bit in range(8):
            broken = bytearray(record)
            broken[place] ^= 1 << bit
            reader = read({KEYS[0]: bytes(broken)}, dimensions=None)
            assert not reader.found().mask.any(), (place, bit)
            assert reader.corrupt == KEYS[:1]


def test_a_record_of_every_other_length_is_bad() -> None:
    (record,) = encode(KEYS[:1], VECTORS[:1], "float32").values()
    for length in range(len(record)):
        assert read({KEYS[0]: record[:length]}).corrupt == KEYS[:1]
    assert read({KEYS[0]: record + b"\0"}).corrupt == KEYS[:1]


def test_the_record_of_another_key_is_bad() -> None:
    records = encode(KEYS, VECTORS, "float32")
    reader = read({KEYS[0]: records[KEYS[1]]})
    assert not reader.found().mask.any()
    assert reader.corrupt == [KEYS[0]]


def test_other_values_are_corrupt() -> None:
    for other in (b"", "text", 5, 0.5, b"EMBV", b"\0" * 100):
        assert read({KEYS[2]: other}).corrupt == [KEYS[2]]  # type: ignore[dict-item]


def test_a_record_of_another_length_than_the_models_is_bad() -> None:
    mixed = encode(KEYS[:2], VECTORS[:2], "float32") | encode(KEYS[2:], units([2, 3], 4), "float32")
    reader = read(mixed)
    assert reader.found().mask.tolist() == [True, True, False, False]
    assert reader.corrupt == KEYS[2:]


def test_where_no_length_is_known_the_first_record_decides() -> None:
    mixed = encode(KEYS[:1], VECTORS[:1], "float32") | encode(KEYS[1:2], units([1], 4), "float32")
    reader = read(mixed, dimensions=None)
    assert reader.found().vectors.shape == (1, 8)
    assert reader.corrupt == [KEYS[1]]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1.5, 1e30])
def test_vectors_that_are_not_unit_are_neither_stored_nor_returned(wrong: float) -> None:
    vectors = VECTORS.copy()
    vectors[1, 3] = wrong
    assert list(encode(KEYS, vectors, "float32")) == [KEYS[0], KEYS[2], KEYS[3]]
    # As another program, or a version with a fault, might have written it.
    forged = _forged(vectors)
    reader = read(forged)
    assert reader.found().mask.tolist() == [True, False, True, True]
    assert reader.corrupt == [KEYS[1]]
    assert np.array_equal(reader.found().vectors, VECTORS[[0, 2, 3]])


def test_a_cache_of_float32_leaves_rounded_records_alone() -> None:
    reader = read(encode(KEYS, VECTORS, "float16"), "float32")
    assert not reader.found().mask.any()
    assert reader.corrupt == []


def test_a_cache_of_float16_reads_whole_records_as_they_are() -> None:
    mixed = encode(KEYS[:2], VECTORS[:2], "float16") | encode(KEYS[2:], VECTORS[2:], "float32")
    found = read(mixed, "float16").found()
    assert found.mask.all()
    assert np.array_equal(found.vectors[2:], VECTORS[2:])
    assert np.abs(np.linalg.norm(found.vectors, axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("shape", [(3, 8), (5, 8), (32,), (4, 8, 1)])
def test_vectors_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shape .4, native. for 4 keys"):
        encode(KEYS, np.zeros(shape, np.float32), "float32")


def _forged(vectors: np.ndarray) -> dict[bytes, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emberd.cache.records._are_units", lambda rows: np.ones(len(rows), np.bool_))
        return encode(KEYS, vectors, "float32")
