"""Request and reply bodies as in SGLang 0.5.23: shapes, wording, status codes.

No I/O, and nothing of the web framework: bytes in, bytes out.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from emberd.errors import BadReplyError, RejectedError
from emberd.serving.encoder import Encoder, PreparedText, TokenEncoder

JSON: Final = "application/json"

_FORMATS: Final = ("float", "base64")
_ANY_MODEL: Final = ("", "default")


class RefusedError(RejectedError):
    """A request that is answered with an error body; never leaves the server's process.

    Attributes:
        status: The HTTP status.
        kind: The ``type`` in the body.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = HTTPStatus.BAD_REQUEST,
        kind: str = "BadRequestError",
    ) -> None:
        super().__init__(message, status=int(status))
        self.kind = kind

    def render(self) -> bytes:
        """Return the body of the reply."""
        return render_error(str(self), self.status, self.kind)


class UnknownModelError(RefusedError):
    """A request for a model that is not served."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model '{name}' does not exist", status=HTTPStatus.NOT_FOUND)

    def render(self) -> bytes:
        """Return the body of the reply, which is nested, unlike those of other refusals."""
        error = {
            "message": str(self),
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        return to_json({"error": error})


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A validated body of ``POST /v1/embeddings``: either texts or token ids.

    Attributes:
        texts: The texts; none of them is blank.
        ids: Token ids, a list for each input.
        dimensions: Requested length of the vectors; None for native.
        base64: Whether the reply has base64 of little-endian float32 instead of numbers.
        model: The requested model; empty for the served one.
    """

    texts: Sequence[str] = ()
    ids: Sequence[Sequence[int]] = ()
    dimensions: int | None = None
    base64: bool = False
    model: str = ""


def parse_embeddings(content_type: str, body: bytes) -> EmbeddingRequest:
    """Return the request in ``body``.

    Raises:
        RefusedError: It is not JSON, does not match the schema, or has a blank input.
    """
    fields = parse_object(content_type, body)
    model, encoding = fields.get("model", ""), fields.get("encoding_format", "float")
    if not isinstance(model, str):
        raise schema_error("model", "Input should be a valid string")
    dimensions = fields.get("dimensions")
    if dimensions is not None and not _is_whole(dimensions):
        raise schema_error("dimensions", "Input should be a valid integer")
    if not isinstance(encoding, str):
        raise schema_error("encoding_format", "Input should be a valid string")
    if encoding not in _FORMATS:
        raise RefusedError(f"encoding_format must be either 'float' or 'base64', got {encoding!r}")
    if "input" not in fields:
        raise schema_error("input", "Field required")
    texts, ids = _read_input(fields["input"])
    return EmbeddingRequest(texts, ids, dimensions, encoding == "base64", model)


def parse_object(content_type: str, body: bytes) -> dict[str, Any]:
    """Return the JSON object in ``body``.

    Raises:
        RefusedError: It is not a JSON object, or has another content type.
    """
    if content_type.lower().split(";", maxsplit=1)[0].strip() != JSON:
        raise schema_error(
            "content-type", "Unsupported Media Type: Only 'application/json' is allowed"
        )
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise schema_error("body", "JSON decode error") from error
    if not isinstance(fields, dict):
        raise schema_error("body", "Input should be a valid dictionary")
    return fields


def _read_input(given: Any) -> tuple[Sequence[str], Sequence[Sequence[int]]]:
    if not isinstance(given, str | list):
        raise schema_error("input", "Input should be a string, a list of strings, or token ids")
    if not given:
        raise RefusedError("Input cannot be empty")
    if isinstance(given, str):
        if not given.strip():
            raise RefusedError("Input cannot be empty or whitespace only")
        return _encodable([given]), ()
    if all(isinstance(item, str) for item in given):
        _refuse_blank(given)
        return _encodable(given), ()
    if all(_is_whole(item) for item in given):
        return (), [_checked_ids(given)]
    if all(isinstance(item, list) for item in given):
        return (), [_checked_ids(item) for item in given]
    raise schema_error("input", "All items in input list must be strings, or all token ids")


def _refuse_blank(texts: Sequence[str]) -> None:
    for i, text in enumerate(texts):
        if not text.strip():
            raise RefusedError(f"Input at index {i} cannot be empty or whitespace only")


def _encodable(texts: Sequence[str]) -> Sequence[str]:
    # JSON can contain a lone surrogate, and no tokenizer takes one.
    for i, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise schema_error(f"input.{i}", "Input should be a valid Unicode string") from error
    return texts


def _checked_ids(ids: Sequence[Any]) -> Sequence[int]:
    if not ids:
        raise RefusedError("Input cannot be empty")
    for i, token in enumerate(ids):
        if not _is_whole(token):
            raise schema_error("input", "All items in input list must be integers")
        if token < 0:
            raise RefusedError(f"Token ID at index {i} must be non-negative")
    return ids


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def schema_error(place: str, message: str) -> RefusedError:
    """Return the error for a body that does not match the schema at ``place``."""
    return RefusedError(f"{place}: {message}", kind=HTTPStatus.BAD_REQUEST.phrase)


def check_model(wanted: str, served: str) -> None:
    """Raise if the requested model is not the served one.

    SGLang ignores the name; vLLM answers 404. We do as vLLM does: a vector of the wrong model goes
    unnoticed, which is worse than an error.

    Args:
        wanted: The name in the request. Empty and ``"default"``, SGLang's own default, match any.
        served: The name of the served model.

    Raises:
        UnknownModelError: The names differ.
    """
    if wanted not in (*_ANY_MODEL, served):
        raise UnknownModelError(wanted)


