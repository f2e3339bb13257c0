"""``EmberdEmbedding``: LlamaIndex's ``BaseEmbedding`` over ``emberd.Embedder``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
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
    ModelInfo,
    SettingError,
    Settings,
    ato_lists,
    check_texts,
    to_lists,
)
from llama_index.embeddings.emberd.cache import RoleKeyedStore, documents, queries
from llama_index.embeddings.emberd.construction import (
    EMBEDDER,
    SETTING_OF,
    embedder_of,
    identity_of,
    invalid,
    secret,
    shown,
)
from llama_index.embeddings.emberd.events import (
    embedding_events,
    part,
    slices,
    whole,
    without_span,
)

_DEFAULT: Final = Settings()  # does not read the environment
# The maximum of BaseEmbedding. It embeds one slice after another, so a slice must contain enough
# requests to keep the server busy.
_SLICE_TEXTS: Final = 2048
# Other constructors accept callback_manager=None. For other fields that are not settings, None is a
# value, with which a subclass's own default is changed.
_NONE_IS_NOT_GIVEN: Final = ("callback_manager", "embed_batch_size")


def _identifying(setting: str, description: str) -> Any:
    """Return a field that determines the vectors: ``to_dict`` contains it."""
    return Field(default=getattr(_DEFAULT, setting), frozen=True, description=description)


def _option(setting: str, description: str) -> Any:
    """Return a field that does not change vectors: ``to_dict``, the key of caches, omits it."""
    default = getattr(_DEFAULT, setting)
    return Field(default=default, frozen=True, exclude=True, description=description)


class EmberdEmbedding(BaseEmbedding):
    """Embeddings from a server that is found on this machine, or started by the first call.

    Construction opens no connection and starts nothing. A setting that is not given is taken from
    the environment (``EMBERD_MODEL``, ``EMBERD_BASE_URL``, ``EMBERD_API_KEY``, ...), else it is the
    default; the fields show the resolved values, with the templates of the instructions. Settings
    cannot be assigned: ``model_copy(update={...})`` returns another object.

    ``to_dict()``, and so the key of ``IngestionPipeline``'s cache, contains only what determines
    the vectors: with another port, key or batch size, nothing is embedded again. Pickles contain no
    key; it is taken from ``EMBERD_API_KEY`` where an object is unpickled.

    Examples:
        ``pip install llama-index-embeddings-emberd``

        .. code-block:: python

            from llama_index.core import Settings
            from llama_index.embeddings.emberd import EmberdEmbedding

            Settings.embed_model = EmberdEmbedding(dimensions=1024)

    Raises:
        pydantic.ValidationError: A field does not exist, or a value is invalid.
    """

    # strict: a value that pydantic converts would differ from the one that the Embedder got.
    # hide_input_in_errors: the input contains the key.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    model_name: str = _identifying("model", "Name on the hub, or a folder.")
    revision: str | None = _identifying(
        "revision", "Commit, branch or tag on the hub; None for the default."
    )
    quantization: str | None = _identifying(
        "quantization", "'fp8' for weights of eight bits, which give other vectors; None for none."
    )
    dimensions: int | None = _identifying("dimensions", "Length of the vectors; None for native.")
    query_instruction: str | None = _identifying(
        "query_instruction",
        "The task of the queries in words, the name of a task such as 'code', or a template that "
        "contains {text}; '' for none. If not given, the template of the model's queries.",
    )
    text_instruction: str | None = _identifying(
        "document_instruction", "The same for the texts of nodes."
    )
    symmetric: bool = _identifying(
        "symmetric",
        "Embed queries as the texts of nodes, with the one instruction that is given.",
    )
    truncate: bool = _identifying(
        "truncate", "Cut texts that are too long instead of refusing them."
    )
    base_url: str | None = _option("base_url", "A server to use; emberd then starts none.")
    api_key: SecretStr | None = _option("api_key", "The key of that server.")
    engine: str | None = _option("engine", "Which engine may serve; None for any.")
    device: str | None = _option("device", "'cuda', 'mps' or 'cpu'; None for any.")
    context_tokens: int | None = _option(
        "context_tokens", "Longest text that must fit, in tokens; None for any."
    )
    deterministic: bool = _option(
        "deterministic", "A text gets the same vector, to the bit, alone and in any batch."
    )
    max_concurrency: int = _option(
        "max_concurrency", "Maximum number of requests in flight in this process."
    )
    timeout: float = _option("timeout", "Time limit of one request, in seconds; '90s' is accepted.")
    start_timeout: float = _option(
        "start_timeout", "How long to wait for a server to start, in seconds; '15m' is accepted."
    )
    idle_timeout: float | None = _option(
        "idle_timeout",
        "Time without use after which a started server stops, in seconds; '5m' is accepted. None "
        "for never.",
    )
    server_dimensions: bool = _option(
        "server_dimensions", "Let the server cut vectors to the dimensions: less to transfer."
    )
    cache: str | None = _option(
        "cache",
        "Where vectors are cached: 'sqlite', or a URL. Unlike embeddings_cache, it is shared by "
        "processes and serves any dimensions.",
    )
    embed_batch_size: int = Field(
        default=_SLICE_TEXTS,
        gt=0,
        le=_SLICE_TEXTS,
        exclude=True,
        description="Texts that LlamaIndex embeds at a time; emberd splits them into requests.",
    )
    num_workers: int | None = Field(
        default=None,
        exclude=True,
        description="Slices of an async call that are embedded at a time; None for all.",
    )
    embeddings_cache: Any | None = Field(
        default=None,
        frozen=True,
        exclude=True,
        description="A BaseKVStore; its keys contain the role, and what determines the vectors.",
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
            is_cached = isinstance(cache := data.get("embeddings_cache"), BaseKVStore)
            identity = identity_of(embedder) if is_cached else ""
        except SettingError as error:
            raise invalid(cls, data, error) from None
        others = {
            name: value
            for name, value in data.items()
            if name not in SETTING_OF and (value is not None or name not in _NONE_IS_NOT_GIVEN)
        }
        if isinstance(cache, BaseKVStore):
            # A text that is too long is an error unless it is cut, also if a cache has its vector.
            made_with = f"{identity}&truncate={embedder.settings.truncate}"
            others["embeddings_cache"] = RoleKeyedStore(cache, made_with)
        made = handler(others | shown(embedder.settings))
        made._embedder = embedder
        return made

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, or, with ``update``, an object that has the other settings of this one.

        Args:
            update: Fields to change, checked like those of a new object.
            deep: Has no effect, because what the copies share never changes.
        """
        if not update:
            return super().model_copy(deep=deep)
        known = type(self).model_fields
        changes = {SETTING_OF[name]: update[name] for name in update if name in SETTING_OF}
        others = {name: getattr(self, name) for name in known if name not in SETTING_OF}
        others |= {name: update[name] for name in update if name not in SETTING_OF}
        try:
            embedder = self._embedder.replace(**changes)
        except SettingError as error:
            raise invalid(type(self), update, error) from None
        return self.from_embedder(embedder, **others)

    @classmethod
    def from_embedder(cls, embedder: Embedder, **others: Any) -> Self:
        """Return an object that uses an ``Embedder``, which may have your own client or manager.

        Args:
            embedder: Provides all settings; the environment is not read again.
            **others: Fields that are not settings.

        Raises:
            pydantic.ValidationError: It is not an ``Embedder``, or a setting is given as well.
        """
        return cls(**{**others, EMBEDDER: embedder})

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        # Without callbacks, which do not change the vectors; each object has its own manager of
        # them.
        mine, theirs = ({**each.__dict__, "callback_manager": None} for each in (self, other))
        return mine == theirs

    def __hash__(self) -> int:
        return hash((type(self), self.model_name, self.dimensions))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        # From a copy, because BaseComponent removes what cannot be pickled, such as a lock in a
        # rate limiter, from the object itself.
        twin = self.__copy__()
        twin.__dict__["api_key"] = None
        return super(EmberdEmbedding, twin).__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Not as BaseComponent, which runs __init__ again: that would read the environment of the
        # worker. Only the key comes from there, and the embedder has read it.
        api_key = state["__pydantic_private__"]["_embedder"].settings.api_key
        values = {
            name: field.get_default(call_default_factory=True)
            for name, field in type(self).model_fields.items()
        }
        values |= {**state["__dict__"], "api_key": secret(api_key)}
        BaseModel.__setstate__(self, {**state, "__dict__": values})

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class in ``to_dict()`` and in events."""
        return "EmberdEmbedding"

    @property
    def embedder(self) -> Embedder:
        """The framework-free embedder that this object uses; its vectors are NumPy arrays."""
        return self._embedder

    def endpoint(self) -> Endpoint:
        """Return the server in use; find or start it now if there is none yet.

        Any OpenAI client can use its ``base_url`` and ``api_key``.
        """
        return self._embedder.endpoint()

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model without asking a server; see ``emberd.ModelInfo``.

        Its ``dimensions`` are the length of the vectors, also where the field of this name is None.
        """
        return self._embedder.model_info

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def identity(self) -> str:
        """What determines the vectors (model, revision, dimensions, instructions), as a short text.

        Store it with an index that is made with this object, for ``check_identity``. ``to_dict()``
        contains it as well, because a folder may contain another model later.
        """
        return self._embedder.identity

    def check_identity(self, kept: str) -> None:
        """Raise unless the index with the identity ``kept`` was made with equal settings.

        Raises:
            emberd.IdentityError: The settings differ; the text names both and the differences.
        """
        self._embedder.check_identity(kept)

    def get_query_embedding(self, query: str) -> list[float]:
        """Return the vector of a query, of norm one; ``embeddings_cache`` has it as a query."""
        with queries():
            return without_span(super().get_query_embedding)(query)

    async def aget_query_embedding(self, query: str) -> list[float]:
        """Like ``get_query_embedding``, on the running event loop."""
        with queries():
            return await without_span(super().aget_query_embedding)(query)

    def get_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., list[float]] | None = None
    ) -> list[float]:
        """Return one vector for several queries: their mean, or what ``agg_fn`` returns."""
        check_texts(queries)
        return super().get_agg_embedding_from_queries(queries, agg_fn)

    async def aget_agg_embedding_from_queries(
        self, queries: list[str], agg_fn: Callable[..., list[float]] | None = None
    ) -> list[float]:
        """Like ``get_agg_embedding_from_queries``, on the running event loop."""
        check_texts(queries)
        return await super().aget_agg_embedding_from_queries(queries, agg_fn)

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the fields that determine vectors, which caches of LlamaIndex have as keys.

        ``quantization`` is among them only if it is set, so that other keys stay what they were.
        """
        fields: dict[str, Any] = super().to_dict(**kwargs)
        if fields.get("quantization") is None:
            fields.pop("quantization", None)
        return fields

    def get_text_embedding(self, text: str) -> list[float]:
        """Return the vector of a text, of norm one; ``embeddings_cache`` has it as a document."""
        with documents():
            return without_span(super().get_text_embedding)(text)

    async def aget_text_embedding(self, text: str) -> list[float]:
        """Like ``get_text_embedding``, on the running event loop."""
        with documents():
            return await without_span(super().aget_text_embedding)(text)

    def get_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[list[float]]:
        """Return one vector of norm one for each text, in order.

        Args:
            texts: Any number of documents.
            show_progress: Show a progress bar.
            **kwargs: Have no effect, as in ``BaseEmbedding``.

        Raises:
            emberd.EmberdError: The embedding failed; the text says why and what to do.
        """
        check_texts(texts)
        with documents(), whole(texts):
            if self.embeddings_cache is not None or not hasattr(self, "to_payload"):
                bare = without_span(super().get_text_embedding_batch)
                return bare(texts, show_progress, **kwargs)
            # As there, except that events are not checked number by number.
            vectors: list[list[float]] = []
            shown = get_tqdm_iterable(texts, show_progress, "Generating embeddings")
            for texts_of_slice in slices(shown, self.embed_batch_size):
                with embedding_events(self, texts_of_slice) as on_vectors:
                    if self.rate_limiter is not None:
                        self.rate_limiter.acquire()
                    vectors += on_vectors(self._get_text_embeddings(texts_of_slice))
            return vectors

    async def aget_text_embedding_batch(
        self, texts: list[str], show_progress: bool = False, **kwargs: Any
    ) -> list[list[float]]:
        """Like ``get_text_embedding_batch``, on the running event loop."""
        check_texts(texts)
        with documents(), whole(texts):
            if self.embeddings_cache is not None or not hasattr(self, "to_payload"):
                bare = without_span(super().aget_text_embedding_batch)
                return await bare(texts, show_progress, **kwargs)
            # As there, except that events are not checked number by number.
            found_slices = list(slices(texts, self.embed_batch_size))
            workers = self.num_workers or 0
            turns = asyncio.Semaphore(workers if workers > 1 else max(1, len(found_slices)))
            jobs = [self._aget_slice(each, turns) for each in found_slices]
            gather: Callable[..., Any] = asyncio.gather
            if show_progress:
                from tqdm.asyncio import tqdm_asyncio  # type: ignore[import-untyped]

                gather = partial(tqdm_asyncio.gather, desc="Generating embeddings")
            found = await gather(*jobs)
            return [vector for vectors in found for vector in vectors]

    async def _aget_slice(self, texts: list[str], turns: asyncio.Semaphore) -> list[list[float]]:
        async with turns:
            with embedding_events(self, texts) as on_vectors:
                if self.rate_limiter is not None:
                    await self.rate_limiter.async_acquire()
                return on_vectors(await self._aget_text_embeddings(texts))

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
        with part(texts):
            return to_lists(self._embedder.embed_documents(texts))

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        with part(texts):
            return await ato_lists(await self._embedder.aembed_documents(texts))
