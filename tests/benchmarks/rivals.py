"""What a user would use instead of emberd, with the server's URL; and bare clients."""

from __future__ import annotations

import asyncio
import base64
import http.client
import itertools
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
import numpy as np
import numpy.typing as npt
import openai
import orjson
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

PACKAGES: Final = (
    *("openai", "langchain-openai", "langchain-core", "httpx"),
    *("llama-index-core", "llama-index-embeddings-openai-like", "numpy", "orjson"),
)
OPENAI_LIKE_BATCH: Final = 10  # OpenAILikeEmbedding's own default
LANGCHAIN_CHUNK: Final = 1000  # OpenAIEmbeddings' own default

_NO_KEY: Final = "none"
_WORDS: Final = (
    *("the", "retrieval", "of", "passages", "that", "answer", "a", "question", "looks", "up"),
    *("vector", "index", "text", "server", "while", "another", "process", "waits", "for", "it"),
)

Floats = npt.NDArray[np.float32]


def make_texts(count: int, fewest_words: int, most_words: int) -> list[str]:
    """Return different texts of different length, the same at each call."""
    dice = random.Random(count)
    return [
        f"{number} " + " ".join(dice.choices(_WORDS, k=dice.randint(fewest_words, most_words)))
        for number in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is.

    Attributes:
        base_url: Its root, with ``/v1``.
        model: The name of what it serves.
        api_key: Its key.
    """

    base_url: str
    model: str
    api_key: str = _NO_KEY


def langchain(place: Place, chunk_size: int = LANGCHAIN_CHUNK) -> OpenAIEmbeddings:
    """Return langchain-openai's class, with the settings that a local server needs."""
    return OpenAIEmbeddings(
        model=place.model,
        base_url=place.base_url,
        api_key=place.api_key,  # type: ignore[arg-type]  # a plain text is taken too
        check_embedding_ctx_length=False,
        chunk_size=chunk_size,
    )


def llama_index(place: Place, batch_size: int = OPENAI_LIKE_BATCH) -> OpenAILikeEmbedding:
    """Return LlamaIndex's class for servers that speak OpenAI's protocol."""
    return OpenAILikeEmbedding(
        model_name=place.model,
        api_base=place.base_url,
        api_key=place.api_key,
        embed_batch_size=batch_size,
    )


async def aclose(*rivals: OpenAIEmbeddings | OpenAILikeEmbedding) -> None:
    """Close what they opened in the running event loop; they have no way of their own."""
    for rival in rivals:
        if isinstance(rival, OpenAIEmbeddings):
            await rival.async_client._client.close()
        else:
            await rival._get_aclient().close()


@contextmanager
def sdk(place: Place) -> Iterator[openai.OpenAI]:
    """Give the openai SDK's client, bare."""
    with openai.OpenAI(base_url=place.base_url, api_key=place.api_key, max_retries=0) as client:
        yield client


@asynccontextmanager
async def async_sdk(place: Place) -> AsyncIterator[openai.AsyncOpenAI]:
    """Give the openai SDK's asynchronous client, bare."""
    async with openai.AsyncOpenAI(
        base_url=place.base_url, api_key=place.api_key, max_retries=0
    ) as client:
        yield client


def sdk_embed(client: openai.OpenAI, model: str, texts: list[str], batch: int) -> list[list[float]]:
    """Embed through the SDK, ``batch`` texts in a request, one request after another."""
    return [
        entry.embedding
        for some in _batches(texts, batch)
        for entry in client.embeddings.create(model=model, input=some).data
    ]


class Raw:
    """A bare client: requests by ``http.client`` from a few threads, read with nothing checked.

    Its vectors come in the order of the texts, as arrays, and are not normalised.

    Args:
        place: The server.
        connections: How many requests are in flight.
        batch: Texts in a request.
    """

    def __init__(self, place: Place, connections: int, batch: int) -> None:
        self._place, self._batch = place, batch
        url = httpx.URL(place.base_url)
        self._connections = [
            http.client.HTTPConnection(url.host, url.port) for _ in range(connections)
        ]

    def embed(self, texts: list[str]) -> Floats:
        """Return the vectors of ``texts``."""
        batches = list(_batches(texts, self._batch))
        numbers = itertools.count()
        answers: list[Floats] = [np.empty(0, np.float32)] * len(batches)

        def work(connection: http.client.HTTPConnection) -> None:
            while (number := next(numbers)) < len(batches):
                answers[number] = self._ask(connection, batches[number])
            connection.close()  # a server gives up connections that are not used for some seconds

        _in_threads([lambda c=c: work(c) for c in self._connections])  # type: ignore[misc]
        return np.concatenate(answers)

    def _ask(self, connection: http.client.HTTPConnection, texts: list[str]) -> Floats:
        asked = {"model": self._place.model, "input": texts, "encoding_format": "base64"}
        headers = {"authorization": f"Bearer {self._place.api_key}"}
        headers["content-type"] = "application/json"
        connection.request("POST", "/v1/embeddings", orjson.dumps(asked), headers)
        return decode(connection.getresponse().read())


def decode(body: bytes) -> Floats:
    """Return the vectors of a reply, which is believed."""
    vectors = [entry["embedding"] for entry in orjson.loads(body)["data"]]
    if isinstance(vectors[0], str):
        packed = b"".join(map(base64.b64decode, vectors))
        return np.frombuffer(packed, np.float32).reshape(len(vectors), -1)
    return np.array(vectors, np.float32)


async def raw_async(place: Place, texts: list[str], connections: int, batch: int) -> Floats:
    """Do as ``Raw`` with aiohttp, from the running event loop."""
    import aiohttp

    batches = list(_batches(texts, batch))
    answers: list[Floats] = [np.empty(0, np.float32)] * len(batches)
    numbers = iter(range(len(batches)))
    headers = {"authorization": f"Bearer {place.api_key}", "content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session:

        async def work() -> None:
            for number in numbers:
                asked = {"model": place.model, "input": batches[number]}
                body = orjson.dumps({**asked, "encoding_format": "base64"})
                async with session.post(f"{place.base_url}/embeddings", data=body) as reply:
                    answers[number] = decode(await reply.read())

        await asyncio.gather(*(work() for _ in range(connections)))
    return np.concatenate(answers)


def from_threads(count: int, texts: Sequence[str], ask: Callable[[str], Any]) -> list[Any]:
    """Return what ``ask`` gives for each text, asked from ``count`` threads."""
    numbers = itertools.count()
    answers: list[Any] = [None] * len(texts)

    def work() -> None:
        while (number := next(numbers)) < len(texts):
            answers[number] = ask(texts[number])

    _in_threads([work] * count)
    return answers


def _in_threads(works: Sequence[Callable[[], None]]) -> None:
    if len(works) == 1:
        works[0]()
        return
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _batches(texts: list[str], size: int) -> Iterator[list[str]]:
    return (texts[start : start + size] for start in range(0, len(texts), size))
