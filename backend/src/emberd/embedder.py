"""The embedder: joins a server, found or started at first use, with the client that asks it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final, Self

from emberd import env, handed, index_identity, progress
from emberd.endpoint import Endpoint, Secret, read_key
from emberd.errors import SettingError
from emberd.server_handle import Attachment
from emberd.settings import UNSET, Settings, Unset
from emberd.streams import Streams

if TYPE_CHECKING:
    from emberd.cache import Cache
    from emberd.client.aio import AsyncClient
    from emberd.client.sync import Client
    from emberd.client.vectors import Floats
    from emberd.manager import Server
    from emberd.recollection import Recollection
    from emberd.verified_manager import Manager

_FIELDS: Final = fields(Settings)
# What no server and no connection depends on.
_PER_CALL: Final = frozenset(
    {
        *("dimensions", "query_instruction", "document_instruction", "symmetric"),
        *("batch_size", "truncate", "server_dimensions", "show_progress"),
    }
)


class Embedder(Streams):
    """Texts to vectors, as NumPy arrays of float32 whose rows have norm one.

    Nothing happens before the first use: then a server for the model is found, or started if
    there is none, and it is used until the process ends. Instances may be shared by threads, event
    loops and forked children, and pickled; pickles carry neither keys nor clients.

    Args:
        model: Name on the hub, or a folder; ``EMBERD_MODEL``, else Qwen/Qwen3-Embedding-4B.
        dimensions: Length of the vectors; None for the ``truncate_dim`` of a model's folder, else
            native.
        query_instruction: None for the model's default task, ``""`` for none; else a task in
            words, the name of one in ``emberd.TASKS``, or a template with ``{text}`` in it.
        document_instruction: The same for documents; the default is none.
        symmetric: Queries are embedded as documents are, with the one instruction that is given
            or the model's for documents: for tasks that compare like with like, and for callers
            that know only queries.
        base_url: A server to use as it is; nothing is ever started then.
        api_key: Its key.
        revision: Commit of the model on the hub.
        engine: Which engine may serve.
        device: ``"cuda"`` or ``"cpu"``.
        context_tokens: Longest text that must fit, in tokens; a server that takes shorter ones
            alone is not used, and one that is started takes memory for no more.
        batch_size: Most texts in one request.
        max_concurrency: Most requests in flight, over the whole process.
        timeout: How long one request may take: seconds, or a text such as ``"90s"``.
        start_timeout: How long to wait for a server to start, likewise.
        idle_timeout: How long a started server stays without use, likewise: ``"5m"``; None or
            ``"never"`` for as long as the machine runs.
        truncate: Cut over-long texts instead of refusing them.
        server_dimensions: Let the server cut vectors to ``dimensions``: less to transfer.
        show_progress: Show a progress bar while documents are embedded.
        cache: Where vectors are kept, and looked for before a server is asked: ``"sqlite"``, or a
            URL; see docs/caching.md.
        manager: Finds and starts servers in place of one of our own.
        client: The user's own ``openai.OpenAI``; its server is used, nothing is ever started.
        async_client: Likewise an ``openai.AsyncOpenAI``, for the asynchronous methods.

    Raises:
        SettingError: A value cannot be used; it is named.
    """

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
        engine: str | None = None,
        device: str | None = None,
        context_tokens: int | None = None,
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
        given = {field.name: arguments[field.name] for field in _FIELDS}
        given["base_url"] = handed.one_place(base_url, client, async_client)
        self._build(Settings.resolve(**given), manager, client, async_client)

    def embed_documents(self, texts: Iterable[str]) -> Floats:
        """Return the vectors of documents, ``(n, dimensions)``.

        Args:
            texts: Any number of texts; more than fit into memory are for ``iter_documents``.

        Raises:
            TextError: A text cannot be embedded; its index is named.
            ServerError: No server could be had.
            RequestError: The server refused, failed, or answered with something else than asked.
        """
        with progress.shown(self._settings, texts) as (listed, on_done):
            return self._client().embed(listed, self.document_template, on_done)

    def embed_queries(self, texts: Iterable[str]) -> Floats:
        """Return the vectors of queries, ``(n, dimensions)``; raises as ``embed_documents``."""
        return self._client().embed(texts, self.query_template)

    def embed_query(self, text: str) -> Floats:
        """Return the vector of one query, ``(dimensions,)``; raises as ``embed_documents``."""
        vector: Floats = self.embed_queries([text])[0]
        return vector

    async def aembed_documents(self, texts: Iterable[str]) -> Floats:
        """Do as ``embed_documents``, from the running event loop."""
        with progress.shown(self._settings, texts) as (listed, on_done):
            return await (await self._aclient()).embed(listed, self.document_template, on_done)

    async def aembed_queries(self, texts: Iterable[str]) -> Floats:
        """Do as ``embed_queries``, from the running event loop."""
        return await (await self._aclient()).embed(texts, self.query_template)

    async def aembed_query(self, text: str) -> Floats:
        """Do as ``embed_query``, from the running event loop."""
        vector: Floats = (await self.aembed_queries([text]))[0]
        return vector

    def ensure(self) -> Server:
        """Return the server that is used, found or started now if there was no use before.

        Raises:
            ServerError: None could be had.
            RequestError: The given one does not answer, or wants another key.
        """
        client = self._client()
        if self._handed is None:
            return self._attachment.server()
        return self._attachment.server(lambda: client.inspect(self._place, self._attachment.spec))

    async def aensure(self) -> Server:
        """Do as ``ensure``, from the running event loop."""
        client = await self._aclient()
        if self._ahanded is None:
            return await self._attachment.aserver()
        return await self._attachment.aserver(
            lambda: client.inspect(self._place, self._attachment.spec)
        )

    def endpoint(self) -> Endpoint:
        """Return where the server answers and what it serves; raises as ``ensure``."""
        return self.ensure().endpoint

    def close(self) -> None:
        """Close the connections of the synchronous methods; the next use opens them again."""
        if self._sync is not None:
            self._sync.close()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; the next use opens them again."""
        if self._async is not None:
            await self._async.close()

    @property
    def settings(self) -> Settings:
        """All settings, as they were resolved at construction."""
        return self._settings

    @property
    def cache(self) -> Cache | None:
        """The cache, which counts hits and misses; None where there is none."""
        memory = self._memory()
        return memory.cache if memory is not None else None

    @property
    def query_template(self) -> str:
        """The template of queries, with ``{text}`` in it."""
        return self._settings.query_template

    @property
    def document_template(self) -> str:
        """The template of documents, with ``{text}`` in it."""
        return self._settings.document_template

    @property
    def identity(self) -> str:
        """What decides the vectors of a text, as a short text to keep beside an index.

        It holds model, revision, dimensions and instructions; see ``emberd.index_identity``.
        """
        return index_identity.identity(self._settings, self._attachment.spec)

    def check_identity(self, kept: str) -> None:
        """Do nothing if the index with the identity ``kept`` was made with settings like these.

        Raises:
            IdentityError: It was not; the text names both, and where they differ.
        """
        index_identity.check(kept, self.identity, self._settings)

    def using(self, **changes: Any) -> Self:
        """Return an embedder with some settings changed, on the same server and connections.

        Args:
            **changes: Any of ``dimensions``, ``query_instruction``, ``document_instruction``,
                ``symmetric``, ``batch_size``, ``truncate``, ``server_dimensions`` and
                ``show_progress``.

        Raises:
            SettingError: A value cannot be used, or a setting that belongs to the server.
        """
        settings = self._settings.changed(**changes)
        if refused := sorted(set(changes) - _PER_CALL):
            raise SettingError(
                f"{refused[0]} cannot be changed for one call. What can: "
                f"{', '.join(sorted(_PER_CALL))}. Make another object for the rest."
            )
        _refuse_other_documents(self._settings, settings, changes)
        self._attachment.warn_of_cut(settings)
        twin = copy.copy(self)
        twin._settings = settings
        twin._base, twin._sync, twin._async = self, None, None
        return twin

    def replace(self, **changes: Any) -> Self:
        """Return another embedder with some settings changed; the environment has no say in it.

        Clients and a manager that were handed in go on with it, unless it is to use another server.

        Args:
            **changes: Any settings. None is a value here, and not "not given".

        Raises:
            SettingError: A value cannot be used; it is named.
        """
        other = object.__new__(type(self))
        settings = self._settings.changed(**changes)
        if changes.keys() & {"base_url", "api_key"}:
            other._build(settings, self._attachment.manager)
        else:
            other._build(settings, self._attachment.manager, self._handed, self._ahanded)
        return other

    def __repr__(self) -> str:
        values = {
            field.name: getattr(self._settings, field.name) for field in _FIELDS if field.repr
        }
        usual = Settings(model="")
        shown = [f"{k}={value!r}" for k, value in values.items() if value != getattr(usual, k)]
        return f"Embedder({', '.join(shown)})"

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()  # connections, locks and keys are shared, never doubled

    def __getstate__(self) -> dict[str, Any]:
        had_key = self._settings.api_key is not None and self._settings.base_url is not None
        had_client = self._handed is not None or self._ahanded is not None
        needs_key = had_key or had_client or self._attachment.key_is_missing
        return {"settings": replace(self._settings, api_key=None), "needs_key": needs_key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        api_key = read_key(env.text(env.API_KEY) or "")
        self._build(replace(state["settings"], api_key=api_key))
        self._attachment.key_is_missing = state["needs_key"] and api_key is None

    def _build(
        self,
        settings: Settings,
        manager: Manager | None = None,
        client: Any = None,
        async_client: Any = None,
    ) -> None:
        self._settings = settings
        self._handed = client
        self._ahanded = async_client
        self._sync: Client | None = None
        self._async: AsyncClient | None = None
        self._base: Embedder | None = None
        self._recollection: Recollection | None = None
        if settings.cache is not None:
            from emberd.cache import check

            check(settings.cache)
        self._attachment = Attachment(settings, manager)

    def _client(self) -> Client:
        if self._sync is None and self._base is not None:
            self._sync = self._base._client().using(self._settings)
        if self._sync is None:
            handed.refuse_without("client", self._handed, self._ahanded)
            # Imported at first use: it takes NumPy with it.
            from emberd.client.sync import Client

            self._sync = Client(
                self.endpoint,
                self._settings,
                heal=self._attachment.heal if self._handed is None else None,
                restarts=self._settings.base_url is None,
                on_use=self._attachment.used,
                on_timeout=self._attachment.suspect,
                sdk_client=self._handed,
                memory=self._memory(),
            )
        return self._sync

    def _memory(self) -> Recollection | None:
        if self._base is not None:
            return self._base._memory()
        if self._recollection is None and self._settings.cache is not None:
            from emberd.recollection import Recollection

            self._recollection = Recollection(
                self._settings.cache,
                index_identity.native(self._settings, self._attachment.spec),
                self._settings.known.dimensions,
            )
        return self._recollection

    async def _aclient(self) -> AsyncClient:
        if self._base is not None:
            await self._base._aclient()
        elif self._async is None:
            await self._attachment.aload()
        return self._async_client()

    def _async_client(self) -> AsyncClient:
        if self._async is None and self._base is not None:
            self._async = self._base._async_client().using(self._settings)
        if self._async is None:
            handed.refuse_without("async_client", self._ahanded, self._handed)
            from emberd.client.aio import AsyncClient

            self._async = AsyncClient(
                self._aresolve,
                self._settings,
                heal=self._attachment.aheal if self._ahanded is None else None,
                restarts=self._settings.base_url is None,
                on_use=self._attachment.used,
                on_timeout=self._attachment.suspect,
                sdk_client=self._ahanded,
                memory=self._memory(),
            )
        return self._async

    @property
    def _place(self) -> Endpoint:
        # Where a client that was handed in leads, before anything is known of it.
        return Endpoint(str(self._settings.base_url), self._settings.model, dimensions=0)

    async def _aresolve(self) -> Endpoint:
        return (await self.aensure()).endpoint


def _refuse_other_documents(old: Settings, new: Settings, changes: dict[str, Any]) -> None:
    # One template for both may be that of the queries, and the index was not made with it.
    if not changes.get("symmetric") or changes.keys() & {
        "query_instruction",
        "document_instruction",
    }:
        return
    if new.document_template != old.document_template:
        raise SettingError(
            f"symmetric=True would embed documents as queries are, {new.document_template!r}, and "
            f"not as before, {old.document_template!r}. To embed queries as documents are, give "
            f"query_instruction={old.document_template!r}."
        )
