"""Components for Haystack over ``emberd.Embedder`` and ``emberd.Reranker``.

Needs the package ``haystack-ai``, version 3: ``pip install 'emberd[haystack]'``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_from_dict, default_to_dict
from haystack.utils import Secret

from emberd.adapters.construction import embedder_from, restored, saved, storable
from emberd.embedder import Embedder
from emberd.errors import SettingError, TextError
from emberd.model_user import ModelInfo
from emberd.reranker import Reranker

_KEY = "api_key"


class _Component:
    """What the components share: a server that is found or started by ``warm_up``."""

    _user: Embedder | Reranker

    def warm_up(self) -> None:
        """Find the server, or start it; ``run`` would do so too."""
        self._user.ensure()

    async def warm_up_async(self) -> None:
        """Like ``warm_up``, on the running event loop."""
        await self._user.aensure()

    def close(self) -> None:
        """Close the connections of ``run``; the next use opens them again."""
        self._user.close()

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model without asking a server, as ``emberd.ModelInfo``."""
        return self._user.model_info

    async def close_async(self) -> None:
        """Close the connections of ``run_async``; the next use opens them again."""
        await self._user.aclose()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Any:
        """Return the component that ``to_dict`` described."""
        return default_from_dict(cls, data)

    @property
    def _meta(self) -> dict[str, Any]:
        return {"model": self._user.settings.model}


class _EmbedderComponent(_Component):
    """What the two embedders share."""

    # Not __init__: ``component`` makes another class of each, in which super() does not work.
    def _set_up(
        self, model: str | os.PathLike[str] | Embedder | None, settings: dict[str, Any]
    ) -> None:
        self._given = settings
        usable = _with_key(settings)
        if "identity" in usable:
            self._user = restored({"model": model, **usable})
        else:
            self._user = embedder_from(model, usable, type(self).__name__)

    @property
    def embedder(self) -> Embedder:
        """The embedder that this component uses."""
        embedder: Embedder = self._user  # type: ignore[assignment]  # see __init__
        return embedder

    @property
    def dimensions(self) -> int:
        """Length of the vectors; raises as ``Embedder.dimensions``."""
        return self.embedder.dimensions

    def _saved(self) -> dict[str, Any]:
        return {**saved(self.embedder, self._given), **_kept_key(self._given)}


@component
class EmberdTextEmbedder(_EmbedderComponent):
    """Embeds a query, in the model's template of queries.

    ``to_dict`` contains model, revision, dimensions and templates as they are resolved now, and
    other arguments that are given. The key of a server is taken from ``EMBERD_API_KEY``, or from
    ``api_key=Secret.from_env_var(...)``.

    Args:
        model: Name on the hub, a folder, or an ``Embedder``; by default as for ``Embedder``.
        **settings: Any argument of ``Embedder``.

    Raises:
        SettingError: A value is invalid.
    """

    def __init__(
        self, model: str | os.PathLike[str] | Embedder | None = None, **settings: Any
    ) -> None:
        self._set_up(model, settings)

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    def run(self, text: str) -> dict[str, Any]:
        """Return the vector of a query as ``embedding``, and the model's name as ``meta``."""
        return {"embedding": self.embedder.embed_query(text).tolist(), "meta": self._meta}

    @component.output_types(embedding=list[float], meta=dict[str, Any])
    async def run_async(self, text: str) -> dict[str, Any]:
        """Like ``run``, on the running event loop."""
        return {"embedding": (await self.embedder.aembed_query(text)).tolist(), "meta": self._meta}

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a dictionary."""
        described: dict[str, Any] = default_to_dict(self, **self._saved())
        return described


@component
class EmberdDocumentEmbedder(_EmbedderComponent):
    """Embeds documents, in the model's template of documents.

    ``to_dict`` and the key are as for ``EmberdTextEmbedder``.

    Args:
        model: Name on the hub, a folder, or an ``Embedder``; by default as for ``Embedder``.
        meta_fields_to_embed: Fields of the metadata that are embedded before the content.
        embedding_separator: What stands between these fields and the content.
        **settings: Any argument of ``Embedder``.

    Raises:
        SettingError: A value is invalid.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Embedder | None = None,
        *,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        **settings: Any,
    ) -> None:
        self._set_up(model, settings)
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return copies of the documents with their vectors, and the model's name as ``meta``."""
        vectors = self.embedder.embed_documents(self._texts(documents))
        return {"documents": _with_vectors(documents, vectors), "meta": self._meta}

    @component.output_types(documents=list[Document], meta=dict[str, Any])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Like ``run``, on the running event loop."""
        vectors = await self.embedder.aembed_documents(self._texts(documents))
        return {"documents": _with_vectors(documents, vectors), "meta": self._meta}

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a dictionary."""
        described: dict[str, Any] = default_to_dict(
            self,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
            **self._saved(),
        )
        return described

    def _texts(self, documents: Sequence[Document]) -> list[str]:
        return _texts(documents, self.meta_fields_to_embed, self.embedding_separator)


