"""The openai SDK, pointed at the server, works unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import openai
import pytest

from served import Served, as_array

TEXTS = ["passage: The cat sleeps.", "query: who sleeps?", "passage: 猫在睡觉。"]


@pytest.fixture
def sdk(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as client:
        yield client


def test_a_string_gives_one_vector(sdk: openai.OpenAI) -> None:
    reply = sdk.embeddings.create(model="emberd/demo", input=TEXTS[0])
    assert [len(item.embedding) for item in reply.data] == [384]
    assert reply.model == "emberd/demo"


def test_a_list_gives_its_vectors_in_order(sdk: openai.OpenAI) -> None:
    many = sdk.embeddings.create(model="emberd/demo", input=TEXTS)
    assert [item.index for item in many.data] == [0, 1, 2]
    for text, item in zip(TEXTS, many.data, strict=True):
        alone = sdk.embeddings.create(model="emberd/demo", input=text)
        assert alone.data[0].embedding == item.embedding


def test_base64_which_the_sdk_asks_for_and_floats_give_the_same_numbers(
    sdk: openai.OpenAI,
) -> None:
    packed = sdk.embeddings.create(model="emberd/demo", input=TEXTS)
    floats = sdk.embeddings.create(model="emberd/demo", input=TEXTS, encoding_format="float")
    for left, right in zip(packed.data, floats.data, strict=True):
        np.testing.assert_array_equal(left.embedding, as_array(right.embedding))


@pytest.mark.parametrize("dimensions", [1, 64, 384])
def test_dimensions_gives_the_head_of_the_vector_with_norm_one(
    sdk: openai.OpenAI, dimensions: int
) -> None:
    whole = sdk.embeddings.create(model="emberd/demo", input=TEXTS[0]).data[0].embedding
    cut = sdk.embeddings.create(model="emberd/demo", input=TEXTS[0], dimensions=dimensions)
    head = as_array(whole[:dimensions])
    np.testing.assert_allclose(cut.data[0].embedding, head / np.linalg.norm(head), atol=1e-6)


def test_usage_counts_special_tokens(sdk: openai.OpenAI) -> None:
    one = sdk.embeddings.create(model="emberd/demo", input="passage: a").usage
    two = sdk.embeddings.create(model="emberd/demo", input=["passage: a"] * 2).usage
    assert one.prompt_tokens == one.total_tokens == 5  # <s> ▁passage : ▁a </s>
    assert two.prompt_tokens == 10


def test_a_refusal_is_the_sdks_bad_request(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="at index 1 cannot be empty"):
        sdk.embeddings.create(model="emberd/demo", input=["a", " "])


def test_a_wrong_key_is_the_sdks_authentication_error(server: Served) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.embeddings.create(model="emberd/demo", input="a")


def test_the_model_is_listed_and_found_by_name(sdk: openai.OpenAI) -> None:
    assert [model.id for model in sdk.models.list()] == ["emberd/demo"]
    assert sdk.models.retrieve("emberd/demo").id == "emberd/demo"
    with pytest.raises(openai.NotFoundError, match="'other/model' does not exist"):
        sdk.models.retrieve("other/model")


async def test_concurrent_clients_get_their_own_answers(server: Served) -> None:
    texts = [f"passage: number {n}" for n in range(24)]
    alone = server.vectors(texts)
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as left,
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as right,
    ):
        replies = await asyncio.gather(
            *(
                (left, right)[n % 2].embeddings.create(
                    model="emberd/demo", input=text, encoding_format="float"
                )
                for n, text in enumerate(texts)
            )
        )
    assert [reply.data[0].embedding for reply in replies] == alone
