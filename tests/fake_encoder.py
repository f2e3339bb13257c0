"""Encoders with switches, for tests of the server around them."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emberd.serving.encoder import PreparedText

WAIT_S = 10.0


class FakeEncoder:
    """A token is a word; the vector of a text depends only on the text.

    Attributes:
        open: ``encode`` waits for it; set unless a test clears it.
        loaded: ``load`` waits for it; set unless a test clears it.
        entered: Set whenever ``encode`` is entered.
        batches: The texts of each ``encode`` so far.
        bad: Texts whose vectors are NaN.
        fatal: Texts that make ``encode`` raise.
    """

    name = "test/fake"
    dimensions = 8
    context_tokens = 100
    batch_texts = 4
    batch_tokens = 40
    pooling = "mean"
    dtype = "float32"
    device = "cpu"

    def __init__(self) -> None:
        self.open, self.loaded, self.entered = (threading.Event() for _ in range(3))
        self.open.set()
        self.loaded.set()
        self.batches: list[list[str]] = []
        self.bad: set[str] = set()
        self.fatal: set[str] = set()
        self.load_error: Exception | None = None

    def load(self) -> None:
        """Wait until the test lets it end."""
        assert self.loaded.wait(WAIT_S)
        if self.load_error is not None:
            raise self.load_error

    def prepare(self, texts: Sequence[str]) -> list[PreparedText]:
        """Count words."""
        return [PreparedText(len(text.split()), text) for text in texts]

    def encode(self, batch: Sequence[PreparedText]) -> NDArray[np.float32]:
        """Return unit vectors."""
        texts = [item.payload for item in batch]
        self.batches.append(texts)
        self.entered.set()
        assert self.open.wait(WAIT_S)
        if self.fatal.intersection(texts):
            raise MemoryError(f"could not hold {texts}")
        return np.stack([self.vector(text) for text in texts])

    def vector(self, text: str) -> NDArray[np.float32]:
        """Return the vector of ``text``."""
        if text in self.bad:
            return np.full(self.dimensions, np.nan, dtype=np.float32)
        random = np.random.default_rng(zlib.crc32(text.encode()))
        row = random.standard_normal(self.dimensions).astype(np.float32)
        unit: NDArray[np.float32] = row / np.linalg.norm(row)
        return unit


class FakeTokenEncoder(FakeEncoder):
    """An encoder with token ids: the code points of a text, and 0 at the end."""

    def tokenize(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the code points."""
        return [ord(letter) for letter in text] + [0] * special_tokens

    def prepare_ids(self, ids: Sequence[int]) -> PreparedText:
        """Take the code points back."""
        if max(ids) > 0x10FFFF:
            raise ValueError(f"Token ID {max(ids)} is not in the vocabulary")
        return PreparedText(len(ids), "".join(map(chr, ids)))
