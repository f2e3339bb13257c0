"""``init_embeddings``: LangChain's function of this name, which also knows emberd.

LangChain has a fixed list of providers (``langchain`` 1.5), to which no package can add itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from langchain_core.embeddings import Embeddings

from langchain_emberd.embeddings import EmberdEmbeddings

_PROVIDER: Final = "emberd"
_ELSEWHERE: Final = ("langchain.embeddings", "langchain_classic.embeddings")


def init_embeddings(model: str, *, provider: str | None = None, **kwargs: Any) -> Embeddings:
    """Return the embeddings that a text such as ``"emberd:Qwen/Qwen3-Embedding-4B"`` names.

    Other providers than ``emberd`` are those of ``langchain.embeddings.init_embeddings``, which is
    called for them.

    Args:
        model: ``"PROVIDER:MODEL"``, or the model; ``"emberd:"`` is emberd's default model.
        provider: The provider, if ``model`` does not name it.
        **kwargs: Fields of ``EmberdEmbeddings``, or of the provider's class.

    Raises:
        ImportError: Another provider is named, and ``langchain`` is not installed.
        pydantic.ValidationError: A field does not exist, or a value is invalid.
        ValueError: LangChain does not know the provider.
    """
    named, colon, name = model.partition(":")
    if provider is None and colon and named.strip().lower() == _PROVIDER:
        return _emberd(name, kwargs)
    if provider is not None and provider.strip().lower() == _PROVIDER:
        return _emberd(model, kwargs)
    for package in _ELSEWHERE:
        try:
            others = import_module(package)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != package.partition(".")[0]:
                raise
        else:
            found: Embeddings = others.init_embeddings(model, provider=provider, **kwargs)
            return found
    raise ImportError(
        f"model={model!r} names another provider than emberd, which the package langchain knows: "
        f"pip install langchain. For emberd, write 'emberd:MODEL'."
    )


def _emberd(model: str, fields: dict[str, Any]) -> EmberdEmbeddings:
    named = {"model": model.strip()} if model.strip() else {}
    return EmberdEmbeddings(**{**named, **fields})
