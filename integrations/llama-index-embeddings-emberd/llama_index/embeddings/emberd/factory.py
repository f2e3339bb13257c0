"""``resolve_embed_model`` and ``load_embed_model``: LlamaIndex's functions, which also know emberd.

LlamaIndex has fixed lists of names (``llama-index-core`` 0.14), to which no package can add itself.
"""

from __future__ import annotations

from typing import Any, Final

from llama_index.core import embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.settings import Settings

from llama_index.embeddings.emberd.base import EmberdEmbedding

_PREFIX: Final = "emberd"


def resolve_embed_model(
    embed_model: Any = None, callback_manager: CallbackManager | None = None, **fields: Any
) -> BaseEmbedding:
    """Return the embeddings that a text such as ``"emberd:Qwen/Qwen3-Embedding-4B"`` names.

    Everything else is passed to ``llama_index.core.embeddings.resolve_embed_model``: other texts,
    objects of LlamaIndex and LangChain, and None.

    Args:
        embed_model: ``"emberd:MODEL"``; ``"emberd:"`` is emberd's default model.
        callback_manager: The callback manager of the result, by default that of ``Settings``.
        **fields: Fields of ``EmberdEmbedding``, for ``"emberd:MODEL"`` only.

    Raises:
        pydantic.ValidationError: A field does not exist, or a value is invalid.
        TypeError: Fields are given, but the text does not begin with ``"emberd:"``, or a field
            names the model again.
        ValueError: LlamaIndex does not know the text.
    """
    if isinstance(embed_model, str):
        named, colon, model = embed_model.partition(":")
        if colon and named.strip().lower() == _PREFIX:
            given: dict[str, Any] = {"model_name": model.strip()} if model.strip() else {}
            manager = callback_manager or Settings.callback_manager
            return EmberdEmbedding(callback_manager=manager, **given, **fields)
    if fields:
        raise TypeError(
            f"only 'emberd:MODEL' takes fields, but embed_model={embed_model!r} was given with "
            f"{', '.join(sorted(fields))}: leave them out, or write 'emberd:MODEL'"
        )
    return embeddings.resolve_embed_model(embed_model, callback_manager)


def load_embed_model(data: dict[str, Any]) -> BaseEmbedding:
    """Return the embeddings that ``to_dict()`` described.

    Dictionaries of other classes than ``EmberdEmbedding`` are passed to
    ``llama_index.core.embeddings.loading.load_embed_model``. A dictionary contains no key: it is
    that of ``EMBERD_API_KEY``.

    Args:
        data: The dictionary, with the name of the class in ``class_name``.

    Raises:
        ValueError: LlamaIndex does not know the class.
    """
    if data.get("class_name") == EmberdEmbedding.class_name():
        return EmberdEmbedding.from_dict(data)
    # Imported late: it imports the OpenAI client where that is installed.
    from llama_index.core.embeddings import loading

    return loading.load_embed_model(data)
