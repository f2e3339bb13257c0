"""The canned server that benchmarks use is right: verified, and each text gets its own vector."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import openai
import pytest

from canned_server import MODEL, canned_server, expected
from emberd import Embedder

TEXTS = [f"text {number} " + "word " * (number % 7) for number in range(300)]
BLANK = " "


@pytest.mark.parametrize("floats", [False, True], ids=["base64", "floats"])
def test_each_text_gets_its_own_vector(floats: bool) -> None:
    with canned_server(floats=floats) as url, closing(Embedder(MODEL, base_url=url)) as embedder:
        vectors = embedder.embed_documents([*TEXTS, BLANK])
    np.testing.assert_allclose(vectors[:-1], expected(TEXTS), atol=1e-6)


def test_another_client_is_answered_too() -> None:
    with canned_server() as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        entries = client.embeddings.create(model=MODEL, input=TEXTS).data
    np.testing.assert_allclose([entry.embedding for entry in entries], expected(TEXTS), atol=1e-6)
