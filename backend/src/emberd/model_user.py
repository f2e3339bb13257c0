"""What ``Embedder`` and ``Reranker`` share: a server found at first use, and the clients of it."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Final, Self

from emberd import env
from emberd.endpoint import Endpoint, is_same_origin, read_key, root_url
from emberd.errors import SettingError
from emberd.server_handle import ServerHandle
from emberd.settings import Settings
from emberd.system import fork

if TYPE_CHECKING:
    from emberd.cache.cache import VectorCache
    from emberd.client.clients import AsyncClient, Client
    from emberd.manager import Server
    from emberd.verified_manager import Manager

FIELDS: Final = fields(Settings)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model, and of what an object of it returns, without asking a server.

    Attributes:
        model: Name on the hub, or a folder.
        task: ``"embed"`` or ``"rerank"``.
        revision: Commit, branch or tag on the hub; None for the default.
        quantization: Quantisation of the weights; None for none.
        dimensions: Length of the vectors that the object returns. None for a reranker, and as long
            as only a server would show it.
        native_dimensions: Length of the model's vectors before they are cut; None likewise.
        context_tokens: Longest text, in tokens: that of the server that was used last, else that of
            the model; None if not known.
        query_template: What queries are sent in, with ``{text}``; None for a reranker.
        document_template: The same for documents.
    """

    model: str
    task: str
    revision: str | None = None
    quantization: str | None = None
    dimensions: int | None = None
    native_dimensions: int | None = None
    context_tokens: int | None = None
    query_template: str | None = None
    document_template: str | None = None


