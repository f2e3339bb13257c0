"""The servers' tokenizer routes: what is sent to them, and the token ids in their replies."""

from __future__ import annotations

from typing import Any, Final

from emberd.catalog import Model
from emberd.client import tei, wire
from emberd.client.inputs import SpecialTokens, split_at_special
from emberd.client.wire import Request
from emberd.endpoint import Endpoint
from emberd.errors import BadReplyError
from emberd.probe import TEI

LLAMA_CPP: Final = "llamacpp"

# In the reply, for each character of the text: four tokens, each with a number of eight digits.
_TOKEN_BYTES: Final = 40
# That of Text Embeddings Inference has an object of five fields for each token.
_OBJECT_BYTES: Final = 400

# Of SGLang and others; llama.cpp's omits the end of text by default.
_Route = tuple[str, str, dict[str, Any]]
_ROUTE: Final[_Route] = ("/v1/tokenize", "prompt", {})
OTHER_ROUTES: Final[dict[str, _Route]] = {
    "vllm": ("/tokenize", "prompt", {}),
    LLAMA_CPP: ("/tokenize", "content", {"add_special": True, "parse_special": True}),
    TEI: (tei.TOKENIZE, "inputs", {}),
}
"""Kind of server -> its route, the field of the text, and other fields."""

_TEXT_ONLY: Final = {"add_special": False, "parse_special": False}


def route(server: str) -> str:
    """Return the tokenizer route of a kind of server."""
    return OTHER_ROUTES.get(server, _ROUTE)[0]


def address(endpoint: Endpoint) -> str:
    """Return the URL of that route, for messages."""
    return f"{endpoint.url}{route(endpoint.server)}"


def tokenize_request(
    server: str, name: str, text: str, special: SpecialTokens = (), *, adds: bool = True
) -> Request:
    """Return the request that tokenizes ``text``.

    Args:
        server: The kind of server, as in its endpoint.
        name: The name under which it serves the model.
        text: The text, in its template.
        special: The special tokens of the model that llama.cpp is sent as ids, between the parts of
            the text. Its reply then has no tokens around the text.
        adds: Whether the reply includes the tokens that the tokenizer puts around a text.
    """
    path, field_name, more = OTHER_ROUTES.get(server, _ROUTE)
    content: Any = text
    if not adds:
        more = {**more, "add_special_tokens": False}
    if server == LLAMA_CPP and special:
        content, more = split_at_special(text, special), _TEXT_ONLY
    token_bytes = _OBJECT_BYTES if server == TEI else _TOKEN_BYTES
    most_bytes = wire.MOST_BYTES + len(text) * token_bytes
    return Request(path, {"model": name, field_name: content, **more}, most_bytes)


def read_ids(body: bytes) -> list[int]:
    """Return the token ids from the reply to a ``tokenize_request``.

    Raises:
        BadReplyError: It has none.
    """
    if body.lstrip().startswith(b"["):
        ids: Any = [token.id for token in tei.read_tokens(body)]
    else:
        ids = wire.parse_object(body).get("tokens")
    if not isinstance(ids, list) or not ids or not all(type(token) is int for token in ids):
        raise BadReplyError(
            "A request to tokenize was answered without a list of token ids. Check whether a "
            "server of another kind, or a proxy, answers at this address."
        )
    return ids


def read_whole(endpoint: Endpoint, body: bytes, model: Model) -> list[int]:
    """Return all token ids of a text, from the reply of ``endpoint`` to a ``tokenize_request``.

    Raises:
        BadReplyError: It has none.
    """
    ids = read_ids(body)
    if endpoint.labels:
        return ids  # nothing is put around a reranker's prompt
    if endpoint.server == LLAMA_CPP and model.special_tokens:
        end = model.end_of_text_id
        return [*model.start_ids, *ids, *([] if end is None else [end])]
    return with_added(ids, model)


def with_added(ids: list[int], model: Model) -> list[int]:
    """Return ``ids`` with the tokens that the model's own tokenizer puts around a text.

    The tokenizer route of sglang-router omits them; the server behind it adds them.
    """
    start, end = [*model.start_ids], model.end_of_text_id
    if ids[: len(start)] != start:
        ids = [*start, *ids]
    return ids if end is None or ids[-1] == end else [*ids, end]
