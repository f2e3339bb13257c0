"""A server of a reranker with knobs: it scores prompts as SGLang does, or wrongly."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from emberd.client.verify_scores import prompts
from fake_server import END_OF_TEXT, FakeServer, refusal
from http_server import Answer, Request, reply

MODEL: Final = "test/reranker"
YES, NO = 1001, 1002
_SPECIAL: Final = {"<|im_start|>": 901, "<|im_end|>": 902, "<think>": 903, "</think>": 904}
_SPLIT: Final = re.compile(f"({'|'.join(map(re.escape, _SPECIAL))})")


def tokenize(text: str, *, by_character: bool = False) -> list[int]:
    """One token a byte or character, one for each special token, and one for yes and for no."""
    if text in ("yes", "no"):
        return [YES if text == "yes" else NO]
    parts = [part for part in _SPLIT.split(text) if part]
    return [
        token
        for part in parts
        for token in (
            [_SPECIAL[part]]
            if part in _SPECIAL
            else [2_000 + ord(character) for character in part]
            if by_character
            else part.encode()
        )
    ]


def score_of(ids: Iterable[int]) -> float:
    """The score of a prompt, which depends on each of its tokens."""
    digest = hashlib.sha256(json.dumps([*ids]).encode()).digest()
    return int.from_bytes(digest[:4]) / 2**32


# Good and bad pairs alternate.
_CANARY: Final = {
    text: 0.9 - 0.01 * place - 0.8 * (place % 2) for place, text in enumerate(prompts())
}

_FAULTS: Final[dict[str, Callable[[list[Any]], Any]]] = {
    "nan": lambda pairs: [[None, None], *pairs[1:]],
    "beyond_one": lambda pairs: [[1.5, -0.5], *pairs[1:]],
    "no_softmax": lambda pairs: [[-0.3, -1.2], *pairs[1:]],
    "missing": lambda pairs: pairs[:-1],
    "reordered": lambda pairs: pairs[::-1],
    "equal": lambda pairs: [[0.5, 0.5] for _ in pairs],
    "one_number": lambda pairs: [pair[:1] for pair in pairs],
    "swapped": lambda pairs: [pair[::-1] for pair in pairs],
}


@dataclass
class FakeReranker(FakeServer):
    """Knobs may be turned while it runs."""

    model: str = MODEL
    context_tokens: int | None = 4000
    is_generation: bool = True
    end_of_text: int | None = None  # what its tokenizer appends
    always_appends: bool = False  # although it is asked not to
    by_character: bool = False  # its tokens are characters, not bytes
    says_usage: bool = True
    limited_above: int | None = None  # prompts in a request, above which it limits the rate

    @property
    def scored(self) -> list[list[Any]]:
        """The prompts of each request for scores so far."""
        return [request.body["items"] for request in self.to("/v1/score")]

    def routes(self) -> dict[str, Answer]:
        """What it answers."""
        return {**super().routes(), "/v1/score": self._score, "/v1/embeddings": self._no_vectors}

    def _no_vectors(self, request: Request, connection: socket.socket) -> bytes:
        return refusal(400, "This model does not embed: start it with --is-embedding")

    def _tokenize(self, request: Request, connection: socket.socket) -> bytes:
        if not self.has_tokenizer:
            return reply(404, {"detail": "Not Found"})
        ids = self._tokens_of(request.body["prompt"])
        if self.always_appends or request.body.get("add_special_tokens", True):
            ids = self._ids(request.body["prompt"])
        return reply(200, {"tokens": ids, "count": len(ids), "max_model_len": self.context_tokens})

    def _ids(self, given: str | list[int]) -> list[int]:
        if isinstance(given, list):
            return given
        return [*self._tokens_of(given), *([] if self.end_of_text is None else [self.end_of_text])]

    def _tokens_of(self, text: str) -> list[int]:
        return tokenize(text, by_character=self.by_character)

    def _score(self, request: Request, connection: socket.socket) -> bytes:
        body = request.body
        assert body["label_token_ids"] == [YES, NO]
        assert body["apply_softmax"] is True
        items = body["items"]
        assert body["query"] == ("" if isinstance(items[0], str) else [])
        if self.limited_above is not None and len(items) > self.limited_above:
            return refusal(429, "try later")
        self._fail(items, connection)
        if (said := self._refusal(items)) is not None:
            return refusal(400, said)
        read = [self._ids(item) for item in items]
        scores = self.scores_of(read)
        pairs = _FAULTS.get(self.fault or "", list)([[one, 1 - one] for one in scores])
        tokens = sum(map(len, read)) + self.usage_off_by
        named = self.named or body["model"]  # SGLang repeats the name in the request
        found: dict[str, Any] = {"object": "scoring", "scores": pairs, "model": named}
        if self.says_usage:
            found["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        return reply(200, found)

    def scores_of(self, read: list[list[int]]) -> list[float]:
        """What its weights give for the token ids of prompts."""
        by_ids = {tuple(self._tokens_of(text)): score for text, score in _CANARY.items()}
        return [by_ids.get(tuple(ids), score_of([*ids, self.weights])) for ids in read]


APPENDS: Final = END_OF_TEXT
