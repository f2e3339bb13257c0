"""The cache of one embedder, looked up by text, as its client uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from emberd import cache

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from emberd.client.vectors import Floats


class VectorCache:
    """Stores native vectors under keys made of the text and of all else that determines them.

    Implements ``emberd.client.vectors.KnownVectors``.

    Args:
        url: Which cache.
        made_with: What determines the vector of a text, besides the text.
        dimensions: Length of native vectors; None if not known.
    """

    def __init__(self, url: str, made_with: str, dimensions: int | None) -> None:
        self.cache = cache.open_cache(url)
        self._made_with = made_with
        self._dimensions = dimensions

    def recall(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.bool_], Floats]:
        """Return which of ``texts``, in their templates, are cached, and the vectors of those."""
        found = self.cache.get_many(cache.keys(self._made_with, texts), self._dimensions)
        return found.mask, found.vectors

    def keep(self, texts: Sequence[str], vectors: Floats) -> None:
        """Store native vectors, ``(len(texts), native)``."""
        self.cache.put_many(cache.keys(self._made_with, texts), vectors)
