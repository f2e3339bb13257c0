"""The embedder: texts to vectors, with a server that is found or started at first use."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

from emberd import env, index_identity
from emberd.client.inputs import as_list
from emberd.endpoint import Secret
from emberd.errors import SettingError, TextError
from emberd.model_user import FIELDS, ModelInfo, ModelUser, common_url
from emberd.prompts import Role
from emberd.settings import UNSET, Settings, Unset
from emberd.system import fork

if TYPE_CHECKING:
    from emberd.cache.cache import Cache, VectorCache
    from emberd.client.vectors import Floats
    from emberd.verified_manager import Manager

Texts = Iterable[str]
AnyTexts = Iterable[str] | AsyncIterable[str]
OnDone = Callable[[int], None]

# Settings that neither the server nor the connections depend on.
_PER_CALL: Final = frozenset(
    {
        *("dimensions", "query_instruction", "document_instruction", "symmetric"),
        *("batch_size", "truncate", "server_dimensions", "show_progress"),
    }
)


class Embedder(ModelUser):
    """Texts to vectors, as NumPy arrays of float32 whose rows have norm one.

    At the first use a server for the model is found, or started if there is none. Instances can be
    shared by threads, event loops and forked children, and pickled; pickles contain neither keys
    nor clients.

    Args:
        model: Name on the hub, or a folder; ``EMBERD_MODEL``, else Qwen/Qwen3-Embedding-4B.
        dimensions: Length of the vectors; None for the ``truncate_dim`` of a model's folder, else
            native.
        query_instruction: None for the model's default task, ``""`` for none; else a task in
            words, the name of a task in ``emberd.TASKS``, or a template that contains ``{text}``.
        document_instruction: The same for documents; none by default.
        symmetric: Embed queries as documents, with the one instruction that is given, or the
            model's for documents: for tasks that compare texts of one kind.
        base_url: A server to use; emberd then starts none.
        api_key: Its key.
        revision: Commit of the model on the hub.
        quantization: ``"fp8"`` for weights of eight bits: they take half of the memory, need a GPU
            of compute capability 8.9, and give other vectors; see docs/gpu-memory.md.
        engine: Which engine may serve.
        device: ``"cuda"`` or ``"cpu"``.
        context_tokens: Longest text that must fit, in tokens. Servers with a smaller limit are not
            used; a started server reserves memory for this length.
        deterministic: A text gets the same vector, to the bit, alone and in any batch. Servers that
            do not promise that are not used; it costs speed, see docs/lifecycle.md.
        batch_size: Maximum number of texts in one request.
        max_concurrency: Maximum number of requests in flight in this process.
        timeout: Time limit of one request: seconds, or a text such as ``"90s"``.
        start_timeout: How long to wait for a server to start, in the same form.
        idle_timeout: Time without use after which a started server stops, in the same form; None
            or ``"never"`` to keep it running.
        truncate: Cut texts that are too long instead of refusing them.
        server_dimensions: Let the server cut vectors to ``dimensions``: less to transfer.
        show_progress: Show a progress bar while documents are embedded.
        cache: Where vectors are cached: ``"sqlite"``, or a URL; see docs/caching.md.
        manager: Finds and starts servers, instead of a default ``Manager``.
        client: An ``openai.OpenAI`` to use; emberd then uses its server and starts none. It reads a
            reply that reports an error whole, however large it is: use it with servers you trust.
        async_client: The same as ``openai.AsyncOpenAI``, for the asynchronous methods.

    Raises:
        SettingError: A value is invalid; the text names it.
    """

    _unsymmetric: Settings | None  # those from which using(symmetric=True) made these

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        dimensions: int | None = None,
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        symmetric: bool | None = None,
        base_url: str | None = None,
        api_key: str | Secret | None = None,
        revision: str | None = None,
        quantization: str | None = None,
        engine: str | None = None,
        device: str | None = None,
        context_tokens: int | None = None,
        deterministic: bool | None = None,
        batch_size: int | None = None,
        max_concurrency: int | None = None,
        timeout: float | str | None = None,
        start_timeout: float | str | None = None,
        idle_timeout: float | str | Unset | None = UNSET,
        truncate: bool | None = None,
        server_dimensions: bool | None = None,
        show_progress: bool | None = None,
        cache: str | None = None,
        manager: Manager | None = None,
        client: Any = None,
        async_client: Any = None,
    ) -> None:
        arguments = locals()
        given = {field.name: arguments[field.name] for field in FIELDS}
        given["base_url"] = common_url(base_url, client, async_client)
        settings = Settings.resolve(**given)
        with env.named_in_errors(["cache"] if cache is None else []):
            self._build(settings, manager, client, async_client)

    def embed_documents(self, texts: Iterable[str]) -> Floats:
        """Return the vectors of documents, ``(n, dimensions)``.

        Args:
            texts: Texts that fit into memory together; for more, use ``iter_documents``.

        Raises:
            TextError: A text cannot be embedded; ``index`` is its place in ``texts``.
            ServerError: No server is available.
            RequestError: The server refused the request, failed, or sent an invalid reply.
        """
        template = self.document_template
        with self._progress(texts) as (counted, on_done):
            return self._client().embed(counted, template, on_done)

    def embed_queries(self, texts: Iterable[str]) -> Floats:
        """Return the vectors of queries, ``(n, dimensions)``; raises as ``embed_documents``."""
        template = self.query_template
        return self._client().embed(texts, template)

    def embed_query(self, text: str) -> Floats:
        """Return the vector of one query, ``(dimensions,)``; raises as ``embed_documents``."""
        vector: Floats = self.embed_queries([text])[0]
        return vector

    async def aembed_documents(self, texts: Iterable[str]) -> Floats:
        """Like ``embed_documents``, on the running event loop."""
        await self._aprepare()
        with self._progress(texts) as (counted, on_done):
            return await (await self._aclient()).embed(counted, self.document_template, on_done)

    async def aembed_queries(self, texts: Iterable[str]) -> Floats:
        """Like ``embed_queries``, on the running event loop."""
        await self._aprepare()
        return await (await self._aclient()).embed(texts, self.query_template)

    async def aembed_query(self, text: str) -> Floats:
        """Like ``embed_query``, on the running event loop."""
        vector: Floats = (await self.aembed_queries([text]))[0]
        return vector

    @overload
    def iter_documents(
        self, texts: Texts, *, set_aside: Literal[False] = False, on_done: OnDone | None = None
    ) -> Iterator[Floats]: ...
    @overload
    def iter_documents(
        self, texts: Texts, *, set_aside: bool, on_done: OnDone | None = None
    ) -> Iterator[Floats | TextError]: ...
    def iter_documents(
        self, texts: Texts, *, set_aside: bool = False, on_done: OnDone | None = None
    ) -> Iterator[Floats | TextError]:
        """Yield the vector of each document, ``(dimensions,)``, in order and in constant memory.

        Texts are read as needed, up to two thousand ahead of the vectors, in windows whose requests
        overlap; while no vector is taken, no more texts are read. A source that waits for vectors
        before it gives more texts therefore waits for ever, and a source that pauses delays the
        vectors of the texts it gave. A vector is a row of its window's array: copy those you keep.

        Args:
            texts: Any number of texts; those of a generator are never all in memory.
            set_aside: Yield the error of a text that cannot be embedded in place of its vector,
                and continue, instead of raising it.
            on_done: Called with how many texts have their vector so far, those that are not
                yielded yet included.

        Raises:
            TextError: A text cannot be embedded; its ``index`` is its place in ``texts``.
            ServerError: No server is available.
            RequestError: The server refused the request, failed, or sent an invalid reply.
        """
        return self._iterate(texts, "document", set_aside=set_aside, on_done=on_done)

    @overload
    def iter_queries(
        self, texts: Texts, *, set_aside: Literal[False] = False, on_done: OnDone | None = None
    ) -> Iterator[Floats]: ...
    @overload
    def iter_queries(
        self, texts: Texts, *, set_aside: bool, on_done: OnDone | None = None
    ) -> Iterator[Floats | TextError]: ...
    def iter_queries(
        self, texts: Texts, *, set_aside: bool = False, on_done: OnDone | None = None
    ) -> Iterator[Floats | TextError]:
        """Yield the vector of each query; arguments and errors are those of ``iter_documents``."""
        return self._iterate(texts, "query", set_aside=set_aside, on_done=on_done)

    @overload
    def aiter_documents(
        self, texts: AnyTexts, *, set_aside: Literal[False] = False, on_done: OnDone | None = None
    ) -> AsyncGenerator[Floats]: ...
    @overload
    def aiter_documents(
        self, texts: AnyTexts, *, set_aside: bool, on_done: OnDone | None = None
    ) -> AsyncGenerator[Floats | TextError]: ...
    def aiter_documents(
        self, texts: AnyTexts, *, set_aside: bool = False, on_done: OnDone | None = None
    ) -> AsyncGenerator[Floats | TextError]:
        """Like ``iter_documents``, on the running event loop; ``texts`` may be asynchronous."""
        return self._aiterate(texts, "document", set_aside=set_aside, on_done=on_done)

    @overload
    def aiter_queries(
        self, texts: AnyTexts, *, set_aside: Literal[False] = False, on_done: OnDone | None = None
    ) -> AsyncGenerator[Floats]: ...
    @overload
    def aiter_queries(
        self, texts: AnyTexts, *, set_aside: bool, on_done: OnDone | None = None
    ) -> AsyncGenerator[Floats | TextError]: ...
    def aiter_queries(
        self, texts: AnyTexts, *, set_aside: bool = False, on_done: OnDone | None = None
    ) -> AsyncGenerator[Floats | TextError]:
        """Like ``iter_queries``, on the running event loop; ``texts`` may be asynchronous."""
        return self._aiterate(texts, "query", set_aside=set_aside, on_done=on_done)

    @property
    def dimensions(self) -> int:
        """Length of the vectors; nothing is embedded and no server is started to learn it.

        It is known from the setting, the catalog or the model's files. These are fetched from the
        hub if they are not on this machine. Otherwise, the server that was used last shows it. If
        there is none yet and a ``base_url`` or a client is given, that server is verified as at the
        first use; on an event loop, await ``aensure()`` first.

        Raises:
            SettingError: Only a server that is not running yet can show it.
            EmberdError: The given server cannot be used, or as ``query_template``.
        """
        known = self.model_info.dimensions
        if known is not None:
            return known
        if self._settings.base_url is None:
            raise SettingError(
                f"The length of the vectors of {self._settings.model} is known when its server "
                f"runs: no file on this machine shows it. Call ensure() first, which finds or "
                f"starts the server, or give dimensions=."
            )
        return self.endpoint().dimensions

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model and its vectors without asking a server.

        The files that describe the model are fetched from the hub if they are not on this machine;
        raises as ``query_template``.
        """
        self._prepare()
        settings, endpoint = self._settings, self._handle.endpoint
        native = settings.known.dimensions
        if native is None and endpoint is not None:
            native = endpoint.dimensions
        return replace(
            super().model_info,
            dimensions=settings.dimensions or native,
            native_dimensions=native,
            query_template=settings.query_template,
            document_template=settings.document_template,
        )

    @property
    def cache(self) -> Cache | None:
        """The cache, which counts hits and misses; None if there is none."""
        memory = self._cache_adapter()
        return memory.cache if memory is not None else None

    @property
    def query_template(self) -> str:
        """The template of queries, which contains ``{text}``.

        Raises:
            HubError: It is in a file on the hub that cannot be fetched.
            InstructionError: The model's files do not describe it, and it is not given.
            SettingError: A setting does not suit the model that the files describe.
        """
        self._prepare()
        return self._settings.query_template

    @property
    def document_template(self) -> str:
        """The template of documents, which contains ``{text}``; raises as ``query_template``."""
        self._prepare()
        return self._settings.document_template

    @property
    def identity(self) -> str:
        """What determines the vectors of a text, as a short text to store with an index.

        It contains model, revision, dimensions and instructions; see ``emberd.index_identity``.
        """
        settings = self._settings
        if not self._is_prepared and (settings.is_described or not settings.has_templates):
            self._prepare()
        return index_identity.identity(self._settings, self._handle.spec)

    def check_identity(self, kept: str) -> None:
        """Raise unless the index with the identity ``kept`` was made with equal settings.

        Raises:
            IdentityError: The settings differ; the text names both and the differences.
        """
        index_identity.check(kept, self.identity, self._settings)

    def using(self, **changes: Any) -> Self:
        """Return an embedder with some settings changed, on the same server and connections.

        Args:
            **changes: Any of ``dimensions``, ``query_instruction``, ``document_instruction``,
                ``symmetric``, ``batch_size``, ``truncate``, ``server_dimensions`` and
                ``show_progress``.

        Raises:
            SettingError: A value is invalid, or the setting cannot change without a new server.
        """
        settings = self._settings.changed(**changes)
        if refused := sorted(set(changes) - _PER_CALL):
            raise SettingError(
                f"{refused[0]} cannot be changed for one call. These can: "
                f"{', '.join(sorted(_PER_CALL))}. For others, make a new object."
            )
        self._handle.warn_of_cut(settings)
        twin = self._sharing()
        twin._settings = settings
        twin._is_native = self._stays_native(changes)
        # Without its files, a model has only the templates that are given.
        twin._is_prepared = self._is_prepared and settings.has_templates
        if twin._is_prepared:
            twin._settings = settings.with_card(self._settings.known)
        given = changes.keys() & {"query_instruction", "document_instruction"}
        if given or "symmetric" in changes:
            twin._unsymmetric = self._settings if settings.symmetric and not given else None
        if twin._unsymmetric is None or twin._unsymmetric.has_templates:
            twin._check_symmetric()
        return twin

    def replace(self, **changes: Any) -> Self:
        """Return another embedder with some settings changed; the environment is not read.

        It uses the same manager, and the same given clients unless its server is another. With
        ``base_url`` on another origin, it has no key unless ``api_key`` is given too.

        Args:
            **changes: Any settings. None is a value here; it does not mean "not given".

        Raises:
            SettingError: A value is invalid; the text names it.
        """
        other = super().replace(**changes)
        other._is_native = self._stays_native(changes)
        return other

    def __getstate__(self) -> dict[str, Any]:
        own = {"is_native": self._is_native, "unsymmetric": self._unsymmetric}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._is_native = state["is_native"]
        self._unsymmetric = state["unsymmetric"]

    def _iterate(
        self, texts: Texts, role: Role, *, set_aside: bool, on_done: OnDone | None
    ) -> Iterator[Floats | TextError]:
        template = self._template(role)
        stream = self._client().stream(texts, template, set_aside=set_aside, on_done=on_done)
        with closing(stream) as windows:
            for window in windows:
                yield from window

    async def _aiterate(
        self, texts: AnyTexts, role: Role, *, set_aside: bool, on_done: OnDone | None
    ) -> AsyncGenerator[Floats | TextError]:
        await self._aprepare()
        client = await self._aclient()
        stream = client.stream(texts, self._template(role), set_aside=set_aside, on_done=on_done)
        async with aclosing(stream) as windows:
            async for window in windows:
                for row in window:
                    yield row

    def _template(self, role: Role) -> str:
        return self.query_template if role == "query" else self.document_template

    def _build(
        self,
        settings: Settings,
        manager: Manager | None = None,
        client: Any = None,
        async_client: Any = None,
    ) -> None:
        super()._build(settings, manager, client, async_client)
        # The files that describe the model may have arrived since the settings were checked.
        self._is_prepared = self._is_native = False
        self._unsymmetric = None
        self._vector_cache: VectorCache | None = None
        if settings.cache is not None:
            with fork.no_fork():  # a child would inherit the locks of imports
                from emberd.cache import urls

            urls.parse(settings.cache)  # an invalid one is refused here, not at first use

    def _prepare(self) -> None:
        """Fetch what describes a model on the hub, before the first text."""
        if self._is_prepared:
            return
        if not self._asking.is_described:
            self._handle.wait(("card", self._asking), self._asking.obtain_card)
        self._check()

    async def _aprepare(self) -> None:
        if not self._is_prepared:
            await self._handle.run(("card", self._asking), self._asking.obtain_card)
            self._check()

    @property
    def _asking(self) -> Settings:
        # Which files are asked for, and whether their lack is an error, depends on the settings.
        return self._unsymmetric or self._settings

    def _check(self) -> None:
        """Check what was set before the files of the model were known."""
        self._settings.check_card(native=self._is_native)
        self._check_symmetric()
        self._settings = kept = self._settings.with_card(self._settings.known)
        if self._sync is not None:  # made by `ensure`
            self._sync = self._sync.using(kept)
        if self._async is not None:
            self._async = self._async.using(kept)
        self._is_prepared = True

    def _check_symmetric(self) -> None:
        """Raise if ``using(symmetric=True)`` changed the template of documents.

        The common template may be that of queries, with which the index was not made.
        """
        if self._unsymmetric is None:
            return
        old, new = self._unsymmetric.document_template, self._settings.document_template
        if new != old:
            raise SettingError(
                f"symmetric=True would embed documents with the template of queries, {new!r}, "
                f"instead of {old!r}. To embed queries as documents, pass "
                f"query_instruction={old!r}."
            )
        self._unsymmetric = None

    def _stays_native(self, changes: Mapping[str, Any]) -> bool:
        """Return whether ``dimensions=None`` was chosen for this object, or is by ``changes``."""
        if "dimensions" in changes:
            return changes["dimensions"] is None
        return self._is_native and not changes.keys() & {"model", "revision"}

    def _cache_adapter(self) -> VectorCache | None:
        if self._base is not None:
            return self._base._cache_adapter()
        if self._vector_cache is None and self._settings.cache is not None:
            with fork.no_fork():
                from emberd.cache import open_cache
                from emberd.cache.cache import VectorCache

            self._vector_cache = VectorCache(
                open_cache(self._settings.cache),
                index_identity.native(self._settings, self._handle.spec),
                self._settings.known.dimensions,
                self._settings.model,
            )
        return self._vector_cache

    @contextmanager
    def _progress(self, texts: Texts) -> Iterator[tuple[Texts, Callable[[int], None] | None]]:
        """Show a progress bar during the block, if the settings ask for one.

        Yields:
            The texts, as a list if they are counted, and what to call with the number done.
        """
        if not self._settings.show_progress:
            yield texts, None
            return
        counted = as_list(texts)
        # Imported only if there is a bar to show.
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("embedding", total=len(counted))
            yield counted, lambda finished: bar.update(task, completed=finished)