class ModelUser:
    """Sends texts to the server of one model, which is found or started at first use.

    Instances can be shared by threads, event loops and forked children, and pickled; pickles
    contain neither keys nor clients.
    """

    _handle: ServerHandle
    _settings: Settings

    def ensure(self) -> Server:
        """Return the server in use; find or start it now if there is none yet.

        Raises:
            ServerError: No server is available.
            RequestError: The given server does not answer, or requires another key.
        """
        client = self._client()
        if self._given_client is None:
            return self._handle.server()
        return self._handle.server(lambda: client.inspect(self._given_endpoint, self._handle.spec))

    async def aensure(self) -> Server:
        """Like ``ensure``, on the running event loop."""
        client = await self._aclient()
        if self._given_async_client is None:
            return await self._handle.aserver()
        return await self._handle.aserver(
            lambda: client.inspect(self._given_endpoint, self._handle.spec)
        )

    def endpoint(self) -> Endpoint:
        """Return the server's address and what it serves; raises as ``ensure``."""
        return self.ensure().endpoint

    def replace(self, **changes: Any) -> Self:
        """Return another object with some settings changed; the environment is not read.

        It uses the same manager, and the same given clients unless its server is another. With
        ``base_url`` on another origin, it has no key unless ``api_key`` is given too.

        Args:
            **changes: Any settings. None is a value here; it does not mean "not given".

        Raises:
            SettingError: A value is invalid; the text names it.
        """
        settings = self._settings.changed(**changes)
        is_other_server = changes.keys() & {"base_url", "api_key"}
        if settings == self._settings and not is_other_server:
            return self._sharing()  # its server is verified once
        other = object.__new__(type(self))
        clients = () if is_other_server else (self._given_client, self._given_async_client)
        other._build(settings, self._handle.manager, *clients)
        if "api_key" not in changes and is_same_origin(settings.base_url, self._settings.base_url):
            other._handle.key_is_missing = self._handle.key_is_missing
        return other

    def close(self) -> None:
        """Close the connections of the synchronous methods; the next use opens them again."""
        if self._sync is not None:
            self._sync.close()

    async def aclose(self) -> None:
        """Close the connections of the asynchronous methods; the next use opens them again."""
        if self._async is not None:
            await self._async.close()

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model without asking a server; see ``emberd.ModelInfo``."""
        settings, endpoint = self._settings, self._handle.endpoint
        limit = endpoint.context_tokens if endpoint is not None else None
        return ModelInfo(
            model=settings.model,
            task=settings.task,
            revision=settings.revision,
            quantization=settings.quantization,
            context_tokens=limit or settings.known.context_tokens,
        )

    @property
    def settings(self) -> Settings:
        """All settings, as resolved at construction."""
        return self._settings

    def __repr__(self) -> str:
        values = {f.name: getattr(self._settings, f.name) for f in FIELDS if f.repr}
        usual = type(self._settings)(model="")
        shown = [f"{k}={value!r}" for k, value in values.items() if value != getattr(usual, k)]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __copy__(self) -> Self:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()  # connections, locks and keys are shared

    def __getstate__(self) -> dict[str, Any]:
        had_key = self._settings.api_key is not None and self._settings.base_url is not None
        had_client = self._given_client is not None or self._given_async_client is not None
        needs_key = had_key or had_client or self._handle.key_is_missing
        return {"settings": replace(self._settings, api_key=None), "needs_key": needs_key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings: Settings = state["settings"]
        with env.named_in_errors(["api_key"], settings.task):
            api_key = read_key(env.text(env.setting_variable("api_key", settings.task)) or "")
        self._build(replace(settings, api_key=api_key))
        self._handle.key_is_missing = state["needs_key"] and api_key is None

    def _build(
        self,
        settings: Settings,
        manager: Manager | None = None,
        client: Any = None,
        async_client: Any = None,
    ) -> None:
        self._settings = settings
        self._given_client = client
        self._given_async_client = async_client
        self._sync: Client | None = None
        self._async: AsyncClient | None = None
        self._base: Self | None = None  # whose connections this object uses
        self._handle = ServerHandle(settings, manager)

    def _sharing(self) -> Self:
        """Return a copy that uses the server and the connections of this object."""
        twin = self.__copy__()
        twin._base, twin._sync, twin._async = self, None, None
        return twin

    def _client(self) -> Client:
        if self._sync is None and self._base is not None:
            self._sync = self._base._client().using(self._settings)
        if self._sync is None:
            _check_client("client", self._given_client, self._given_async_client)
            # Imported at first use: it imports NumPy. A child would inherit the locks of imports.
            with fork.no_fork():
                from emberd.client.clients import Client

            settings = self._settings
            self._sync = Client(
                self.endpoint,
                settings,
                reconnect=self._handle.reconnect if self._given_client is None else None,
                restarts=settings.base_url is None,
                on_use=self._handle.used,
                on_timeout=self._handle.report_unresponsive,
                sdk_client=self._given_client,
                cache=self._cache_adapter(),
            )
            # Another thread may have completed the settings in between, without a client.
            if settings is not self._settings:
                self._sync = self._sync.using(self._settings)
        return self._sync

    def _cache_adapter(self) -> VectorCache | None:
        """Return the cache that the clients ask first; None for none."""
        return None

    async def _aclient(self) -> AsyncClient:
        if self._base is not None:
            base = await self._base._aclient()
            self._async = self._async or base.using(self._settings)
        elif self._async is None:
            await self._handle.aload(self._cache_adapter)
        if self._async is None:  # no other task has created it either
            _check_client("async_client", self._given_async_client, self._given_client)
            from emberd.client.clients import AsyncClient

            settings = self._settings
            self._async = AsyncClient(
                self._aresolve,
                settings,
                reconnect=self._handle.areconnect if self._given_async_client is None else None,
                restarts=settings.base_url is None,
                on_use=self._handle.aused,
                on_timeout=self._handle.areport_unresponsive,
                sdk_client=self._given_async_client,
                cache=self._cache_adapter(),
            )
            if settings is not self._settings:
                self._async = self._async.using(self._settings)
        return self._async

    @property
    def _given_endpoint(self) -> Endpoint:
        # The address of a given client, before its server is inspected.
        return Endpoint(str(self._settings.base_url), self._settings.model, dimensions=0)

    async def _aresolve(self) -> Endpoint:
        return (await self.aensure()).endpoint


def common_url(base_url: str | None, *clients: Any) -> str | None:
    """Return the address that ``base_url`` and the clients share; None if none is given.

    Raises:
        SettingError: They have different addresses.
    """
    given = [client.base_url for client in clients if client is not None]
    urls = {root_url(str(url)) for url in (base_url, *given) if url is not None}
    if given and len(urls) > 1:
        raise SettingError(
            f"base_url, client and async_client have different addresses: "
            f"{', '.join(sorted(urls))}. Give them the same base_url, or make one object for each."
        )
    return str(given[0]) if given else base_url


def _check_client(name: str, needed: Any, other: Any) -> None:
    # The server may need what only the caller's client has, such as a certificate.
    if needed is None and other is not None:
        raise SettingError(
            f"This method needs {name}=, but only the client of the other kind was given. "
            f"Give both, or call the methods of the other kind."
        )
