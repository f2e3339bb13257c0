"""Text Embeddings Inference: how its tokens are read, and what is verified of it besides the rest.

It says more of itself than others do, and can be started with options that change vectors without
an error: another pooling, and a prompt that it puts before each text. Names and meanings of its
fields are those of its source (1.9.3), in ``router/src/lib.rs`` and ``core/src/tokenization.rs``.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from emberd.catalog import Model
from emberd.client import wire
from emberd.errors import ServerMismatchError
from emberd.probe import INFO

TOKENIZE: Final = "/tokenize"

_FIELDS: Final[dict[str, type]] = {
    "max_input_length": int,
    "max_client_batch_size": int,
    "auto_truncate": bool,
}

# Its names of poolings -> those of sentence-transformers 6.x. "splade" gives no such embeddings.
_POOLINGS: Final = {"cls": "cls", "mean": "mean", "last_token": "lasttoken"}


class Token(msgspec.Struct):
    """A token as the server returns it.

    Attributes:
        id: Its number.
        stop: Where it ends in the text that was tokenized, in bytes; None for a token that the
            tokenizer adds, or that is special.
    """

    id: int
    stop: int | None = None


_TOKENS: Final = msgspec.json.Decoder(list[list[Token]])


def read_tokens(body: bytes | None) -> list[Token]:
    """Return the tokens of one text from the reply to a request for them; empty if it has none.

    Args:
        body: The reply; None if there is none.
    """
    try:
        (tokens,) = _TOKENS.decode(body or b"")
    except (ValueError, RecursionError):
        return []
    return tokens


def check_info(url: str, info: dict[str, Any], model: Model) -> int:
    """Return how many texts a request may have, once its ``info`` shows nothing wrong.

    Args:
        url: Root of the server, for the text of the error.
        info: Its reply to ``INFO``.
        model: The wanted model.

    Raises:
        ServerMismatchError: It gives other vectors, or lacks a field.
    """
    for name, of_type in _FIELDS.items():
        value: Any = info.get(name)
        if type(value) is not of_type or (of_type is int and not value):
            raise ServerMismatchError(
                f"{url}{INFO} has no valid {name} ({value!r}), which emberd needs to know which "
                f"texts the server would cut or refuse. Update Text Embeddings Inference, or use "
                f"another server."
            )
    kinds = info["model_type"]
    embedding = kinds.get("embedding") if isinstance(kinds, dict) else None
    if not isinstance(embedding, dict):
        kind = ", ".join(kinds) if isinstance(kinds, dict) else str(kinds)
        raise ServerMismatchError(
            f"{url} serves {info['model_id']} as {kind}; it is not an embedding server. Give the "
            f"base_url of another one."
        )
    pooling = _POOLINGS.get(str(embedding.get("pooling")))
    if pooling is None or model.pooling not in (None, pooling):
        raise ServerMismatchError(
            f"{url} pools with {embedding.get('pooling')}, but {model.name} needs "
            f"{model.pooling or 'one vector a text'}. Start it without --pooling, or with the "
            f"model's own."
        )
    most_texts: int = info["max_client_batch_size"]
    return most_texts


def check_tokens(url: str, text: str, counted: bytes | None, embedded: bytes) -> None:
    """Raise if the server embeds other tokens than those of the text.

    Args:
        url: Root of the server.
        text: A text in ASCII, without white space at its ends.
        counted: The reply that has its tokens; None if there is none.
        embedded: The reply that has its embedding.

    Raises:
        ServerMismatchError: It does, or that cannot be seen.
    """
    tokens = read_tokens(counted)
    if not tokens:
        raise ServerMismatchError(
            f"{url}{TOKENIZE} is missing or closed, or returns no tokens. emberd needs "
            f"it to know which texts the server would cut. Open that route, or update Text "
            f"Embeddings Inference."
        )
    # Places in the text that it tokenized; tokens that its tokenizer adds have none.
    ends = [token.stop for token in tokens if token.stop is not None]
    if not ends or max(ends) > len(text):
        raise ServerMismatchError(
            f"{url} puts a prompt before each text, and emberd adds the prompts of queries and "
            f"documents itself. Start it without --default-prompt and --default-prompt-name."
        )
    if (read := wire.prompt_tokens(embedded)) != len(tokens):
        raise ServerMismatchError(
            f"{url} counted {read} tokens for a text for which its tokenizer returns "
            f"{len(tokens)}: it embeds other tokens. Update Text Embeddings Inference, or use "
            f"another server."
        )
