"""Texts that may be too long: counted through the server's tokenizer, and cut if that is wanted.

They are counted before any text is embedded, so that the error for one comes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from emberd.catalog import Model
from emberd.client import wire
from emberd.client.event_loops import Steps
from emberd.client.inputs import PreparedTexts
from emberd.client.wire import Request, ServerLost
from emberd.endpoint import Endpoint
from emberd.errors import (
    AuthenticationError,
    BadReplyError,
    RejectedError,
    RequestError,
    ServerMismatchError,
    TextTooLongError,
)

PATH: Final = "/v1/tokenize"

_TEXTS_A_STEP: Final = 1024

# In the reply, for each character of the text: four tokens, each with a number of eight digits.
_TOKEN_BYTES: Final = 40

# The tokenizer routes of other servers than SGLang; llama.cpp's omits the end of text by default.
_OTHER_ROUTES: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "vllm": ("/tokenize", "prompt", {}),
    "llamacpp": ("/tokenize", "content", {"add_special": True}),
}


@dataclass(frozen=True, slots=True, eq=False)
class TokenCount:
    """One text whose tokens are counted; ``index`` is its place in the caller's list."""

    index: int


@dataclass(slots=True)
class EndpointFacts:
    """What the replies of endpoints have shown, over all jobs of a client; shared by threads.

    Attributes:
        models: The model that the first reply of each named.
        uncut: Those that refuse to cut vectors to fewer dimensions.
        limits: How many tokens a text may have, for those that accept fewer than they state.
    """

    models: dict[Endpoint, str] = field(default_factory=dict)
    uncut: set[Endpoint] = field(default_factory=set)
    limits: dict[Endpoint, int] = field(default_factory=dict)

    def check_model(self, endpoint: Endpoint, model: str | None) -> ServerLost | None:
        """Return a failure if a reply names another ``model`` than the first reply did.

        An external server may be replaced by one of another model under the same address. If both
        have the same dimensions, only the name shows it.
        """
        first = self.models.setdefault(endpoint, model) if model is not None else model
        if first == model:
            return None
        error = ServerMismatchError(
            f"{endpoint.url} gave vectors of {first} before and gives those of {model} now: "
            f"another server has taken its place. Serve {first} there again, or make a new "
            f"embedder and embed all texts again."
        )
        return ServerLost(error, reached=False)


