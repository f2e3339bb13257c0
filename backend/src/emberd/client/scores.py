"""Scores of rerankers on the wire: the routes of SGLang and vLLM, and what each reply holds.

A text is a whole prompt. Its score is the probability of "yes" against that of "no" for the token
after the prompt.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Final

import msgspec

from emberd.client import wire
from emberd.client.inputs import Input
from emberd.client.wire import Embeddings, Request
from emberd.endpoint import Endpoint
from emberd.errors import BadReplyError
from emberd.prompts import RERANK_START

BOTH: Final = "/v1/score"
"""Takes the tokens of both answers, and returns the probability of each: SGLang, and emberd's."""

FIRST: Final = "/generative_scoring"
"""Takes the tokens of both answers, and returns the probability of the first: vLLM."""

HEAD: Final = "/score"
"""Takes pairs of texts, which are joined, and returns the score that a classifier gives them:
vLLM that serves the model as one. Token ids are not taken."""

ROUTES: Final = (BOTH, FIRST, HEAD)

# A score has two numbers of up to 25 digits, in an object with a name for each.
_SCORE_BYTES: Final = 256
_REPLY_BYTES: Final = 64 * 1024
_TOLERANCE: Final = 1e-3  # of probabilities in float32, rounded on the wire
_ADVICE: Final = "No score of this reply is used. Check which server answers at this address."


class _Pairs(msgspec.Struct):
    scores: list[list[float]]
    model: Any = None
    usage: Any = None


class _Item(msgspec.Struct):
    index: int
    score: float


class _Items(msgspec.Struct):
    data: list[_Item]
    model: Any = None
    usage: Any = None


_PAIRS: Final = msgspec.json.Decoder(_Pairs)
_ITEMS: Final = msgspec.json.Decoder(_Items)


def score_request(endpoint: Endpoint, inputs: list[Input], tokens: int | None = None) -> Request:
    """Return the request that scores prompts, which are all strings or all token ids.

    Args:
        endpoint: Where it is sent.
        inputs: The prompts.
        tokens: How many tokens they have; None if not known.
    """
    most_bytes = _REPLY_BYTES + len(inputs) * _SCORE_BYTES
    if endpoint.scores_route == HEAD:
        # The common beginning is a separate token, so the rest has the same tokens without it.
        prompts = [prompt for prompt in inputs if isinstance(prompt, str)]
        if len(prompts) < len(inputs):
            raise RuntimeError(f"{HEAD} takes no token ids")  # str() would make text of them
        rest = [prompt.removeprefix(RERANK_START) for prompt in prompts]
        return pair_request(endpoint, RERANK_START, rest, most_bytes, tokens)
    body: dict[str, Any] = {
        "model": endpoint.model,
        # The server puts it before each prompt.
        "query": "" if isinstance(inputs[0], str) else [],
        "items": inputs,
        "label_token_ids": [*endpoint.labels],
        "apply_softmax": True,
    }
    if endpoint.scores_route == FIRST:
        body["add_special_tokens"] = False
    return Request(endpoint.scores_route, body, most_bytes, tokens, "items")


def pair_request(
    endpoint: Endpoint,
    first: str | list[str],
    second: list[str],
    most_bytes: int = wire.MOST_BYTES,
    tokens: int | None = None,
) -> Request:
    """Return the request that scores prompts as pairs; ``first`` may be one text for all."""
    body = {"model": endpoint.model, "text_1": first, "text_2": second}
    return Request(HEAD, body, most_bytes, tokens, "text_2")


def read_scores(
    endpoint: Endpoint, body: bytes, count: int, tokens: int | None = None
) -> Embeddings:
    """Return the ``count`` scores of a reply, each as a float32, and the model that it names.

    Args:
        endpoint: Where it comes from.
        body: Its body.
        count: How many prompts were sent.
        tokens: How many tokens they have; None if not known.

    Raises:
        BadReplyError: A score is missing, not finite or not a probability; or the server read
            another number of tokens than the prompts have, or does not say how many.
    """
    decoder: msgspec.json.Decoder[Any] = _PAIRS if endpoint.scores_route == BOTH else _ITEMS
    try:
        reply = decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        shown = wire.message(body)[:60]
        raise BadReplyError(f"The reply has no scores ({error}): {shown}. {_ADVICE}") from None
    scores = _first_of_pairs(reply) if isinstance(reply, _Pairs) else _in_order(reply)
    if len(scores) != count:
        raise BadReplyError(f"The reply has {len(scores)} scores for {count} texts. {_ADVICE}")
    packed = []
    for place, score in enumerate(scores):
        # A comparison with NaN is false.
        if not 0 <= score <= 1 + _TOLERANCE:
            raise BadReplyError(
                f"Score {place} of the reply is {score}, which is not a probability. {_ADVICE}"
            )
        packed.append(struct.pack("<f", min(score, 1.0)))
    told = wire.check_tokens(reply.usage, count, tokens)
    if told is None:
        raise BadReplyError(
            f"The reply does not say how many tokens the server read, so it is not known whether "
            f"it scores exactly the prompts. {_ADVICE}"
        )
    return Embeddings(packed, reply.model if isinstance(reply.model, str) else None, told)


def _first_of_pairs(reply: _Pairs) -> list[float]:
    for place, pair in enumerate(reply.scores):
        is_pair = len(pair) == 2  # noqa: PLR2004
        if not is_pair or not math.isclose(sum(pair), 1, abs_tol=_TOLERANCE):
            raise BadReplyError(
                f"Score {place} of the reply is {str(pair)[:60]} instead of two probabilities. "
                f"{_ADVICE}"
            )
    return [first for first, _ in reply.scores]


def _in_order(reply: _Items) -> list[float]:
    found = {item.index: item.score for item in reply.data}
    if len(found) != len(reply.data) or sorted(found) != [*range(len(found))]:
        shown = str([item.index for item in reply.data])[:60]
        raise BadReplyError(
            f"The scores of the reply have the indices {shown} instead of each index once. "
            f"{_ADVICE}"
        )
    return [found[index] for index in range(len(found))]
