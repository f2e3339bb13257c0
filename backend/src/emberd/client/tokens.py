"""Counting and cutting over-long texts through the server's own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from emberd.catalog import Model
from emberd.client.protocol import Ask, parse
from emberd.endpoint import Endpoint
from emberd.errors import BadReplyError, TextTooLongError

PATH: Final = "/v1/tokenize"

# What other servers than SGLang have in its place; llama.cpp's leaves the end of text out unasked.
_ELSEWHERE: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "vllm": ("/tokenize", "prompt", {}),
    "llamacpp": ("/tokenize", "content", {"add_special": True}),
}


@dataclass(frozen=True, slots=True)
class Counting:
    """One text whose tokens are to be counted; ``index`` is its place in the caller's list."""

    index: int


def limit_tokens(endpoint: Endpoint, model: Model) -> int | None:
    """Return how many tokens a text may have at most; None when nobody says."""
    context = endpoint.context_tokens or model.context_tokens
    # SGLang refuses a text of exactly as many tokens as its context.
    return context - 1 if context else None


def ask(server: str, model: str, text: str) -> Ask:
    """Return the request that tokenizes ``text``.

    Args:
        server: What kind of server is asked, as its endpoint has it.
        model: The name that it goes by.
        text: The text, in its template.
    """
    path, field, more = _ELSEWHERE.get(server, (PATH, "prompt", {}))
    return Ask(path, {"model": model, field: text, **more})


def read(body: bytes) -> list[int]:
    """Return the token ids from a reply to ``ask``.

    Raises:
        BadReplyError: The reply holds none.
    """
    try:
        reply = parse(body)
    except ValueError:
        reply = None
    tokens = reply.get("tokens") if isinstance(reply, dict) else None
    if not isinstance(tokens, list) or not _are_ids(tokens):
        raise BadReplyError(
            "A request to tokenize was answered without a list of token ids. Look whether a server "
            "of another kind, or a proxy, answers at this address."
        )
    return tokens


def ended(tokens: list[int], model: Model) -> list[int]:
    """Return ``tokens`` with the end-of-text token that the model's own tokenizer puts behind.

    The tokenizer route of sglang-router leaves it out; the server behind it puts it there.
    """
    end = model.end_of_text_id
    return tokens if end is None or tokens[-1] == end else [*tokens, end]


def cut(index: int, tokens: list[int], limit: int, model: Model) -> list[int]:
    """Return ``tokens`` cut to ``limit``, ending with the end-of-text token.

    That token is what last-token pooling reads: a server that cuts the tail loses it.

    Raises:
        TextTooLongError: The model's end-of-text token is not known.
    """
    if model.end_of_text_id is None:
        raise TextTooLongError(
            f"Text {index} has {len(tokens)} tokens, {limit} are allowed, and emberd cannot cut "
            f"it: the end-of-text token of {model.name} is not known. Split the text.",
            index=index,
            tokens=len(tokens),
            limit=limit,
        )
    return [*tokens[: limit - 1], model.end_of_text_id]


def too_long(
    index: int,
    tokens: int | None,
    limit: int | None,
    *,
    truncate: bool = False,
    can_cut: bool = True,
) -> TextTooLongError:
    """Return the error for a text that is not taken.

    Args:
        index: Its place in the caller's list.
        tokens: Its length; None when not known.
        limit: How many tokens are taken; None when not known.
        truncate: The caller wants over-long texts cut.
        can_cut: The server has a tokenizer route to cut them with.
    """
    length = f"has {tokens} tokens" if tokens is not None else "is longer than the server takes"
    allowed = f", {limit} are allowed" if limit is not None else ""
    if not can_cut:
        advice = (
            f"truncate=True cannot cut it, for this server has no {PATH} route; split the text."
            if truncate
            else "Split it."
        )
    elif truncate:
        advice = "Split it: this server takes less than the context that it states."
    else:
        advice = "Split it, or set truncate=True to cut it."
    return TextTooLongError(
        f"Text {index} {length}{allowed}. {advice}", index=index, tokens=tokens, limit=limit
    )


def _are_ids(tokens: list[Any]) -> bool:
    return len(tokens) > 0 and all(type(token) is int for token in tokens)