def check_dimensions(wanted: int | None, encoder: Encoder, name: str, *, cut_any: bool) -> None:
    """Raise if the model does not support the requested ``dimensions``.

    Args:
        wanted: The requested number.
        encoder: The model.
        name: Its name.
        cut_any: Also cut the vectors of a model that was not trained for it.

    Raises:
        RefusedError: Below one, above native, or a model whose vectors must not be cut.
    """
    if wanted is None:
        return
    if not (encoder.matryoshka or cut_any):
        raise RefusedError(
            f"Model '{name}' does not support matryoshka representation, "
            f"changing output dimensions will lead to poor results."
        )
    if wanted < 1:
        raise RefusedError("Requested dimensions must be greater than 0")
    if wanted > encoder.dimensions:
        raise RefusedError(
            f"Provided dimensions are greater than max embedding dimension: {encoder.dimensions}"
        )


def render_embeddings(
    model: str, vectors: NDArray[np.float32], tokens: int, request: EmbeddingRequest
) -> bytes:
    """Return the body of a reply with vectors.

    Args:
        model: The model's name.
        vectors: Native vectors, shape (inputs, dimensions).
        tokens: Tokens of all inputs, special tokens included.
        request: The request, for its ``dimensions`` and encoding.

    Raises:
        BadReplyError: A vector has norm zero in the requested dimensions.
    """
    if request.dimensions is not None and request.dimensions < vectors.shape[1]:
        vectors = _cut(vectors, request.dimensions)
    render = _as_base64 if request.base64 else _as_floats
    # Row by row, so that other threads can run in between: this takes up to seconds.
    rows = [
        b'{"embedding":%b,"index":%d,"object":"embedding"}' % (render(row), i)
        for i, row in enumerate(vectors)
    ]
    rest = {
        "model": model,
        "object": "list",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return b'{"data":[%b],%b' % (b",".join(rows), to_json(rest)[1:])


def _cut(vectors: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    heads = vectors[:, :dimensions]
    norms = np.linalg.norm(heads, axis=1, keepdims=True)
    if not np.all(norms > 0):
        raise BadReplyError(f"a vector cut to {dimensions} dimensions has norm zero")
    unit: NDArray[np.float32] = heads / norms
    return unit


def _as_base64(row: NDArray[np.float32]) -> bytes:
    return b'"%b"' % base64.b64encode(row.astype("<f4").tobytes())


def _as_floats(row: NDArray[np.float32]) -> bytes:
    return to_json(row.tolist())


def render_error(message: str, status: int, kind: str) -> bytes:
    """Return the body of an error reply."""
    return to_json(
        {"object": "error", "message": message, "type": kind, "param": None, "code": status}
    )


def render_unauthorized() -> bytes:
    """Return the body of a 401."""
    return to_json({"error": "Unauthorized"})


def model_entry(name: str, context_tokens: int) -> dict[str, Any]:
    """Return the entry of a model in the reply of ``/v1/models``."""
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "emberd",
        "root": name,
        "parent": None,
        "max_model_len": context_tokens,
    }


def to_json(value: Any) -> bytes:
    """Return ``value`` as compact JSON.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def prepare(request: EmbeddingRequest, encoder: Encoder, name: str) -> list[PreparedText]:
    """Return the inputs of ``request`` in the form that ``encoder`` takes; this may take seconds.

    Raises:
        RefusedError: An input is too long, or has token ids that the encoder does not take.
    """
    items = _from_ids(request.ids, encoder, name) if request.ids else encoder.prepare(request.texts)
    for item in items:
        if item.tokens >= encoder.context_tokens:
            raise RefusedError(
                f"The input ({item.tokens} tokens) is longer than the "
                f"model's context length ({encoder.context_tokens} tokens)."
            )
    return items


def _from_ids(inputs: Sequence[Sequence[int]], encoder: Encoder, name: str) -> list[PreparedText]:
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
    """A validated body of ``POST /v1/tokenize``.

    Attributes:
        prompt: One text, or a list of texts.
        special_tokens: Whether to include the tokens that the model adds.
    """

    prompt: str | list[str]
    special_tokens: bool = True

    def tokenize(self, encoder: TokenEncoder) -> list[int] | list[list[int]]:
        """Return the ids of the text, or of each text of the list."""
        if isinstance(self.prompt, str):
            return encoder.tokenize(self.prompt, special_tokens=self.special_tokens)
        return [encoder.tokenize(text, special_tokens=self.special_tokens) for text in self.prompt]


def parse_tokenize(content_type: str, body: bytes) -> TokenizeRequest:
    """Return the request in ``body``.

    Raises:
        RefusedError: It is not JSON, or does not match the schema.
    """
    fields = parse_object(content_type, body)
    prompt, special = fields.get("prompt"), fields.get("add_special_tokens", True)
    listed = prompt if isinstance(prompt, list) else [prompt]
    if not all(isinstance(text, str) for text in listed):
        raise schema_error("prompt", "Input should be a string or a list of strings")
    if not isinstance(special, bool):
        raise schema_error("add_special_tokens", "Input should be a valid boolean")
    return TokenizeRequest(prompt, special)  # type: ignore[arg-type]  # checked above


def token_reply(ids: Sequence[Any], context_tokens: int) -> dict[str, Any]:
    """Return the body of a reply to ``POST /v1/tokenize``."""
    nested = bool(ids) and isinstance(ids[0], list)
    count = [len(each) for each in ids] if nested else len(ids)
    return {"tokens": ids, "count": count, "max_model_len": context_tokens}
