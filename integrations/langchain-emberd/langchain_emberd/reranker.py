"""``EmberdReranker``: LangChain's ``BaseDocumentCompressor`` over ``emberd.Reranker``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any, ClassVar, Final, Self

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import Field

from emberd import DEFAULT_RERANKER, Reranker, TextError
from langchain_emberd.construction import SettingsModel

_SCORE: Final = "relevance_score"  # the key that other rerankers for LangChain use too
_COPIES_A_STEP: Final = 32


class EmberdReranker(SettingsModel, BaseDocumentCompressor):
    """A document compressor that orders documents by how well they answer the query.

    Qwen3-Reranker scores them, on a server that is found on this machine, or started by the first
    call; it is another one than that of ``EmberdEmbeddings``. The conventions are those of
    ``EmberdEmbeddings``: construction opens no connection and starts nothing. A setting that is not
    given is taken from the environment (``EMBERD_RERANK_MODEL``, ``EMBERD_RERANK_BASE_URL``,
    ``EMBERD_RERANK_API_KEY``, ...), else it is the default; the fields show the resolved values.
    Objects are immutable: ``model_copy(update={...})`` returns another one. Pickles contain no key;
    it is taken from ``EMBERD_RERANK_API_KEY`` where an object is unpickled.

    Setup:
        .. code-block:: bash

            pip install langchain-emberd

        ``emberd doctor Qwen/Qwen3-Reranker-4B`` reports what it needs and this machine lacks.

    Key init args:
        model: str
            Name on the hub, or a folder; by default ``Qwen/Qwen3-Reranker-4B``.
        top_n: int | None
            How many documents to return; by default all of them, in order.
        instruction: str | None
            What makes a document relevant: a task in words, or the name of a task such as
            ``"code"``. By default that of the model, which is web search unless its files have
            another one.
        base_url: str | None
            A server to use; emberd then starts none.
        api_key: SecretStr | None
            The key of that server.
        truncate: bool
            Cut documents that are too long instead of refusing them.

        ``revision``, ``quantization``, ``engine``, ``device``, ``context_tokens``,
        ``deterministic``, ``batch_size``, ``max_concurrency``, ``timeout``, ``start_timeout`` and
        ``idle_timeout`` are those of ``emberd.Reranker``.

    Instantiate:
        .. code-block:: python

            from langchain_emberd import EmberdReranker

            reranker = EmberdReranker(top_n=5)

    Use in a retriever:
        .. code-block:: python

            from langchain_classic.retrievers import ContextualCompressionRetriever

            retriever = ContextualCompressionRetriever(
                base_retriever=store.as_retriever(search_kwargs={"k": 50}),
                base_compressor=reranker,
            )
            documents = retriever.invoke("Does vitamin D prevent colds?")
            documents[0].metadata["relevance_score"]

    Use by itself:
        .. code-block:: python

            ordered = reranker.compress_documents(documents, "Does vitamin D prevent colds?")

    Async:
        .. code-block:: python

            ordered = await reranker.acompress_documents(documents, "Does vitamin D ...?")

    Raises:
        pydantic.ValidationError: A field does not exist, or a value is invalid.
    """

    _wraps: ClassVar[type[Reranker]] = Reranker
    _setting_of: ClassVar[dict[str, str]] = {
        name: name for name in (*SettingsModel.model_fields, "instruction")
    }
    _elsewhere: ClassVar[dict[str, str]] = {
        "model_name": "model",
        "top_k": "top_n",
        "cohere_api_key": "api_key",
        "query_instruction": "instruction",
    }

    model: str = DEFAULT_RERANKER
    """Name on the hub, or a folder."""
    instruction: str | None = None
    """What makes a document relevant, as given; else the model's default."""
    top_n: int | None = Field(default=None, ge=1)
    """How many documents to return; None for all."""

    @classmethod
    def from_reranker(cls, reranker: Reranker, **others: Any) -> Self:
        """Return an object that uses a ``Reranker``, which may have your own client or manager.

        Args:
            reranker: Provides all settings; the environment is not read again.
            **others: Fields that are not settings, such as ``top_n``.

        Raises:
            pydantic.ValidationError: It is not a ``Reranker``, or a setting is given as well.
        """
        return cls._over(reranker, others)

    @property
    def reranker(self) -> Reranker:
        """The framework-free reranker that this object uses; it takes texts."""
        reranker: Reranker = self._wrapped
        return reranker

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 - LangChain's signature
    ) -> list[Document]:
        """Return copies of the documents in the order of their scores, the best first.

        The score, 0 to 1, is ``metadata["relevance_score"]`` of a copy. Metadata that Python cannot
        copy deeply, such as a lock, is shared with the document.

        Args:
            documents: Any number of documents; they are scored in batches.
            query: The query, without an instruction.
            callbacks: Have no effect, as in other rerankers.

        Raises:
            emberd.EmberdError: The documents were not scored; the text says why and what to do.
        """
        documents = _as_list(documents)
        ranked = self.reranker.rerank(query, _texts(documents), self.top_n)
        return [_copy(documents[each.index], each.score) for each in ranked]

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 - LangChain's signature
    ) -> list[Document]:
        """Return what ``compress_documents`` returns, without blocking the event loop."""
        documents = _as_list(documents)
        ranked = await self.reranker.arerank(query, _texts(documents), self.top_n)
        copies = []
        for number, each in enumerate(ranked, start=1):
            copies.append(_copy(documents[each.index], each.score))
            if number % _COPIES_A_STEP == 0:
                await asyncio.sleep(0)
        return copies

    @classmethod
    def _shown(cls, wrapped: Reranker) -> dict[str, Any]:
        task = wrapped.instruction or wrapped.default_instruction
        return {**super()._shown(wrapped), "instruction": task}


def _as_list(documents: Any) -> list[Any]:
    if not isinstance(documents, Iterable):
        raise TextError(
            f"documents is of type {type(documents).__name__}, not a list of documents. Pass a "
            f"list of Document.",
            index=0,
        )
    return list(documents)


def _texts(documents: Iterable[Document]) -> list[str]:
    texts = []
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise TextError(
                f"documents[{index}] is of type {type(document).__name__}, not Document. Wrap "
                f"a text: Document(page_content=...).",
                index=index,
            )
        texts.append(document.page_content)
    return texts


def _copy(document: Document, score: float) -> Document:
    try:
        metadata = deepcopy(document.metadata)
    except Exception:  # noqa: BLE001 - whatever the class of a value raises
        metadata = document.metadata
    return document.model_copy(update={"metadata": {**metadata, _SCORE: score}})
