"""``EmberdEmbedding``: LlamaIndex's ``BaseEmbedding`` over ``emberd.Embedder``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Self

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    model_validator,
)
from llama_index.core.storage.kvstore.types import BaseKVStore
from llama_index.core.utils import get_tqdm_iterable
from pydantic import computed_field

from emberd import (
    Embedder,
    Endpoint,
    SettingError,
    Settings,
    ato_lists,
    check_texts,
    to_lists,
)
from llama_index.embeddings.emberd.cache import RoleKeyedStore, documents, queries
from llama_index.embeddings.emberd.construction import (
    MADE,
    SETTING_OF,
    embedder_of,
    invalid,
    secret,
    shown,
)
from llama_index.embeddings.emberd.telling import slices, told

_DEFAULT: Final = Settings()  # nothing of the environment is in it
# The most that BaseEmbedding allows. It hands over one slice after another, so a slice must hold
# enough requests to keep the server busy.
_SLICE_TEXTS: Final = 2048


def _decides(setting: str, description: str) -> Any:
    """Return a field that decides what a vector is: ``to_dict`` holds it."""
    return Field(default=getattr(_DEFAULT, setting), frozen=True, description=description)


def _option(setting: str, description: str) -> Any:
    """Return a field that vectors do not depend on: ``to_dict``, which keys caches, has it not."""
    default = getattr(_DEFAULT, setting)
    return Field(default=default, frozen=True, exclude=True, description=description)


class EmberdEmbedding(BaseEmbedding):
    """Embeddings from a server that is found on this machine, or started by the first call.

    Construction reads no network and starts nothing. What is not given comes from the
    environment (``EMBERD_MODEL``, ``EMBERD_BASE_URL``, ``EMBERD_API_KEY``, ...), and then from
    the defaults; the fields show what came out, the instructions in force included. They are
    fixed from then on: ``model_copy(update={...})`` makes another object.

    Only what decides what a vector is stands in ``to_dict()``, and so in the key of
    ``IngestionPipeline``'s cache: another port, key or batch size embeds nothing anew. Pickles
    hold no key: in a worker process it comes from ``EMBERD_API_KEY``.

    Examples:
        ``pip install llama-index-embeddings-emberd``

        .. code-block:: python

            from llama_index.core import Settings
            from llama_index.embeddings.emberd import EmberdEmbedding

            Settings.embed_model = EmberdEmbedding(dimensions=1024)

    Raises:
        pydantic.ValidationError: A field that does not exist, or a value that cannot be used.
    """

    # strict: a value that pydantic would reinterpret must not differ from what the Embedder got.
    # hide_input_in_errors: the input holds the key.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    model_name: str = _decides("model", "Name on the hub, or a folder.")
    revision: str | None = _decides("revision", "Commit on the hub; None for whatever is there.")
    dimensions: int | None = _decides("dimensions", "Length of the vectors; None for native.")
    query_instruction: str | None = _decides(
        "query_instruction",
        "The task that queries are embedded for, in words; the name of a ready-made task, such as "
        "'code'; a whole template with {text} in it; '' for none. Left out, it shows the model's.",
    )
    text_instruction: str | None = _decides(
        "document_instruction", "The same for the texts of nodes."
    )
    symmetric: bool = _decides(
        "symmetric",
        "Queries are embedded as the texts of nodes are, with the one instruction that is given.",
    )
    truncate: bool = _decides("truncate", "Cut over-long texts instead of refusing them.")
    base_url: str | None = _option("base_url", "A server to use as it is; none is started then.")
    api_key: SecretStr | None = _option("api_key", "The key of that server.")
    engine: str | None = _option("engine", "Which engine may serve; None for any.")
    device: str | None = _option("device", "'cuda' or 'cpu'; None for any.")
    context_tokens: int | None = _option(
        "context_tokens", "Longest text that must fit, in tokens; None for any."
    )
    max_concurrency: int = _option(
        "max_concurrency", "Most requests in flight, over the whole process."
    )
    timeout: float = _option(
        "timeout", "How long one request may take, in seconds; '90s' is accepted."
    )
    start_timeout: float = _option(
        "start_timeout", "How long to wait for a server to start, in seconds; '15m' is accepted."
    )
    idle_timeout: float | None = _option(
        "idle_timeout",
        "How long a started server stays without use, in seconds; '5m' is accepted. None for ever.",
    )
    server_dimensions: bool = _option(
        "server_dimensions", "Let the server cut vectors to the dimensions: less to transfer."
    )
    cache: str | None = _option(
        "cache",
        "Where vectors are kept and looked for first: 'sqlite', or a URL. Unlike embeddings_cache "
        "it is shared by processes, and serves any dimensions.",
    )
    embed_batch_size: int = Field(
        default=_SLICE_TEXTS,
        gt=0,
        le=_SLICE_TEXTS,
        exclude=True,
        description="Texts that LlamaIndex hands over at a time; requests are cut from them.",
    )
    num_workers: int | None = Field(
        default=None,
        exclude=True,
        description="Slices of an async call that are worked on at a time; None for all.",
    )
    embeddings_cache: Any | None = Field(
        default=None,
        frozen=True,
        exclude=True,
        description="A BaseKVStore; its keys tell queries from documents, and one model, length "
        "and instruction from another.",
    )

    _embedder: Embedder = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, data: Any, handler: Callable[[Any], Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        data = dict(data)
        try:
            embedder = embedder_of(cls, EmberdEmbedding, data)
        except SettingError as error:
            raise invalid(cls, data, error) from None
        # None counts as not given here too: others' constructors take callback_manager=None.
        theirs = {
            name: value
            for name, value in data.items()
            if name not in SETTING_OF and value is not None
        }
        if isinstance(cache := theirs.get("embeddings_cache"), BaseKVStore):
            # Where over-long texts are not cut they are an error, from a cache too.
            made_with = f"{embedder.identity}&truncate={embedder.settings.truncate}"
            theirs["embeddings_cache"] = RoleKeyedStore(cache, made_with)
        made = handler(theirs | shown(embedder.settings))
        made._embedder = embedder
        return made

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy; with ``update``, a new object that has the other settings of this one.

        Args:
            update: Fields to change; they are checked as those of a new object are.
            deep: Without effect: what the copies share never changes.
        """
        if not update:
            return super().model_copy(deep=deep)
        known = type(self).model_fields
        changes = {SETTING_OF[name]: update[name] for name in update if name in SETTING_OF}
        theirs = {name: getattr(self, name) for name in known if name not in SETTING_OF}
        theirs |= {name: update[name] for name in update if name not in SETTING_OF}
        try:
            embedder = self._embedder.replace(**changes)
        except SettingError as error:
            raise invalid(type(self), update, error) from None
        return self.from_embedder(embedder, **theirs)

    @classmethod
    def from_embedder(cls, embedder: Embedder, **theirs: Any) -> Self:
        """Return an object over an ``Embedder``, which may have a client or a manager of yours.

        Args:
            embedder: Has all the settings; the environment is not looked at again.
            **theirs: Fields that are none of its settings.

        Raises:
            pydantic.ValidationError: It is no ``Embedder``, or a setting is given beside it.
        """
        return cls(**{**theirs, MADE: embedder})

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self._compared() == other._compared()

    def _compared(self) -> dict[str, Any]:
        # Whose callbacks are told is nothing of the embedding, and each object has its own.
        return {**self.__dict__, "callback_manager": None}

    def __hash__(self) -> int:
        return hash((type(self), self.model_name, self.dimensions))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        # Of what does not pickle, a lock in a rate limiter say, BaseComponent rids the very object
        # that is asked. A copy is asked.
        twin = self.__copy__()
        twin.__dict__["api_key"] = None
        return super(EmberdEmbedding, twin).__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # BaseComponent runs __init__ again, and that would take what was left out from the
        # environment of the worker. Only the key comes from there: the embedder has looked.
        api_key = state["__pydantic_private__"]["_embedder"].settings.api_key
        values = {
            name: field.get_default(call_default_factory=True)
            for name, field in type(self).model_fields.items()
        }
        values |= {**state["__dict__"], "api_key": secret(api_key)}
        BaseModel.__setstate__(self, {**state, "__dict__": values})

    @classmethod
    def class_name(cls) -> str:
        """Return the name that ``to_dict()`` and events bear."""
        return "EmberdEmbedding"

    @property
    def embedder(self) -> Embedder:
        """The framework-free object that does the work; its vectors are NumPy arrays."""
        return self._embedder

    def endpoint(self) -> Endpoint:
        """Return the server that is used, found or started now if it has to be.

        Its ``base_url`` and ``api_key`` suit every client that speaks OpenAI's protocol.
        """
        return self._embedder.endpoint()

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def identity(self) -> str:
        """What decides the vectors (model, revision, dimensions, instructions), in a short text.

        Keep it beside an index that was made with this object, for ``check_identity``. It stands in
        ``to_dict()`` as well: a folder may hold another model than it did.
        """
        return self._embedder.identity

    def check_identity(self, kept: str) -> None:
        """Do nothing if the index with the identity ``kept`` goes with this object.

        Raises:
            emberd.IdentityError: It was made with other settings; the text names both.
        """
        self._embedder.check_identity(kept)

    def get_query_embedding(self, query: str) -> list[float]:
        """Return the vector of a query, of norm 1; ``embeddings_cache`` knows it as a query."""
        with queries():
            return super().get_query_embedding(query)

    async def aget_query_embedding(self, query: str) -> list[float]:
        """Return what ``get_query_embedding`` returns, without blocking the event loop."""
        with queries():
            return await super().aget_query_embedding(query)

    def get_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., list[float]] | None = None
    ) -> list[float]:
        """Return one vector for several queries: their mean, or what ``agg_fn`` makes of them."""
        check_texts(queries)
        return super().get_agg_embedding_from_queries(queries, agg_fn)

    async def aget_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., list[float]] | None = None
    ) -> list[float]:
        """Return what ``get_agg_embedding_from_queries`` returns, without blocking the loop."""
        check_texts(queries)
        return await super().aget_agg_embedding_from_queries(queries, agg_fn)

    def get_text_embedding(self, text: str) -> list[float]:
        """Return the vector of a text, of norm 1; ``embeddings_cache`` knows it as a document."""
        with documents():
            return super().get_text_embedding(text)

    async def aget_text_embedding(self, text: str) -> list[float]:
        """Return what ``get_text_embedding`` returns, without blocking the event loop."""
        with documents():
            return await super().aget_text_embedding(text)

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[list[float]]:
        """Return one vector of norm 1 for each text, in their order.

        Args:
            texts: The documents, any number of them.
            show_progress: Show a progress bar.
            **kwargs: Without effect, as in ``BaseEmbedding``.

        Raises:
            emberd.EmberdError: The embedding failed; the text says why and what to do.
        """
        check_texts(texts)
        with documents():
            if self.embeddings_cache is not None or not hasattr(self, "to_payload"):
                return super().get_text_embedding_batch(texts, show_progress, **kwargs)
            # Else as there, but for events that are not checked number by number.
            vectors: list[list[float]] = []
            shown = get_tqdm_iterable(texts, show_progress, "Generating embeddings")
            for part in slices(shown, self.embed_batch_size):
                with told(self, part) as tell:
                    if self.rate_limiter is not None:
                        self.rate_limiter.acquire()
                    vectors += tell(self._get_text_embeddings(part))
            return vectors

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[list[float]]:
        """Return what ``get_text_embedding_batch`` returns, without blocking the event loop."""
        check_texts(texts)
        with documents():
            return await super().aget_text_embedding_batch(texts, show_progress, **kwargs)

    def _get_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = self._embedder.embed_query(query).tolist()
        return vector

    async def _aget_query_embedding(self, query: str) -> list[float]:
        vector: list[float] = (await self._embedder.aembed_query(query)).tolist()
        return vector

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._aget_text_embeddings([text]))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return to_lists(self._embedder.embed_documents(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await ato_lists(await self._embedder.aembed_documents(texts))
