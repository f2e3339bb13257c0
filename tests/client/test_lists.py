"""Vectors as lists."""

from __future__ import annotations

import copy
import gc
import pickle
import tracemalloc

import numpy as np

from emberd import to_lists

VECTORS = np.random.default_rng(3).standard_normal((600, 64)).astype(np.float32)


def test_lists_hold_the_numbers_of_the_vectors() -> None:
    assert to_lists(VECTORS) == VECTORS.tolist()
    assert to_lists(VECTORS[:0]) == []


def test_the_garbage_collector_does_not_look_into_them() -> None:
    assert not any(gc.is_tracked(row) for row in to_lists(VECTORS))
    assert gc.isenabled()


def test_they_are_lists_like_any_other() -> None:
    lists = to_lists(VECTORS)
    row = lists[0]
    row.append(1.0)
    row.extend([2.0] * 1000)
    del row[:500]
    assert pickle.loads(pickle.dumps(lists)) == copy.deepcopy(lists) == lists
    del lists, row
    gc.collect()


def test_they_are_freed_when_nobody_refers_to_them() -> None:
    numbers = np.ones((60, 1000), np.float32)
    tracemalloc.start()
    try:
        for _ in range(5):
            to_lists(numbers)
            left, most = tracemalloc.get_traced_memory()
        assert left < most / 20
    finally:
        tracemalloc.stop()