@component
class EmberdRanker(_Component):
    """Orders documents by how well they answer a query, with Qwen3-Reranker.

    The key of a server is taken from ``EMBERD_RERANK_API_KEY``, or from
    ``api_key=Secret.from_env_var(...)``.

    Args:
        model: Name on the hub, a folder, or a ``Reranker``; by default as for ``Reranker``.
        top_k: How many documents to return; None for all.
        meta_fields_to_embed: Fields of the metadata that are read before the content.
        embedding_separator: What stands between these fields and the content.
        **settings: Any argument of ``Reranker``, such as ``instruction``.

    Raises:
        SettingError: A value is invalid.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Reranker | None = None,
        *,
        top_k: int | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        **settings: Any,
    ) -> None:
        if isinstance(model, Reranker):
            if settings:
                raise SettingError(
                    f"{min(settings)} is given together with a Reranker, which has all settings. "
                    f"Give it to the Reranker."
                )
            self._user = model
        else:
            self._user = Reranker(model, **_with_key(settings))
        self.top_k = top_k
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self._given = settings

    @property
    def reranker(self) -> Reranker:
        """The reranker that this component uses."""
        reranker: Reranker = self._user  # type: ignore[assignment]  # see __init__
        return reranker

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, Any]:
        """Return copies of the documents in the order of their ``score``, the best first.

        Args:
            query: The query, without an instruction.
            documents: Any number of documents.
            top_k: Instead of that of this component.
        """
        most = self.top_k if top_k is None else top_k
        return _ranked(documents, self.reranker.rerank(query, self._texts(documents), most))

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, Any]:
        """Like ``run``, on the running event loop."""
        most = self.top_k if top_k is None else top_k
        return _ranked(documents, await self.reranker.arerank(query, self._texts(documents), most))

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a dictionary."""
        info = self.reranker.model_info
        resolved = {
            "revision": info.revision,
            "quantization": info.quantization,
            "instruction": self.reranker.instruction,
            "truncate": self.reranker.settings.truncate,
        }
        described: dict[str, Any] = default_to_dict(
            self,
            model=info.model,
            top_k=self.top_k,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
            **{
                **storable(self._given),
                **{name: value for name, value in resolved.items() if value is not None},
            },
            **_kept_key(self._given),
        )
        return described

    def _texts(self, documents: Sequence[Document]) -> list[str]:
        return _texts(documents, self.meta_fields_to_embed, self.embedding_separator)


def _with_key(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the key that Haystack's ``Secret`` stands for."""
    key = settings.get(_KEY)
    return {**settings, _KEY: key.resolve_value()} if isinstance(key, Secret) else dict(settings)


def _kept_key(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a key that Haystack can serialise, which is only the name of a variable."""
    key = given.get(_KEY)
    return {_KEY: key} if isinstance(key, Secret) else {}


def _texts(documents: Any, fields: Sequence[str], separator: str) -> list[str]:
    if not isinstance(documents, list):
        raise TextError(
            f"documents is of type {type(documents).__name__}, not a list of documents. Pass a "
            f"list of Document.",
            index=0,
        )
    texts = []
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TextError(
                f"documents[{index}] is of type {type(document).__name__}, not Document. Wrap a "
                f"text: Document(content=...).",
                index=index,
            )
        meta = [str(document.meta[name]) for name in fields if document.meta.get(name) is not None]
        texts.append(separator.join([*meta, document.content or ""]))
    return texts


def _with_vectors(documents: Sequence[Document], vectors: Any) -> list[Document]:
    return [
        replace(document, embedding=vector)
        for document, vector in zip(documents, vectors.tolist(), strict=True)
    ]


def _ranked(documents: Sequence[Document], ranked: Any) -> dict[str, Any]:
    return {"documents": [replace(documents[each.index], score=each.score) for each in ranked]}