@dataclass(slots=True)
class Lengths:
    """The lengths of the texts of one job.

    Attributes:
        prepared: Its texts; those that are cut become token ids in it.
        model: What is known of the model.
        facts: What other jobs have shown of the servers.
        truncate: Whether texts that are too long are cut.
        offset: How many texts of the caller precede these.
        to_count: The texts that are to be counted next.
        shortened: The texts that were cut.
    """

    prepared: PreparedTexts
    model: Model
    facts: EndpointFacts
    truncate: bool
    offset: int
    to_count: deque[TokenCount] = field(default_factory=deque)
    shortened: set[int] = field(default_factory=set)
    _asked: set[tuple[int, int]] = field(default_factory=set)  # texts, and limits counted for
    _can_count: bool = True

    def begin(self, endpoint: Endpoint) -> Steps[None]:
        """Find the texts that may be too long for ``endpoint``."""
        limit, count = self._limit(endpoint), len(self.prepared.inputs)
        if limit is None:
            return
        for start in range(0, count, _TEXTS_A_STEP):
            texts = range(start, min(start + _TEXTS_A_STEP, count))
            for index in self.prepared.to_count(limit, texts):
                if isinstance(self.prepared.inputs[index], str):
                    self.to_count.append(TokenCount(index))
            yield

    def record(self, endpoint: Endpoint, index: int, result: object) -> None:
        """Record the tokens of a text.

        Raises:
            TextTooLongError: It has too many, and is not to be cut or cannot be.
            RequestError: They could not be counted.
        """
        limit = self._limit(endpoint)
        missing = isinstance(result, RejectedError) and result.status in wire.NO_ROUTE
        # A gateway may let a key embed and close the tokenizer to it; a wrong key fails the
        # embedding as well, and is reported then.
        if missing or isinstance(result, AuthenticationError):
            self._can_count = False
            self.to_count.clear()  # the server itself refuses what is too long
        elif isinstance(result, RequestError):
            raise result
        elif isinstance(result, list) and limit is not None and len(result) > limit:
            if not self.truncate:
                raise self.error(index, len(result), limit)
            self._cut(index, result, limit)

    def count_again(self, endpoint: Endpoint, indices: Sequence[int], limit: int | None) -> bool:
        """Return whether a refusal stated a limit by which some texts are counted again now.

        A router states no context, and a server short of memory accepts less than its own.

        Raises:
            TextTooLongError: A text that was cut before cannot be cut to it.
        """
        if limit is None or not self._can_count:
            return False
        known = self._limit(endpoint)
        again = known is None or limit < known
        if again:
            self.facts.limits[endpoint] = limit
        for index in sorted(self.prepared.to_count(limit, indices)):
            given = self.prepared.inputs[index]
            if isinstance(given, str) and (index, limit) not in self._asked:
                self._asked.add((index, limit))
                self.to_count.append(TokenCount(index))
                again = True
            elif isinstance(given, list) and len(given) > limit:  # cut to what the server stated
                self._cut(index, given, limit)
                again = True
        return again

    def error(self, index: int, tokens: int | None, limit: int | None) -> TextTooLongError:
        """Return the error for a text that is too long.

        Args:
            index: Its place in the job.
            tokens: Its length; None when not known.
            limit: Most tokens that are accepted; None when not known.
        """
        index += self.offset
        length = "is longer than the server accepts" if tokens is None else f"has {tokens} tokens"
        allowed = f", {limit} are allowed" if limit is not None else ""
        if self.truncate and not self._can_count:
            advice = (
                f"truncate=True cannot cut it, because this server has no {PATH} route; split the "
                f"text."
            )
        elif not self._can_count:
            advice = "Split it."
        elif self.truncate:
            advice = "Split it: this server accepts fewer tokens than it reports."
        else:
            advice = "Split it, or set truncate=True to cut it."
        return TextTooLongError(
            f"Text {index} {length}{allowed}. {advice}", index=index, tokens=tokens, limit=limit
        )

    def _limit(self, endpoint: Endpoint) -> int | None:
        if (known := self.facts.limits.get(endpoint)) is not None:
            return known
        context = endpoint.context_tokens or self.model.context_tokens
        # SGLang refuses a text of exactly as many tokens as its context.
        return context - 1 if context else None

    def _cut(self, index: int, ids: list[int], limit: int) -> None:
        """Replace a text by its first token ids, and the end-of-text token.

        Last-token pooling reads that token: a server that cuts the tail loses it.
        """
        end, place = self.model.end_of_text_id, self.offset + index
        if end is None:
            raise TextTooLongError(
                f"Text {place} has {len(ids)} tokens, {limit} are allowed, and emberd cannot cut "
                f"it: the end-of-text token of {self.model.name} is not known. Split the text.",
                index=place,
                tokens=len(ids),
                limit=limit,
            )
        self.prepared.inputs[index] = [*ids[: limit - 1], end]
        self.shortened.add(index)


# ---------------------------------------------------------------- tokens


def tokenize_request(server: str, model: str, text: str) -> Request:
    """Return the request that tokenizes ``text``.

    Args:
        server: The kind of server, as in its endpoint.
        model: The name under which it serves the model.
        text: The text, in its template.
    """
    path, field_name, more = _OTHER_ROUTES.get(server, (PATH, "prompt", {}))
    most_bytes = wire.MOST_BYTES + len(text) * _TOKEN_BYTES
    return Request(path, {"model": model, field_name: text, **more}, most_bytes)


def read_ids(body: bytes) -> list[int]:
    """Return the token ids from the reply to a ``tokenize_request``.

    Raises:
        BadReplyError: It has none.
    """
    ids = wire.parse_object(body).get("tokens")
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        raise BadReplyError(
            "A request to tokenize was answered without a list of token ids. Check whether a "
            "server of another kind, or a proxy, answers at this address."
        )
    return ids


def with_end(ids: list[int], model: Model) -> list[int]:
    """Return ``ids`` with the end-of-text token that the model's own tokenizer appends.

    The tokenizer route of sglang-router omits it; the server behind it appends it.
    """
    end = model.end_of_text_id
    return ids if end is None or ids[-1] == end else [*ids, end]
