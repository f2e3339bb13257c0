"""Request and reply bodies as in SGLang 0.5.23: shapes, wording, status codes.

No I/O, and nothing of the web framework: bytes in, bytes out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from emberd.errors import BadReplyError, RejectedError
from emberd.serving.encoder import Encoder, PreparedText, Scorer, TokenEncoder

try:  # several times as fast; the environment of an engine does not have it
    from pybase64 import b64encode
except ImportError:
    from base64 import b64encode  # type: ignore[assignment]  # called with the same argument

JSON: Final = "application/json"

# The reply takes up to 20 bytes of memory for each number of each vector.
_MAX_INPUTS: Final = 16_384
FORMATS: Final = ("float", "base64")
_ANY_MODEL: Final = ("", "default")


class RefusedError(RejectedError):
    """A request that is answered with an error body; never leaves the server's process.

    Args:
        message: What the client is told.
        status: The HTTP status.
        kind: The ``type`` in the body; None for the one that SGLang gives to the status.

    Attributes:
        body: The body of the reply, to be rendered as JSON.
    """

    def __init__(
        self, message: str, *, status: int = HTTPStatus.BAD_REQUEST, kind: str | None = None
    ) -> None:
        super().__init__(message, status=int(status))
        if kind is None:
            kind = "BadRequestError" if status == HTTPStatus.BAD_REQUEST else f"{status:d}"
        self.body: dict[str, Any] = {
            "object": "error",
            "message": message,
            "type": kind,
            "param": None,
            "code": self.status,
        }


class UnknownModelError(RefusedError):
    """A request for a model that is not served; its body is nested, unlike those of others."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model '{name}' does not exist", status=HTTPStatus.NOT_FOUND)
        error = {
            "message": str(self),
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        self.body = {"error": error}


def schema_error(place: str, message: str) -> RefusedError:
    """Return the error for a body that does not match the schema at ``place``."""
    return RefusedError(f"{place}: {message}", kind=HTTPStatus.BAD_REQUEST.phrase)


# ---------------------------------------------------------------- requests


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
    if dimensions is not None and type(dimensions) is not int:
        raise schema_error("dimensions", "Input should be a valid integer")
    if not isinstance(encoding, str):
        raise schema_error("encoding_format", "Input should be a valid string")
    if encoding not in FORMATS:
        raise RefusedError(f"encoding_format must be either 'float' or 'base64', got {encoding!r}")
    if "input" not in fields:
        raise schema_error("input", "Field required")
    texts, ids = _read_input(fields["input"])
    return EmbeddingRequest(texts, ids, dimensions, encoding == "base64", model)


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A validated body of ``POST /v1/score``: prompts as texts or as token ids.

    Attributes:
        texts: The prompts.
        ids: Token ids of the prompts, a list for each.
        labels: The tokens whose probabilities are compared.
        model: The requested model; empty for the served one.
    """

    texts: Sequence[str] = ()
    ids: Sequence[Sequence[int]] = ()
    labels: Sequence[int] = ()
    model: str = ""
    dimensions: None = None


def parse_score(content_type: str, body: bytes, labels: int) -> ScoreRequest:
    """Return the request in ``body``.

    Args:
        content_type: Its content type.
        body: The body.
        labels: How many tokens the model compares.

    Raises:
        RefusedError: It is not JSON, does not match the schema, or asks for what is not served.
    """
    fields = parse_object(content_type, body)
    model = fields.get("model", "")
    if not isinstance(model, str):
        raise schema_error("model", "Input should be a valid string")
    asked = fields.get("label_token_ids")
    if not isinstance(asked, list) or not all(type(each) is int and each >= 0 for each in asked):
        raise RefusedError("label_token_ids must be a list of nonnegative integers")
    if len(set(asked)) != labels or len(asked) != labels:
        raise RefusedError(f"label_token_ids must be {labels} different tokens")
    if fields.get("apply_softmax") is not True:
        raise RefusedError("This server returns probabilities only: apply_softmax must be true")
    if fields.get("query") not in (None, "", []):
        raise RefusedError("This server takes whole prompts as items: query must be empty")
    items = fields.get("items")
    if not isinstance(items, list) or not items:
        raise RefusedError("items must be a list of prompts that is not empty")
    texts, ids = _read_input(items)
    return ScoreRequest(texts, ids, asked, model)


def parse_tokenize(content_type: str, body: bytes) -> tuple[str | list[str], bool]:
    """Return the text or texts in a body of ``POST /v1/tokenize``.

    Returns:
        The text, or the list of texts, and whether to include the tokens that the model adds.

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
    return prompt, special  # type: ignore[return-value]  # checked above


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
    """Return the texts, or the lists of token ids. JSON has no other integers than ``int``."""
    if not isinstance(given, str | list):
        raise schema_error("input", "Input should be a string, a list of strings, or token ids")
    if not given:
        raise RefusedError("Input cannot be empty")
    items: list[Any] = [given] if isinstance(given, str) else given
    # Token ids of one text are numbers; their count is checked against the context.
    if len(items) > _MAX_INPUTS and not isinstance(items[0], int):
        raise RefusedError(
            f"{len(items)} inputs are more than {_MAX_INPUTS}. Send fewer texts at a time.",
            status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        )
    if all(isinstance(item, str) for item in items):
        for i, text in enumerate(items):
            if not text.strip():
                where = "Input" if isinstance(given, str) else f"Input at index {i}"
                raise RefusedError(f"{where} cannot be empty or whitespace only")
            # JSON can contain a lone surrogate, and no tokenizer takes one.
            try:
                text.encode()
            except UnicodeEncodeError as error:
                message = "Input should be a valid Unicode string"
                raise schema_error(f"input.{i}", message) from error
        return items, ()
    lists = items if all(isinstance(item, list) for item in items) else [items]
    for ids in lists:
        if not ids:
            raise RefusedError("Input cannot be empty")
        for i, token in enumerate(ids):
            if type(token) is not int:
                message = "All items in input list must be strings, or all token ids"
                raise schema_error("input", message)
            if token < 0:
                raise RefusedError(f"Token ID at index {i} must be non-negative")
    return (), lists


# ---------------------------------------------------------------- requests and the served model


def check_served(request: EmbeddingRequest | ScoreRequest, encoder: Encoder, name: str) -> None:
    """Raise if a request is for another model than the served one, or for impossible dimensions.

    SGLang ignores the model's name; vLLM answers 404. We do as vLLM does: a vector of the wrong
    model goes unnoticed, which is worse than an error. An empty name and ``"default"``, SGLang's
    own default, match any model.

    Args:
        request: The request.
        encoder: The served model.
        name: Its name.

    Raises:
        UnknownModelError: The names differ.
        RefusedError: The dimensions are below one or above native.
    """
    if request.model not in (*_ANY_MODEL, name):
        raise UnknownModelError(request.model)
    if request.dimensions is None:
        return
    if request.dimensions < 1:
        raise RefusedError("Requested dimensions must be greater than 0")
    if request.dimensions > encoder.dimensions:
        raise RefusedError(
            f"Provided dimensions are greater than max embedding dimension: {encoder.dimensions}"
        )


def prepare(
    request: EmbeddingRequest | ScoreRequest, encoder: Encoder, name: str
) -> list[PreparedText]:
    """Return the inputs of ``request`` in the form that ``encoder`` takes; this may take seconds.

    Raises:
        RefusedError: An input is too long, or has token ids that the encoder does not take.
    """
    if not request.ids:
        items = encoder.prepare(request.texts)
    elif isinstance(encoder, TokenEncoder):
        try:
            items = [encoder.prepare_ids(ids) for ids in request.ids]
        except ValueError as error:
            raise RefusedError(str(error)) from error
    else:
        raise RefusedError(
            f"Model '{name}' takes no token ids. Send the text itself: LangChain's "
            f"OpenAIEmbeddings does with check_embedding_ctx_length=False."
        )
    for item in items:
        if item.tokens >= encoder.context_tokens:
            raise RefusedError(
                f"The input ({item.tokens} tokens) is longer than the "
                f"model's context length ({encoder.context_tokens} tokens)."
            )
    if isinstance(request, ScoreRequest) and isinstance(encoder, Scorer):
        try:
            return [encoder.with_labels(item, request.labels) for item in items]
        except ValueError as error:
            raise RefusedError(str(error)) from error
    return items


# ---------------------------------------------------------------- replies


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
        heads = vectors[:, : request.dimensions]
        norms = np.linalg.norm(heads, axis=1, keepdims=True)
        if not np.all(norms > 0):
            raise BadReplyError(f"a vector cut to {request.dimensions} dimensions has norm zero")
        vectors = heads / norms
    # Row by row, so that other threads can run in between: this takes up to seconds. The pieces are
    # joined once, because each copy of a large reply takes longer than its encoding.
    pieces, begin = [b'{"data":['], b'{"embedding":'
    for i, row in enumerate(vectors):
        if request.base64:
            numbers = [b'"', b64encode(row.astype("<f4").tobytes()), b'"']
        else:
            numbers = [to_json(row.tolist())]
        pieces += (begin, *numbers, b',"index":%d,"object":"embedding"}' % i)
        begin = b',{"embedding":'
    rest = {
        "model": model,
        "object": "list",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    pieces += (b"],", to_json(rest)[1:])
    return b"".join(pieces)


def render_scores(model: str, rows: NDArray[np.float32], tokens: int) -> bytes:
    """Return the body of a reply with scores.

    Args:
        model: The model's name.
        rows: The probabilities of the labels, shape (prompts, labels).
        tokens: Tokens of all prompts.
    """
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return to_json({"object": "scoring", "scores": rows.tolist(), "model": model, "usage": usage})


def to_json(value: Any) -> bytes:
    """Return ``value`` as compact JSON.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
