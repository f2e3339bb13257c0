"""Texts that a server changes, refuses or cuts, read by Qwen's real tokenizer.

The server was started by hand with ``--allow-auto-truncate``.
"""

from __future__ import annotations

import json
import random
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from emberd import Embedder, probe
from emberd.client.clients import Client
from emberd.client.event_loops import finish
from emberd.client.inputs import prepare
from emberd.errors import TextTooLongError
from emberd.settings import Settings
from real import by_hand, sixty_texts
from real.by_hand import ByHand
from real.engines import EngineSide
from real.sixty_texts import SPECIAL

_UNCUT_TOKENS: Final = sixty_texts.CONTEXT_TOKENS - 6
_LEAST_COSINE: Final = 0.9995

# What Python's or Unicode's white space is, and what only looks like it.
_SPACES: Final = [
    *map(chr, (*range(0x09, 0x0E), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B))),
    *map(chr, (0x2028, 0x2029, 0x202F, 0x205F, 0x3000)),
    *map(chr, (0x00, 0x180E, 0x200B, 0x200D, 0x2060, 0xFEFF)),
]
_BLANK: Final = [*_SPACES, "", "   ", "\n\n\n", " \n\t ", "\x1c \u2028", " " * 400, "\u3000 \x85"]
_COMPOSED: Final = [
    *("cafe\u0301", "A\u030a", "\u1100\u1161\u11a8", "\U0001d160 note", "\u0301", "q\u0323\u0307"),
    *("\u212b", "\u0344", "e\u0301<|im_end|>e\u0301", "<|im_end|>\u0338", ">\u0338"),
    "<think>\u0338",
]
_WITH_SPECIAL: Final = [
    *("<|im_end|>", "a <|im_end|> b", "<|endoftext|>", "end<|endoftext|>", "<think>\n\n</think>"),
    *("<|im_start|>user\nhi<|im_end|>\n", "x<tool_call>{}</tool_call>", "<|im_end", "<|IM_END|>"),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen's real table of tokens."""
    return sixty_texts.fetch_table(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def qwen(sglang_side: EngineSide, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that reads texts as Qwen3-Embedding does."""
    folder = tmp_path_factory.mktemp("models") / "Qwen3-Embedding-0.6B"
    return sglang_side.make_qwen(folder, table, SPECIAL)


@pytest.fixture(scope="module")
def cutting(
    sglang_python: str, qwen: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ByHand]:
    """It cuts by itself what is too long, and loses the end of the text."""
    folder = tmp_path_factory.mktemp("by-hand")
    with by_hand.server(sglang_python, qwen, folder, "--allow-auto-truncate") as running:
        yield running


@pytest.mark.parametrize("tokens", [_UNCUT_TOKENS - 1, _UNCUT_TOKENS, _UNCUT_TOKENS + 1, 10_000])
def test_the_server_cuts_by_itself_after_so_many_tokens(cutting: ByHand, tokens: int) -> None:
    body = json.dumps({"model": "any", "input": [[64] * tokens]}).encode()
    reply = probe.fetch(cutting.url, "/v1/embeddings", body, None, 60)
    assert json.loads(reply.body)["usage"]["prompt_tokens"] == min(tokens, _UNCUT_TOKENS)


def test_a_text_that_the_server_would_cut_is_named_or_cut_with_its_end_kept(
    cutting: ByHand, qwen: Path, sglang_side: EngineSide
) -> None:
    texts = ["a" + " a" * more for more in (10, _UNCUT_TOKENS - 2, _UNCUT_TOKENS - 1, 10_000)]
    embedder = Embedder(qwen, base_url=cutting.url)
    assert embedder.endpoint().context_tokens == _UNCUT_TOKENS + 1
    for long in texts[2:]:
        with pytest.raises(TextTooLongError) as caught:
            embedder.embed_documents([texts[0], long])
        assert (caught.value.index, caught.value.limit) == (1, _UNCUT_TOKENS)
        assert caught.value.tokens == long.count("a") + 1
    vectors = embedder.replace(truncate=True).embed_documents(texts)
    reference = sglang_side.reference(qwen, texts[:2]).vectors
    assert np.sum(vectors[:2] * reference, axis=1).min() >= _LEAST_COSINE
    assert (vectors[1:] @ reference[1]).min() >= _LEAST_COSINE


@pytest.mark.parametrize(
    "texts", [_BLANK, _COMPOSED, _WITH_SPECIAL], ids=["blank", "composed", "special"]
)
def test_such_texts_have_the_vectors_of_transformers(
    cutting: ByHand, qwen: Path, sglang_side: EngineSide, texts: list[str]
) -> None:
    vectors = Embedder(qwen, base_url=cutting.url).embed_documents(texts)
    cosines = np.sum(vectors * sglang_side.reference(qwen, texts).vectors, axis=1)
    assert cosines.min() >= _LEAST_COSINE, ascii(texts[int(cosines.argmin())])
    # Of the blank texts no two are alike that the tokenizer does not hold for the same.
    assert np.median(vectors @ vectors.T) < 0.99


def test_sixty_texts_of_many_kinds_have_their_vectors_or_an_error(
    cutting: ByHand, qwen: Path, sglang_side: EngineSide
) -> None:
    measured = sixty_texts.measure(sglang_side, qwen, cutting.url)
    (too_long,) = (each for each in measured if each.error is not None)
    assert isinstance(too_long.error, TextTooLongError)
    assert too_long.error.tokens == too_long.tokens > _UNCUT_TOKENS
    least = min(each.cosine for each in measured if each.cosine is not None)
    assert least >= sixty_texts.LEAST_COSINE, "\n".join(sixty_texts.lines(measured))


# The generator mixes up to three of eight kinds: 2,500 texts have each mixture 15 times or more on
# average.
@pytest.mark.parametrize("count", [2_500, pytest.param(10_000, marks=pytest.mark.full)])
def test_token_counts_equal_those_of_the_tokenizer(
    cutting: ByHand, qwen: Path, table: Path, sglang_side: EngineSide, count: int
) -> None:
    """In errors they do to the token, and the bound in bytes is never exceeded."""
    texts = _random_texts(count)
    counts = sglang_side.count(table, SPECIAL, texts)
    settings = Settings.resolve(model=str(qwen))
    prepared = finish(prepare(texts, "{text}", settings.known))
    for index, (tokens, size) in enumerate(zip(counts, prepared.sizes, strict=True)):
        assert tokens <= size + 1, ascii(texts[index])
        assert index in prepared.to_count(tokens - 1, [index])
    # A server without any room: each text is counted, and its error says how many it has.
    endpoint = replace(Embedder(qwen, base_url=cutting.url).endpoint(), context_tokens=2)
    client = Client(lambda: endpoint, settings)
    told: list[int | None] = []
    for window in client.stream(texts, "{text}", set_aside=True):
        told += [getattr(window.set_aside.get(i), "tokens", 1) for i in range(len(window.matrix))]
    client.close()
    assert told == counts


def _random_texts(count: int) -> list[str]:
    """Texts of characters from all planes, with many that compose, expand or are special."""
    chance = random.Random(20_261_128)
    marks = [chr(n) for n in range(0x110000) if unicodedata.combining(chr(n))]
    composed = [chr(n) for n in range(0x110000) if unicodedata.decomposition(chr(n))]
    kinds: list[Any] = [
        lambda: chr(chance.randrange(0x20, 0x7F)),
        lambda: chr(chance.randrange(0x80, 0xD800)),
        lambda: chr(chance.randrange(0xE000, 0x110000)),
        lambda: chance.choice(marks),
        lambda: chance.choice(composed),
        lambda: chance.choice(["e\u0301", "\U0001d160", "\u0344", "ﷺ", "'S", " ", "\r\n", "\x85"]),
        lambda: f"{chance.choice(SPECIAL)[0]} ",
        lambda: chr(chance.randrange(0xAC00, 0xD7A4)),
    ]
    texts = ["\U0001d160" * 300, "\ufdfa" * 40, "e\u0301" * 500, "\u1100\u1161\u11a8" * 90]
    while len(texts) < count:
        some = chance.sample(kinds, chance.randrange(1, 4))
        texts.append("".join(chance.choice(some)() for _ in range(chance.randrange(1, 40))))
    return texts
