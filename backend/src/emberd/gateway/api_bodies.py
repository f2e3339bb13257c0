"""Request and reply bodies of the gateway, as OpenAI and Cohere have them. No I/O."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypedDict

import msgspec

from emberd import errors
from emberd.gateway import names
from emberd.gateway.names import Asked
from emberd.reranker import RankedDocument
from emberd.serving.bodies import FORMATS, JSON, RefusedError

MOST_TEXTS: Final = 2048
"""Most texts of a request for vectors; OpenAI's limit."""

MOST_DOCUMENTS: Final = 10_000
"""Most documents of a request for a ranking; Cohere's limit."""

# Fields that ask for vectors of another kind: a client that sends one would misread the reply.
_ONLY_FLOAT: Final = ("embedding_type", "embedding_types", "output_dtype")
_FLOATS: Final = (None, "float", ["float"], *FORMATS)

RETRY_AFTER_S: Final = 2
_RETRIED: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


# The types stop the parser at the first value of another one. A parser for any JSON would hold the
# event loop for seconds and take many times the memory of the body, such as for a list of empty
# lists. Fields that are not here are skipped.
_Scalar = str | int | float | bool | None


class _Fields(TypedDict, total=False):
    model: _Scalar
    dimensions: _Scalar
    output_dimension: _Scalar
    input_type: _Scalar
    task: _Scalar
    truncate: _Scalar


class _EmbedFields(_Fields, total=False):
    input: str | list[str]
    encoding_format: _Scalar
    embedding_type: _Scalar | list[str]
    embedding_types: _Scalar | list[str]
    output_dtype: _Scalar | list[str]


class _Document(msgspec.Struct, gc=False):
    text: str


class _RerankFields(_Fields, total=False):
    query: _Scalar
    documents: list[str | _Document]
    top_n: _Scalar
    return_documents: _Scalar


_EMBED: Final = msgspec.json.Decoder(_EmbedFields)
_RERANK: Final = msgspec.json.Decoder(_RerankFields)

_NO_INPUT: Final = "input must be a string, or a list of strings that is not empty."
_NO_DOCUMENTS: Final = "documents must be a list that is not empty."
# By the beginning of the place that msgspec names.
_WRONG: Final = {
    "input[": (
        "All items of input must be strings. Token ids are not accepted: they depend on a "
        "tokenizer, and the prompt could not be added. Send the text itself: LangChain's "
        "OpenAIEmbeddings does with check_embedding_ctx_length=False."
    ),
    "input`": _NO_INPUT,
    "documents[": "Each document must be a string, or an object with a string as text.",
    "documents`": _NO_DOCUMENTS,
}


@dataclass(frozen=True, slots=True)
class EmbedBody:
    """A validated body of a request for vectors.

    Attributes:
        model: The name in the request.
        texts: The texts.
        asked: What the fields ask for; the name may ask for more.
        base64: Whether the reply has base64 of little-endian float32 instead of numbers.
    """

    model: str
    texts: Sequence[str]
    asked: Asked
    base64: bool


@dataclass(frozen=True, slots=True)
class RerankBody:
    """A validated body of a request for a ranking.

    Attributes:
        model: The name in the request.
        query: The query.
        documents: The texts of the documents.
        top_n: How many to return; None for all.
        returns_documents: Whether the reply repeats the documents.
        asked: What the fields ask for.
    """

    model: str
    query: str
    documents: Sequence[str]
    top_n: int | None
    returns_documents: bool
    asked: Asked


def parse_embed(content_type: str, body: bytes) -> EmbedBody:
    """Return the request for vectors in ``body``.

    Raises:
        RefusedError: It is not one.
    """
    fields = _fields(content_type, body, _EMBED)
    encoding = fields.get("encoding_format")
    if encoding not in (None, *FORMATS):
        raise RefusedError(f"encoding_format={encoding!r:.40} is not one of {', '.join(FORMATS)}.")
    for name in _ONLY_FLOAT:
        if fields.get(name) not in _FLOATS:
            raise RefusedError(
                f"{name}={fields[name]!r:.40}: only vectors of float32 are returned."
            )
    given = fields.get("input")
    texts = [given] if isinstance(given, str) else given
    if not texts:
        raise RefusedError(_NO_INPUT)
    _check_count(len(texts), MOST_TEXTS, "texts")
    return EmbedBody(_model(fields), texts, names.of_fields(fields), encoding == FORMATS[1])


def parse_rerank(content_type: str, body: bytes) -> RerankBody:
    """Return the request for a ranking in ``body``.

    Raises:
        RefusedError: It is not one.
    """
    fields = _fields(content_type, body, _RERANK)
    query, given = fields.get("query"), fields.get("documents")
    if not isinstance(query, str):
        raise RefusedError("query must be a string.")
    if not given:
        raise RefusedError(_NO_DOCUMENTS)
    _check_count(len(given), MOST_DOCUMENTS, "documents")
    documents = [each.text if isinstance(each, _Document) else each for each in given]
    top_n = names.positive_integer(fields, "top_n")
    returns = fields.get("return_documents")
    if not isinstance(returns, bool | None):
        raise RefusedError("return_documents must be true or false.")
    asked = names.of_fields(fields)
    return RerankBody(_model(fields), query, documents, top_n, returns is True, asked)


