"""Recall on the multilingual set: how often the answer is among the nearest passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

RANKS: Final = (1, 5)
_DIVISORS: Final = (1, 2, 4)  # native length, half of it, a quarter of it


@dataclass(frozen=True, slots=True)
class Row:
    """Recall at one number of dimensions.

    Attributes:
        dimensions: The length of the vectors.
        as_queries: Recall at each of ``RANKS`` with the questions embedded as queries.
        as_documents: The same with the questions embedded as documents.
    """

    dimensions: int
    as_queries: tuple[float, ...]
    as_documents: tuple[float, ...]


def measure(
    passages: Floats,
    as_queries: Floats,
    as_documents: Floats,
    answers: Sequence[int],
    min_dimensions: int,
) -> list[Row]:
    """Return a row for each number of dimensions.

    Args:
        passages: Native vectors of the passages, ``(n, d)``.
        as_queries: Native vectors of the questions as queries, ``(m, d)``.
        as_documents: Native vectors of the questions as documents, ``(m, d)``.
        answers: For each question, the row in ``passages`` of its answer.
        min_dimensions: Smallest length to measure.
    """
    native = passages.shape[1]
    lengths = [native // divisor for divisor in _DIVISORS if native // divisor >= min_dimensions]
    return [
        Row(
            length,
            _recall(_cut(as_queries, length), _cut(passages, length), answers),
            _recall(_cut(as_documents, length), _cut(passages, length), answers),
        )
        for length in lengths
    ]


def _cut(vectors: Floats, dimensions: int) -> Floats:
    """Do what ``Embedder(dimensions=...)`` does, without embedding the texts again."""
    heads = vectors[:, :dimensions]
    cut: Floats = heads / np.linalg.norm(heads, axis=1, keepdims=True)
    return cut


def _recall(questions: Floats, passages: Floats, answers: Sequence[int]) -> tuple[float, ...]:
    scores = questions @ passages.T
    of_answer = scores[np.arange(len(answers)), answers]
    nearer = (scores > of_answer[:, None]).sum(axis=1)
    return tuple(float((nearer < rank).mean()) for rank in RANKS)
