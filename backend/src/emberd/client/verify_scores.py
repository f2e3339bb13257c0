"""Verifies that a server gives the scores of a reranker, before its first use.

Enforced are what would go unnoticed: that each prompt ends with the tokens after which the model
answers, that "yes" and "no" are one token each, that the server reads as many tokens as its
tokenizer returns, and that prompts in one request get the scores that they get alone, in their
order. That a document that answers a query scores above one that does not is no more than expected
of a good model: if it does not, the endpoint has a note.

A classifier is not told which tokens are the answers, and takes pairs of texts instead of prompts.
So two things more are enforced of it: that it only joins the pairs, and that an answer scores above
a text about something else, because nothing else shows of what its scores are the probability.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, Final

from emberd.catalog import SAME_LOGIT, SAME_SCORE, Model, logit
from emberd.client import lengths, scores, tokenizer, wire
from emberd.client.inputs import Input
from emberd.client.wire import Reply, Request, TransportError
from emberd.endpoint import Endpoint
from emberd.errors import BadReplyError, ServerMismatchError, ServerUnavailableError
from emberd.prompts import RERANK_ANSWERS, RERANK_START, RERANK_SUFFIX, rerank_frame

# Kinds of servers that cannot be sent the prompt, by their name in the list of models.
_OWN_PROMPT: Final = {
    "infinity": (
        "infinity removes white space at the ends of texts, so the prompt would lose the end after "
        "which the model answers, and it cuts prompts that are too long"
    ),
    "llamacpp": "llama.cpp puts a query and a document into its own prompt",
    lengths.GATEWAY: (
        "emberd's gateway puts a query and a document into the prompt itself (POST /v1/rerank, "
        "which needs no Reranker)"
    ),
}
_ADVICE: Final = "Serve the model with SGLang or vLLM, or omit base_url to let emberd start it."

_VLLM: Final = "vllm"

Ask = Callable[..., Generator[Request, Reply | TransportError | None, bytes | None]]
"""Sends a request, and returns the body of a good reply; None where there is no such route."""

_QUERIES: Final = ("What is the capital of China?", "Explain gravity")
_ANSWERS: Final = (
    "The capital of China is Beijing.",
    "Gravity is a force that attracts two bodies towards each other.",
)
# Query and document of each prompt. Good and bad pairs alternate, so that scores in the wrong order
# differ from the right ones.
_PAIRS: Final = ((0, 0), (0, 1), (1, 1), (1, 0))


def prompts() -> list[str]:
    """Return the prompts whose scores are compared."""
    return [_ANSWERS[d].join(rerank_frame(_QUERIES[q])) for q, d in _PAIRS]


def steps(
    endpoint: Endpoint, model: Model, ask: Ask, batch_size: int | None = None, probes: int = 1
) -> Generator[Request, Reply | TransportError | None, Endpoint]:
    """Return ``endpoint`` with what was found.

    Args:
        endpoint: The server, which lists the model.
        model: What is known of the model.
        ask: Sends a request.
        batch_size: Most prompts in a request; None for all.
        probes: How often the first prompt is scored: a router may have servers of several models.

    Raises:
        ServerMismatchError: It does not score prompts correctly; the text says what was seen.
        ServerUnavailableError: It limits the rate, so that not everything could be verified.
    """
    url, sent = endpoint.url, prompts()
    if (reason := _OWN_PROMPT.get(endpoint.server)) is not None:
        raise ServerMismatchError(
            f"{url} cannot score the prompt of a reranker: {reason}. {_ADVICE}"
        )

    def tokens_of(
        text: str, *, adds: bool
    ) -> Generator[Request, Reply | TransportError | None, list[int]]:
        request = tokenizer.tokenize_request(endpoint.server, endpoint.model, text, adds=adds)
        if (body := (yield from ask(request, optional=True))) is None:
            raise ServerMismatchError(
                f"{url}{request.path} is missing or closed. A reranker needs it: the tokens of "
                f"'yes' and 'no' are those of the server's tokenizer. Open that route, or use "
                f"SGLang."
            )
        return _read_ids(url, body)

    labels = []
    for word in RERANK_ANSWERS:
        ids = yield from tokens_of(word, adds=False)
        if len(ids) != 1:
            raise ServerMismatchError(
                f"{url} has {len(ids)} tokens for {word!r}, so {model.name} cannot answer with "
                f"it. Use Qwen3-Reranker, or a model made from it."
            )
        labels += ids
    if model.label_ids not in (None, tuple(labels)):
        raise ServerMismatchError(
            f"{url} has the tokens {labels} for 'yes' and 'no', but the files of {model.name} say "
            f"that it answers with {model.label_ids}. Use Qwen3-Reranker, or a model made from it."
        )
    tail = yield from tokens_of(RERANK_SUFFIX, adds=False)
    bare: list[list[int]] = []
    for prompt in sent:
        bare += [(yield from tokens_of(prompt, adds=False))]
    if any(ids[-len(tail) :] != tail for ids in bare):
        raise ServerMismatchError(
            f"{url} does not read the end of the prompt of Qwen3-Reranker as separate tokens: "
            f"its tokenizer does not know <|im_end|>. Use Qwen3-Reranker, or a model made from it."
        )
    whole = yield from tokens_of(sent[0], adds=True)
    found = replace(endpoint, labels=tuple(labels), tail=tuple(tail), scores_route=scores.BOTH)
    if endpoint.server == _VLLM:
        found = yield from _route_of_vllm(found, sent[0], ask)
    # The other routes are told to add no tokens, or only take strings.
    if found.scores_route == scores.BOTH:
        found = replace(found, needs_ids=whole != bare[0])
    inputs: list[Input] = [*bare] if found.needs_ids else [*sent]
    yield from _check_one_model(found, inputs[0], probes, ask)
    alone = []
    for given, ids in zip(inputs, bare, strict=True):
        reply = (yield from ask(scores.score_request(found, [given]))) or b""
        _check_count(found, reply, len(ids))
        alone += _read(found, reply, 1)
    together: list[float] = []
    size = batch_size or len(inputs)
    for place in range(0, len(inputs) if size > 1 else 0, size):
        part = inputs[place : place + size]
        body = yield from ask(scores.score_request(found, part), limited=True)
        if body is None:
            raise _limited(url, "several prompts in a request")
        together += _read(found, body, len(part))
    _compare(url, alone, together)
    if found.scores_route == scores.HEAD:
        divided = yield from _divided(found, sent, [*map(len, bare)], size, ask)
        _check_joined(url, alone, divided)
    return replace(
        found,
        canary=(tuple(alone),),
        counts_exactly=True,
        notes=_notes(found, model, alone),
    )


def _divided(
    endpoint: Endpoint, sent: Sequence[str], tokens: Sequence[int], size: int, ask: Ask
) -> Generator[Request, Reply | TransportError | None, list[float]]:
    """Return the scores of prompts that are divided into pairs before their end.

    Args:
        endpoint: The server.
        sent: The prompts.
        tokens: How many tokens each has.
        size: Most prompts in a request.
        ask: Sends a request.
    """
    found = []
    for place in range(0, len(sent), size):
        before = [prompt.removesuffix(RERANK_SUFFIX) for prompt in sent[place : place + size]]
        request = scores.pair_request(endpoint, before, [RERANK_SUFFIX] * len(before))
        reply = (yield from ask(request)) or b""
        _check_count(endpoint, reply, sum(tokens[place : place + size]))
        found += _read(endpoint, reply, len(before))
    return found


def check_listing(url: str, entries: Sequence[dict[str, Any]]) -> None:
    """Refuse Text Embeddings Inference, whose ``entries`` come from its route ``/info``.

    Raises:
        ServerMismatchError: There are any.
    """
    if entries:
        raise ServerMismatchError(
            f"{url} is Text Embeddings Inference with {entries[0]['root']}, which does not compute "
            f"Qwen3-Reranker: it has no such classifier, and cannot be asked for the tokens of "
            f"'yes' and 'no'. {_ADVICE}"
        )


def _route_of_vllm(
    endpoint: Endpoint, prompt: str, ask: Ask
) -> Generator[Request, Reply | TransportError | None, Endpoint]:
    """Return ``endpoint`` with the route of vLLM that gives scores.

    It has one for models that generate, and another one for classifiers.
    """
    generates = replace(endpoint, scores_route=scores.FIRST)
    request = scores.score_request(generates, [prompt])
    if (yield from ask(request, optional=True)) is not None:
        return generates
    return replace(endpoint, scores_route=scores.HEAD)


def _read_ids(url: str, body: bytes) -> list[int]:
    try:
        return tokenizer.read_ids(body)
    except BadReplyError as error:
        raise ServerMismatchError(f"{url}: {error}") from error


def _read(endpoint: Endpoint, body: bytes, count: int) -> list[float]:
    try:
        reply = scores.read_scores(endpoint, body, count)
    except BadReplyError as error:
        raise ServerMismatchError(f"{endpoint.url} returned an invalid score: {error}") from error
    return [struct.unpack("<f", raw)[0] for raw in reply.vectors]


def _limited(url: str, what: str) -> ServerUnavailableError:
    return ServerUnavailableError(
        f"{url} limits the rate (429), so it could not be verified with {what}. Try again later."
    )


def _check_count(endpoint: Endpoint, body: bytes, tokens: int) -> None:
    """Raise unless the server says that it read as many tokens as were sent."""
    url, read = endpoint.url, wire.prompt_tokens(body)
    if read == tokens:
        return
    if read is None:
        raise ServerMismatchError(
            f"{url}{endpoint.scores_route} does not say how many tokens it read, so it is not "
            f"known whether it scores exactly the prompt. {_ADVICE}"
        )
    if endpoint.scores_route == scores.HEAD and read > tokens:
        raise ServerMismatchError(
            f"{url}{scores.HEAD} read {read} tokens of a prompt of {tokens}: it puts texts into "
            f"its own template, or tokens around them. Start vLLM without --chat-template, or "
            f"without --hf-overrides and --runner pooling."
        )
    raise ServerMismatchError(
        f"{url} read {read} tokens of a prompt of {tokens}: it cuts prompts, or adds tokens to "
        f"them. Use a server that scores exactly the prompt."
    )


def _check_joined(url: str, alone: Sequence[float], divided: Sequence[float]) -> None:
    for score, other in zip(alone, divided, strict=True):
        if not abs(score - other) <= SAME_SCORE:
            raise ServerMismatchError(
                f"{url}{scores.HEAD} gives a prompt the score {score:.4f} if it is divided after "
                f"{RERANK_START}, and {other:.4f} if it is divided before its end: it does not "
                f"only join the texts of a pair. {_ADVICE}"
            )


def _check_one_model(
    endpoint: Endpoint, prompt: Input, probes: int, ask: Ask
) -> Generator[Request, Reply | TransportError | None, None]:
    request, found = scores.score_request(endpoint, [prompt]), list[float]()
    for _ in range(probes if probes > 1 else 0):
        if (body := (yield from ask(request, limited=True))) is None:
            raise _limited(endpoint.url, "several requests")
        found += _read(endpoint, body, 1)
    low, high = min(found, default=0), max(found, default=0)
    # The scores of good models are near 0 and 1, and hardly differ there.
    if not logit(high) - logit(low) <= SAME_LOGIT:
        raise ServerMismatchError(
            f"{endpoint.url} lists several models, and gives one pair of a query and a document "
            f"scores from {low:.6f} to {high:.6f}: it routes requests to several models. Put "
            f"servers of one model behind it, or give the base_url of one of them."
        )


def _compare(url: str, alone: Sequence[float], together: Sequence[float]) -> None:
    if len(set(alone)) == 1:
        raise ServerMismatchError(
            f"{url} returns the score {alone[0]:.6f} for each of {len(alone)} pairs of a query and "
            f"a document: it does not read the prompts. Use another server."
        )
    # With a batch size of one, none were sent together.
    for place, (one, other) in enumerate(zip(alone, together, strict=bool(together))):
        if not abs(one - other) <= SAME_SCORE:
            raise ServerMismatchError(
                f"{url} computes requests with several prompts wrongly: prompt {place} of "
                f"{len(alone)} has the score {other:.4f} among the others and {one:.4f} alone. "
                f"Update the server, or use another one."
            )


def _notes(endpoint: Endpoint, model: Model, alone: Sequence[float]) -> tuple[str, ...]:
    for good, bad in ((0, 1), (2, 3)):
        if alone[good] > alone[bad]:
            continue
        query, document = _PAIRS[bad]
        seen = (
            f"{model.name} at {endpoint.url} gives {_QUERIES[query]!r} a score of "
            f"{alone[good]:.4f} with its answer, and {alone[bad]:.4f} with {_ANSWERS[document]!r}"
        )
        if endpoint.scores_route == scores.HEAD:
            raise ServerMismatchError(
                f"{seen}. So nothing shows that its classifier gives the probability of 'yes'. "
                f'Start vLLM with "classifier_from_token": ["no", "yes"], or without '
                f"--hf-overrides and --runner pooling."
            )
        return (
            seen + ": its scores may mean nothing. Check that its weights are those of a reranker.",
        )
    return ()
