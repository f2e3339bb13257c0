"""A deterministic server: a text gets the same vector, to the bit, in any batch."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from emberd import probe
from served import serving

TEXTS = [
    f"{kind} number {n}, about vectors and indexes" * (1 + n % 5)
    for n in range(12)
    for kind in ("passage", "query: a question")
]


def test_a_text_gets_the_same_bits_alone_and_among_any_neighbours(tmp_path: Path) -> None:
    with serving(tmp_path, "--deterministic") as server:
        assert probe.is_deterministic(server.url, server.key)
        alone = np.array([server.vectors([text])[0] for text in TEXTS])
        for seed, size in enumerate((2, 5, len(TEXTS))):
            order = random.Random(seed).sample(range(len(TEXTS)), len(TEXTS))
            for chosen in (order[i : i + size] for i in range(0, len(TEXTS), size)):
                batch = np.array(server.vectors([TEXTS[i] for i in chosen]))
                np.testing.assert_array_equal(batch, alone[chosen])
        # Requests of several clients would otherwise share a batch.
        with ThreadPoolExecutor(8) as clients:
            at_once = list(clients.map(lambda text: server.vectors([text])[0], TEXTS))
        np.testing.assert_array_equal(at_once, alone)


def test_other_servers_do_not_claim_it(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert not probe.is_deterministic(server.url, server.key)
