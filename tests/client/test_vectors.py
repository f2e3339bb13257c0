from __future__ import annotations

import math

import numpy as np
import pytest

from emberd.client import vectors
from emberd.client.event_loops import finish
from emberd.client.vectors import Floats
from emberd.errors import BadReplyError


def decode(raws: list[bytes], native: int, wanted: int | None, *, cut_by_server: bool) -> Floats:
    return finish(vectors.decode(raws, native, wanted, cut_by_server=cut_by_server))


def _packed(*numbers: float) -> bytes:
    return np.array(numbers, dtype="<f4").tobytes()


def test_norms_are_one_to_the_last_bit_of_float32() -> None:
    """SGLang normalises in bfloat16; its norms are off by up to 6e-4."""
    rows = np.random.default_rng(1).standard_normal((50, 64))
    rows *= 1.0006 / np.linalg.norm(rows, axis=1, keepdims=True)
    found = decode([_packed(*row) for row in rows], 64, None, cut_by_server=False)
    assert found.dtype == np.float32
    assert np.abs(np.linalg.norm(found.astype(np.float64), axis=1) - 1).max() < 1e-7


def test_a_cut_vector_is_the_head_normalised_again() -> None:
    found = decode([_packed(0.6, 0.0, 0.8, 0.0)], 4, 3, cut_by_server=False)
    assert found == pytest.approx(np.array([[0.6, 0.0, 0.8]]))
    assert decode([_packed(0.6, 0.0, 0.8, 0.0)], 4, 1, cut_by_server=False).tolist() == [[1.0]]


def test_cutting_at_once_and_cutting_later_give_the_same_bits() -> None:
    row = np.random.default_rng(2).standard_normal(256)
    raw = _packed(*(row / np.linalg.norm(row)))
    native = decode([raw], 256, None, cut_by_server=False)
    assert (finish(vectors.cut(native, 100)) == decode([raw], 256, 100, cut_by_server=False)).all()


@pytest.mark.parametrize("length", [2, 4])
def test_a_server_may_cut_or_ignore_the_wish(length: int) -> None:
    raw = _packed(0.6, 0.8) if length == 2 else _packed(0.48, 0.64, 0.6, 0.0)
    found = decode([raw], 4, 2, cut_by_server=True)
    assert found == pytest.approx(np.array([[0.6, 0.8]]))


def test_a_vector_that_the_server_cut_without_normalising_is_normalised() -> None:
    assert decode([_packed(0.3, 0.4)], 4, 2, cut_by_server=True) == pytest.approx(
        np.array([[0.6, 0.8]])
    )


@pytest.mark.parametrize(
    ("raws", "said"),
    [
        ([_packed(1, 0), _packed(1, 0, 0)], "2, 3 dimensions instead of 2"),
        ([_packed(1, 0, 0)], "3 dimensions instead of 2"),
        ([_packed(1)], "1 dimensions instead of 2"),
        ([b""], "0 dimensions"),
        ([_packed(1, 0), _packed(math.nan, 1)], "Vector 1 .* NaN"),
        ([_packed(math.inf, 1)], "Vector 0 .* infinity"),
        ([_packed(1, 0), _packed(0.5, 0)], "Vector 1 .* norm 0.5"),
        ([_packed(1.02, 0)], "norm 1.02"),
        ([_packed(0, 0)], "norm 0 "),
    ],
)
def test_wrong_vectors_never_leave(raws: list[bytes], said: str) -> None:
    with pytest.raises(BadReplyError, match=said):
        decode(raws, 2, None, cut_by_server=False)


def test_a_shorter_vector_is_wrong_where_none_was_asked_for() -> None:
    with pytest.raises(BadReplyError, match="2 dimensions instead of 4"):
        decode([_packed(0.6, 0.8)], 4, 2, cut_by_server=False)


def test_a_zero_vector_is_wrong_even_where_the_server_cut_it() -> None:
    with pytest.raises(BadReplyError, match="norm 0"):
        decode([_packed(0, 0)], 4, 2, cut_by_server=True)


def test_a_vector_whose_head_is_all_zeros_cannot_be_cut() -> None:
    with pytest.raises(BadReplyError, match="Vector 1 .* zeros in its first 2 dimensions"):
        decode([_packed(1, 0, 0), _packed(0, 0, 1)], 3, 2, cut_by_server=False)
