"""``/v1/score`` of emberd's own server, with an encoder that computes probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emberd.serving.encoder import PreparedText
from fake_encoder import FakeEncoder, FakeTokenEncoder
from serving.test_other_encoder import asking

LABELS = [3, 4]


class FakeScorer(FakeTokenEncoder):
    """A prompt's row depends on how many tokens it has and on the labels."""

    dimensions = 2

    def prepare(self, texts: Sequence[str]) -> list[PreparedText]:
        """Return tokens and the labels of a health probe."""
        return [PreparedText(len(text), (len(text), (0, 1))) for text in texts]

    def prepare_ids(self, ids: Sequence[int]) -> PreparedText:
        """Return ids as ``prepare`` does."""
        return PreparedText(len(ids), (len(ids), (0, 1)))

    def with_labels(self, item: PreparedText, labels: Sequence[int]) -> PreparedText:
        """Take the labels."""
        if max(labels) > 100:
            raise ValueError("out of vocabulary")
        return replace(item, payload=(item.payload[0], tuple(labels)))

    def encode(self, batch: Sequence[PreparedText]) -> NDArray[np.float32]:
        """Return probabilities."""
        yes = [(item.payload[0] + item.payload[1][0]) / 100 for item in batch]
        return np.array([[each, 1 - each] for each in yes], np.float32)


def body(items: Any, **more: Any) -> dict[str, Any]:
    asked = {"items": items, "label_token_ids": LABELS, "apply_softmax": True, "query": ""}
    return {**asked, **more}


async def test_prompts_and_token_ids_get_the_probabilities_of_the_labels() -> None:
    async with asking(FakeScorer()) as client:
        texts = await client.post("/v1/score", json=body(["hello", "hi"]))
        ids = await client.post("/v1/score", json=body([[1, 2, 3]], query=[]))
    told = texts.json()
    np.testing.assert_allclose(told["scores"], [[0.08, 0.92], [0.05, 0.95]], atol=1e-6)
    assert told["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    np.testing.assert_allclose(ids.json()["scores"], [[0.06, 0.94]], atol=1e-6)


@pytest.mark.parametrize(
    "asked",
    [
        body([]),
        body("hello"),
        body(["hello"], label_token_ids=[3]),
        body(["hello"], label_token_ids=[3, 3]),
        body(["hello"], label_token_ids=[3, -1]),
        body(["hello"], label_token_ids=[3, 101]),
        body(["hello"], label_token_ids=None),
        body(["hello"], apply_softmax=False),
        body(["hello"], query="first"),
        body(["x" * 100]),
        body(["hello"], model=5),
    ],
    ids=str,
)
async def test_what_is_not_served_is_a_400(asked: dict[str, Any]) -> None:
    async with asking(FakeScorer()) as client:
        reply = await client.post("/v1/score", json=asked)
    assert reply.status_code == 400


async def test_another_model_is_a_404() -> None:
    async with asking(FakeScorer()) as client:
        reply = await client.post("/v1/score", json=body(["hello"], model="another/model"))
    assert reply.status_code == 404


async def test_a_row_that_is_no_probability_is_a_500() -> None:
    class Wrong(FakeScorer):
        def encode(self, batch: Sequence[PreparedText]) -> NDArray[np.float32]:
            rows = super().encode(batch)
            return np.where(rows[:, :1] > 0.6, np.nan, rows).astype(np.float32)

    async with asking(Wrong()) as client:
        right = await client.post("/v1/score", json=body(["x" * 30]))
        wrong = await client.post("/v1/score", json=body(["x" * 60]))
    assert (right.status_code, wrong.status_code) == (200, 500)


async def test_each_kind_of_server_has_its_own_route() -> None:
    async with asking(FakeScorer()) as client:
        embeds = await client.post("/v1/embeddings", json={"input": ["hello"]})
        info = (await client.get("/model_info")).json()
    assert embeds.status_code == 400
    assert (info["is_generation"], info["embedding"]) == (True, {"task": "none"})
    async with asking(FakeEncoder()) as client:
        scores = await client.post("/v1/score", json=body(["hello"]))
        info = (await client.get("/model_info")).json()
    assert scores.status_code == 400
    assert (info["is_generation"], info["embedding"]["task"]) == (False, "embed")