def ranking(body: RerankBody, ranked: Sequence[RankedDocument], tokens: int) -> dict[str, Any]:
    """Return the reply to ``body`` in Cohere's shape, with Jina's ``model`` and ``usage``."""
    results = []
    for each in ranked:
        result: dict[str, Any] = {"index": each.index, "relevance_score": each.score}
        if body.returns_documents:
            result["document"] = {"text": body.documents[each.index]}
        results.append(result)
    return {
        "id": secrets.token_hex(16),
        "model": body.model,
        "results": results,
        "meta": {
            "api_version": {"version": "1"},
            "billed_units": {"search_units": 0},
            "tokens": {"input_tokens": tokens},
        },
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _fields(
    content_type: str, body: bytes, decoder: msgspec.json.Decoder[Any]
) -> Mapping[str, Any]:
    if content_type.lower().partition(";")[0].strip() != JSON:
        raise RefusedError(f"The Content-Type of the request must be {JSON}.")
    try:
        fields: Mapping[str, Any] = decoder.decode(body)
    except msgspec.ValidationError as error:
        place = str(error).rpartition("$.")[2]
        said = next((text for start, text in _WRONG.items() if place.startswith(start)), None)
        raise RefusedError(said or f"The body is not as in docs/serve.md: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise RefusedError("The body is not a JSON object in UTF-8.") from error
    return fields


def _model(fields: Mapping[str, Any]) -> str:
    name = fields.get("model")
    if not isinstance(name, str) or not name:
        raise RefusedError("model must be the name of a served model; /v1/models lists them.")
    return name


def _check_count(count: int, most: int, what: str) -> None:
    if count > most:
        raise RefusedError(f"{count} {what} are more than {most}. Send fewer at a time.")


# ---------------------------------------------------------------- errors

_OF_TEXT: Final = (400, 413, 422)

# The first that fits: kind of error, status, code.
_STATUSES: Final[tuple[tuple[type[Exception], HTTPStatus, str | None], ...]] = (
    (errors.TextTooLongError, HTTPStatus.BAD_REQUEST, "context_length_exceeded"),
    (errors.TextError, HTTPStatus.BAD_REQUEST, "invalid_input"),
    (errors.QueryError, HTTPStatus.BAD_REQUEST, "invalid_input"),
    (errors.StartTimeoutError, HTTPStatus.SERVICE_UNAVAILABLE, "server_starting"),
    (errors.LockTimeoutError, HTTPStatus.SERVICE_UNAVAILABLE, "server_starting"),
    (errors.ServerError, HTTPStatus.SERVICE_UNAVAILABLE, "server_unavailable"),
    (errors.ServerUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE, "server_unavailable"),
    (errors.HubError, HTTPStatus.SERVICE_UNAVAILABLE, "server_unavailable"),
    (errors.RequestTimeoutError, HTTPStatus.GATEWAY_TIMEOUT, "server_timeout"),
    # Also a server's 401: it concerns the key of the gateway, not the one of the client.
    (errors.RequestError, HTTPStatus.BAD_GATEWAY, "bad_gateway"),
)


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """What an error becomes.

    Attributes:
        status: The HTTP status.
        body: The body, in OpenAI's shape.
        headers: More headers of the reply.
    """

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]

    @classmethod
    def of(cls, error: Exception) -> ErrorReply:
        """Return the reply to a request that ``error`` ended."""
        status, code = _classify(error)
        is_known = isinstance(error, errors.EmberdError)
        message = str(error) if is_known else "Internal error. The log of the gateway has it."
        return cls.saying(message, status, code)

    @classmethod
    def saying(cls, message: str, status: int, code: str | None = None) -> ErrorReply:
        """Return a reply that says ``message``."""
        kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "api_error"
        if status == HTTPStatus.UNAUTHORIZED:
            kind, code = "authentication_error", "invalid_api_key"
        if status == HTTPStatus.NOT_FOUND and code is None:
            code = "model_not_found"
        body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
        headers = {"retry-after": str(RETRY_AFTER_S)} if status in _RETRIED else {}
        return cls(int(status), body, headers)


def _classify(error: Exception) -> tuple[int, str | None]:
    if isinstance(error, RefusedError):
        return error.status, None
    if isinstance(error, errors.RejectedError) and error.status in _OF_TEXT:
        return error.status, "invalid_input"
    for kind, status, code in _STATUSES:
        if isinstance(error, kind):
            return status, code
    return HTTPStatus.INTERNAL_SERVER_ERROR, None
