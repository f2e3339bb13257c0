"""``EmberdEmbeddings``: LangChain's ``Embeddings`` over ``emberd.Embedder``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final, Self

from langchain_core.embeddings import Embeddings
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails

from emberd import Embedder, Endpoint, SettingError, Settings, ato_lists, to_lists

_DEFAULT: Final = Settings()  # does not read the environment

# Field of another class -> field of this one.
_ELSEWHERE: Final = {
    "chunk_size": "batch_size",
    "model_name": "model",
    "openai_api_base": "base_url",
    "openai_api_key": "api_key",
    "request_timeout": "timeout",
    "show_progress": "show_progress_bar",
}
_EMBEDDER: Final = "embedder"  # replaces all settings, see from_embedder

# Field -> setting of emberd.
_SETTING_OF: Final = {
    "show_progress_bar" if setting.name == "show_progress" else setting.name: setting.name
    for setting in fields(Settings)
}


class EmberdEmbeddings(BaseModel, Embeddings):
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

    # strict: a value that pydantic converts would differ from the one that the Embedder got.
    # hide_input_in_errors: the input contains the key.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    model: str = _DEFAULT.model
    """Name on the hub, or a folder."""
    revision: str | None = _DEFAULT.revision
    """Commit, branch or tag on the hub; None for the default."""
    quantization: str | None = _DEFAULT.quantization
    """``"fp8"`` for weights of eight bits, which give other vectors; None for none."""
    dimensions: int | None = _DEFAULT.dimensions
    """Length of the vectors; None for native."""
    query_instruction: str | None = _DEFAULT.query_instruction
    """As given; else the template of the model's queries."""
    document_instruction: str | None = _DEFAULT.document_instruction
    """As given; else the template of the model's documents."""
    symmetric: bool = _DEFAULT.symmetric
    """Embed queries as documents."""
    base_url: str | None = _DEFAULT.base_url
    """A server to use; emberd then starts none."""
    api_key: SecretStr | None = Field(default=None, exclude=True)
    """Its key; left out of dumps, pickles and ``repr``."""
    engine: str | None = _DEFAULT.engine
    """Which engine may serve; None for any."""
    device: str | None = _DEFAULT.device
    """``"cuda"``, ``"mps"`` or ``"cpu"``; None for any."""
    context_tokens: int | None = _DEFAULT.context_tokens
    """Longest text that must fit, in tokens; None for any."""
    deterministic: bool = _DEFAULT.deterministic
    """A text gets the same vector, to the bit, alone and in any batch."""
    batch_size: int = _DEFAULT.batch_size
    """Maximum number of texts in one request."""
    max_concurrency: int = _DEFAULT.max_concurrency
    """Maximum number of requests in flight in this process."""
    timeout: float = _DEFAULT.timeout
    """Time limit of one request, in seconds; a text such as ``"90s"`` is accepted."""
    start_timeout: float = _DEFAULT.start_timeout
    """How long to wait for a server to start, in seconds; ``"15m"`` is accepted."""
    idle_timeout: float | None = _DEFAULT.idle_timeout
    """Time without use after which a started server stops, in the same form; None for never."""
    truncate: bool = _DEFAULT.truncate
    """Cut texts that are too long instead of refusing them."""
    server_dimensions: bool = _DEFAULT.server_dimensions
    """Let the server cut vectors to ``dimensions``: less to transfer."""
    show_progress_bar: bool = _DEFAULT.show_progress
    """Show a progress bar while documents are embedded."""
    cache: str | None = _DEFAULT.cache
    """Where vectors are cached: ``"sqlite"``, or a URL; see docs/caching.md."""

    _embedder: Embedder = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        data = dict(data)
        given = data.pop(_EMBEDDER, None)
        try:
            _check_names(cls, data)
            embedder = _checked(given, data) if given is not None else _made(cls, data)
        except SettingError as error:
            raise _invalid(cls, data, error) from None
        made = handler(data | _shown(embedder.settings))
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
        changes = {_SETTING_OF[name]: update[name] for name in update if name in _SETTING_OF}
        others = {name: getattr(self, name) for name in known if name not in _SETTING_OF}
        others |= {name: update[name] for name in update if name not in _SETTING_OF}
        try:
            embedder = self._embedder.replace(**changes)
        except SettingError as error:
            raise _invalid(type(self), update, error) from None
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
        return cls(**{**others, _EMBEDDER: embedder})

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self.__dict__ == other.__dict__  # the fields, without the connections

    def __hash__(self) -> int:
        return hash((type(self), self.model, self.dimensions))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "api_key": None}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        # The embedder has read the key from this process's environment.
        api_key = _secret(state["__pydantic_private__"]["_embedder"].settings.api_key)
        super().__setstate__({**state, "__dict__": {**state["__dict__"], "api_key": api_key}})

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
    def identity(self) -> str:
        """What determines the vectors (model, revision, dimensions, instructions), as a short text.

        Store it with an index that is made with this object, for ``check_identity``.
        """
        return self._embedder.identity

    def check_identity(self, kept: str) -> None:
        """Raise unless the index with the identity ``kept`` was made with equal settings.

        Raises:
            emberd.IdentityError: The settings differ; the text names both and the differences.
        """
        self._embedder.check_identity(kept)

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
        changes = {_SETTING_OF.get(name, name): value for name, value in overrides.items()}
        return self._embedder.using(**changes) if changes else self._embedder


