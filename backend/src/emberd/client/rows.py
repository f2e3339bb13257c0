"""The vectors of one call, filled in as they come, and the texts that get none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from emberd.client.vectors import Floats, cut
from emberd.errors import TextError


@dataclass(frozen=True, slots=True)
class Embedded:
    """What a call, or a window of a stream, came to.

    Attributes:
        matrix: One row a text, ``(n, dimensions)`` float32; NaN for one that was set aside.
        set_aside: The error of each text that was, by its place.
    """

    matrix: Floats
    set_aside: dict[int, TextError]

    def __iter__(self) -> Iterator[Floats | TextError]:
        for index, row in enumerate(self.matrix):
            yield self.set_aside.get(index, row)


class Rows:
    """One row a text.

    Args:
        size: How many texts there are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.finished = 0
        self.set_aside: dict[int, TextError] = {}
        self._matrix: Floats | None = None

    @property
    def width(self) -> int | None:
        """Length of the vectors; None while it is not known."""
        return None if self._matrix is None else self._matrix.shape[1]

    def begin(self, width: int) -> None:
        """Make room for vectors of ``width`` numbers."""
        self._matrix = np.empty((self.size, width), np.float32)

    def put(self, indices: Sequence[int], vectors: Floats) -> None:
        """Take the vectors of the texts at ``indices``."""
        if self._matrix is None:
            raise RuntimeError("begin was not called")
        self._matrix[list(indices)] = vectors
        self.finished += len(indices)

    def leave_out(self, index: int, error: TextError) -> None:
        """Set a text aside: it gets no vector."""
        self.set_aside[index] = error
        self.finished += 1

    def result(self, width: int) -> Embedded:
        """Return all, cut to ``width``.

        Args:
            width: Length of the vectors; that of a matrix without rows, too.
        """
        matrix = np.empty((self.size, width), np.float32) if self._matrix is None else self._matrix
        if self.set_aside:
            matrix[list(self.set_aside)] = 1  # so that they can be cut
        matrix = cut(matrix, min(width, matrix.shape[1]))
        if self.set_aside:
            matrix[list(self.set_aside)] = np.nan
        return Embedded(matrix, self.set_aside)
