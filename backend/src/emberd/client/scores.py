"""Scores of rerankers on the wire: SGLang's ``/v1/score``.

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
from emberd.errors import BadReplyError

PATH: Final = "/v1/score"

# A score has two numbers of up to 25 digits.
_SCORE_BYTES: Final = 256
_REPLY_BYTES: Final = 64 * 1024
_SUM_TOLERANCE: Final = 1e-3  # of two probabilities in float32, and rounded on the wire
_ADVICE: Final = "No score of this reply is used. Check which server answers at this address."


class _Scores(msgspec.Struct):
    scores: list[list[float]]
    model: Any = None
    usage: Any = None


_DECODER: Final = msgspec.json.Decoder(_Scores)


def score_request(
    model: str, labels: tuple[int, ...], inputs: list[Input], tokens: int | None = None
) -> Request:
    """Return the request that scores prompts, which are all strings or all token ids.

    Args:
        model: The name under which the server serves the model.
        labels: The tokens of "yes" and "no".
        inputs: The prompts.
        tokens: How many tokens they have; None if not known.
    """
    body: dict[str, Any] = {
        "model": model,
        # The server puts it before each prompt.
        "query": "" if isinstance(inputs[0], str) else [],
        wire.ITEMS: inputs,
        "label_token_ids": [*labels],
        "apply_softmax": True,
    }
    return Request(PATH, body, _REPLY_BYTES + len(inputs) * _SCORE_BYTES, tokens)


def read_scores(body: bytes, count: int, tokens: int | None = None) -> Embeddings:
    """Return the ``count`` scores of a reply, each as a float32, and the model that it names.

    Args:
        body: The body of the reply.
        count: How many prompts were sent.
        tokens: How many tokens they have; None if not known.

    Raises:
        BadReplyError: A score is missing, not finite or no probability, or the server read another
            number of tokens than the prompts have.
    """
    try:
        reply = _DECODER.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        shown = wire.message(body)[:60]
        raise BadReplyError(f"The reply has no scores ({error}): {shown}. {_ADVICE}") from None
    if len(reply.scores) != count:
        raise BadReplyError(
            f"The reply has {len(reply.scores)} scores for {count} texts. {_ADVICE}"
        )
    packed = []
    for place, pair in enumerate(reply.scores):
        # A comparison with NaN is false.
        is_pair = len(pair) == 2 and all(0 <= each <= 1 + _SUM_TOLERANCE for each in pair)  # noqa: PLR2004
        if not is_pair or not math.isclose(sum(pair), 1, abs_tol=_SUM_TOLERANCE):
            raise BadReplyError(
                f"Score {place} of the reply is {str(pair)[:60]} instead of two probabilities. "
                f"{_ADVICE}"
            )
        packed.append(struct.pack("<f", min(pair[0], 1.0)))
    wire.check_tokens(reply.usage, count, tokens)
    return Embeddings(packed, reply.model if isinstance(reply.model, str) else None)
