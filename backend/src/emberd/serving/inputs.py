"""From a request to what the encoder takes: token counts, token ids, too long a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emberd.serving.encoder import Encoder, Prepared, TokenEncoder
from emberd.serving.wire import EmbeddingRequest, RefusedError, parse_object, schema_refusal


def prepare(request: EmbeddingRequest, encoder: Encoder, name: str) -> list[Prepared]:
    """Return the inputs of ``request`` as ``encoder`` takes them. It may take a while.

    Raises:
        RefusedError: An input is too long, or is token ids that the encoder does not know.
    """
    items = _from_ids(request.ids, encoder, name) if request.ids else encoder.prepare(request.texts)
    for item in items:
        if item.tokens >= encoder.context_tokens:
            raise RefusedError(
                f"The input ({item.tokens} tokens) is longer than the "
                f"model's context length ({encoder.context_tokens} tokens)."
            )
    return items


def _from_ids(inputs: Sequence[Sequence[int]], encoder: Encoder, name: str) -> list[Prepared]:
    if not isinstance(encoder, TokenEncoder):
        raise RefusedError(
            f"Model '{name}' takes no token ids. Send the text itself: LangChain's "
            f"OpenAIEmbeddings does with check_embedding_ctx_length=False."
        )
    try:
        return [encoder.prepare_ids(ids) for ids in inputs]
    except ValueError as error:
        raise RefusedError(str(error)) from error


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """A checked body of ``POST /v1/tokenize``.

    Attributes:
        prompt: One text, or a list of them.
        special_tokens: Whether the tokens that the model adds are wanted too.
    """

    prompt: str | list[str]
    special_tokens: bool = True

    def tokenize(self, encoder: TokenEncoder) -> list[int] | list[list[int]]:
        """Return the ids of the one text, or of each text of the list."""
        if isinstance(self.prompt, str):
            return encoder.tokenize(self.prompt, special_tokens=self.special_tokens)
        return [encoder.tokenize(text, special_tokens=self.special_tokens) for text in self.prompt]


def parse_tokenize(content_type: str, body: bytes) -> TokenizeRequest:
    """Return the request in ``body``.

    Raises:
        RefusedError: It is not JSON, or not of the schema.
    """
    fields = parse_object(content_type, body)
    prompt, special = fields.get("prompt"), fields.get("add_special_tokens", True)
    listed = prompt if isinstance(prompt, list) else [prompt]
    if not all(isinstance(text, str) for text in listed):
        raise schema_refusal("prompt", "Input should be a string or a list of strings")
    if not isinstance(special, bool):
        raise schema_refusal("add_special_tokens", "Input should be a valid boolean")
    return TokenizeRequest(prompt, special)  # type: ignore[arg-type]  # checked above


def token_reply(ids: Sequence[Any], context_tokens: int) -> dict[str, Any]:
    """Return the body that answers ``POST /v1/tokenize``."""
    nested = bool(ids) and isinstance(ids[0], list)
    count = [len(each) for each in ids] if nested else len(ids)
    return {"tokens": ids, "count": count, "max_model_len": context_tokens}