def _check_names(owner: type[BaseModel], data: Mapping[str, Any]) -> None:
    if unknown := sorted(set(data) - set(owner.model_fields)):
        name = unknown[0]
        hint = f"; it is called {_ELSEWHERE[name]} here" if name in _ELSEWHERE else ""
        raise SettingError(
            f"{owner.__name__} has no field {name!r}{hint}. "
            f"It has: {', '.join(sorted(owner.model_fields))}."
        )


def _checked(embedder: Any, data: Mapping[str, Any]) -> Embedder:
    if not isinstance(embedder, Embedder):
        raise SettingError(f"{embedder!r} is not an emberd.Embedder.")
    if settings := sorted(name for name in data if name in _SETTING_OF):
        raise SettingError(
            f"{settings[0]} is given together with an Embedder, which has all settings. Give it to "
            f"the Embedder, or use model_copy(update=...) afterwards."
        )
    return embedder


def _made(owner: type[BaseModel], data: Mapping[str, Any]) -> Embedder:
    """Return an embedder with the given settings, and defaults that a subclass declares."""
    values = {
        name: owner.model_fields[name].get_default(call_default_factory=True)
        for kind in owner.__mro__[: owner.__mro__.index(EmberdEmbeddings)]
        for name in inspect.get_annotations(kind)
        if name in _SETTING_OF and not owner.model_fields[name].is_required()
    }
    # None counts as not given, except that an idle timeout of None means never.
    values |= {
        name: value
        for name, value in data.items()
        if name in _SETTING_OF and (value is not None or name == "idle_timeout")
    }
    return Embedder(**{_SETTING_OF[name]: value for name, value in values.items()})


def _invalid(owner: type[BaseModel], data: Mapping[str, Any], error: SettingError) -> Exception:
    """Return ``error`` as pydantic's, with the names of the given fields and without values."""
    detail = InitErrorDetails(type="value_error", loc=(), input=sorted(data), ctx={"error": error})
    return ValidationError.from_exception_data(owner.__name__, [detail], hide_input=True)


def _secret(value: str | None) -> SecretStr | None:
    return SecretStr(value) if value else None


def _shown(settings: Settings) -> dict[str, Any]:
    """Return the values of the fields; an instruction that was not given shows as its template.

    Unless that has to be fetched at first use.
    """
    values = asdict(settings)
    values["api_key"] = _secret(settings.api_key)
    if settings.query_instruction is None and settings.has_templates:
        values["query_instruction"] = settings.query_template
    if settings.document_instruction is None and settings.has_templates:
        values["document_instruction"] = settings.document_template
    return {field: values[setting] for field, setting in _SETTING_OF.items()}
