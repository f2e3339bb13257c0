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

_DEFAULT: Final = Settings()  # nothing of the environment is in it

# What fields of other classes are called here.
_ELSEWHERE: Final = {
    "chunk_size": "batch_size",
    "model_name": "model",
    "openai_api_base": "base_url",
    "openai_api_key": "api_key",
    "request_timeout": "timeout",
    "show_progress": "show_progress_bar",
}
_MADE: Final = "embedder"  # what stands in for all settings, see from_embedder

# Field -> setting of emberd that it stands for.
_SETTING_OF: Final = {
    "show_progress_bar" if setting.name == "show_progress" else setting.name: setting.name
    for setting in fields(Settings)
}


class EmberdEmbeddings(BaseModel, Embeddings):
    """Embeddings from a server that is found on this machine, or started by the first call.

    Construction reads no network and starts nothing. What is not given comes from the
    environment (``EMBERD_MODEL``, ``EMBERD_BASE_URL``, ``EMBERD_API_KEY``, ...), and then from
    the defaults; the fields show what came out, the instructions in force included. They are
    fixed from then on: ``model_copy(update={...})`` makes another object. Pickles hold no key:
    on the other side it comes from ``EMBERD_API_KEY``.

    Setup:
        .. code-block:: bash

            pip install langchain-emberd

        ``emberd up`` tells what is missing before Qwen3-Embedding can be served here. With the
        extra ``emberd[demo]`` the small model ``emberd/demo`` runs anywhere, without a GPU.

    Key init args:
        model: str
            Name on the hub, or a folder. ``Qwen/Qwen3-Embedding-4B`` unless given.
        dimensions: int | None
            Length of the vectors; native unless given. Qwen3 takes 32 up to its native length.
        query_instruction: str | None
            The task that queries are embedded for, in words; the name of a ready-made task, such
            as ``"code"``; a whole template with ``{text}`` in it; ``""`` for none. The model's
            default task unless given.
        document_instruction: str | None
            The same for documents; the model's default, which for Qwen3 is none, unless given.
        symmetric: bool
            Embed queries as documents are embedded, with the one instruction that is given or the
            model's for documents: for tasks that compare like with like (``"similarity"``), and
            for frameworks that call ``embed_query`` for everything.
        base_url: str | None
            A server to use as it is. Nothing is ever started then.
        api_key: SecretStr | None
            The key of that server.
        engine: str | None
            Which kind of server may be used: ``"sglang"``, ``"demo"``; any unless given.
        device: str | None
            ``"cuda"`` or ``"cpu"``; any unless given.
        context_tokens: int | None
            The longest text that must fit, in tokens; any unless given.

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
        pydantic.ValidationError: A field that does not exist, or a value that cannot be used.
    """

    # strict: a value that pydantic would reinterpret must not differ from what the Embedder got.
    # hide_input_in_errors: the input holds the key.
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
    """Commit on the hub; None for whatever is there."""
    dimensions: int | None = _DEFAULT.dimensions
    """Length of the vectors; None for native."""
    query_instruction: str | None = _DEFAULT.query_instruction
    """As given; otherwise the template that the model's queries are put into."""
    document_instruction: str | None = _DEFAULT.document_instruction
    """As given; otherwise the template that the model's documents are put into."""
    symmetric: bool = _DEFAULT.symmetric
    """Queries are embedded as documents are."""
    base_url: str | None = _DEFAULT.base_url
    """A server to use as it is."""
    api_key: SecretStr | None = Field(default=None, exclude=True)
    """Its key: not in dumps, pickles, ``repr``."""
    engine: str | None = _DEFAULT.engine
    """Which engine may serve; None for any."""
    device: str | None = _DEFAULT.device
    """``"cuda"`` or ``"cpu"``; None for any."""
    context_tokens: int | None = _DEFAULT.context_tokens
    """Longest text that must fit, in tokens; None for any."""
    batch_size: int = _DEFAULT.batch_size
    """Most texts in one request."""
    max_concurrency: int = _DEFAULT.max_concurrency
    """Most requests in flight, over the whole process."""
    timeout: float = _DEFAULT.timeout
    """How long one request may take, in seconds; a text such as ``"90s"`` is accepted."""
    start_timeout: float = _DEFAULT.start_timeout
    """How long to wait for a server to start, in seconds; ``"15m"`` is accepted."""
    idle_timeout: float | None = _DEFAULT.idle_timeout
    """How long a started server stays without use, in seconds, or ``"5m"``; None for ever."""
    truncate: bool = _DEFAULT.truncate
    """Cut over-long texts instead of refusing them."""
    server_dimensions: bool = _DEFAULT.server_dimensions
    """Let the server cut vectors to ``dimensions``: less to transfer."""
    show_progress_bar: bool = _DEFAULT.show_progress
    """Show a progress bar while documents are embedded."""
    cache: str | None = _DEFAULT.cache
    """Where vectors are kept and looked for first: ``"sqlite"``, or a URL; see docs/caching.md."""

    _embedder: Embedder = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        data = dict(data)
        embedder = data.pop(_MADE, None)
        try:
            _refuse(data, owner=cls)
            embedder = _made(embedder, data) or Embedder(**_given(cls, data))
        except SettingError as error:
            raise _invalid(cls, data, error) from None
        made = handler(data | _shown(embedder.settings))
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
        changes = {_SETTING_OF[name]: update[name] for name in update if name in _SETTING_OF}
        theirs = {name: getattr(self, name) for name in known if name not in _SETTING_OF}
        theirs |= {name: update[name] for name in update if name not in _SETTING_OF}
        try:
            embedder = self._embedder.replace(**changes)
        except SettingError as error:
            raise _invalid(type(self), update, error) from None
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
        return cls(**{**theirs, _MADE: embedder})

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self.__dict__ == other.__dict__  # the fields, and not the connections

    def __hash__(self) -> int:
        return hash((type(self), self.model, self.dimensions))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "api_key": None}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        # The embedder has looked for a key in this process's environment.
        api_key = _secret(state["__pydantic_private__"]["_embedder"].settings.api_key)
        super().__setstate__({**state, "__dict__": {**state["__dict__"], "api_key": api_key}})

    @property
    def embedder(self) -> Embedder:
        """The framework-free object that does the work; its vectors are NumPy arrays."""
        return self._embedder

    def endpoint(self) -> Endpoint:
        """Return the server that is used, found or started now if it has to be.

        Its ``base_url`` and ``api_key`` suit every client that speaks OpenAI's protocol.
        """
        return self._embedder.endpoint()

    @property
    def identity(self) -> str:
        """What decides the vectors (model, revision, dimensions, instructions), in a short text.

        Keep it beside an index that was made with this object, for ``check_identity``.
        """
        return self._embedder.identity

    def check_identity(self, kept: str) -> None:
        """Do nothing if the index with the identity ``kept`` goes with this object.

        Raises:
            emberd.IdentityError: It was made with other settings; the text names both.
        """
        self._embedder.check_identity(kept)

    def embed_documents(
        self, texts: list[str], chunk_size: int | None = None, **overrides: Any
    ) -> list[list[float]]:
        """Return one vector of norm 1 for each document, in their order.

        Args:
            texts: The documents; any number of them, batched here.
            chunk_size: Most texts in one request, for this call; the name is OpenAIEmbeddings'.
            **overrides: Settings for this call alone, such as ``dimensions`` or
                ``document_instruction``; see ``emberd.Embedder.using``.

        Raises:
            emberd.EmberdError: The embedding failed; the text says why and what to do.
        """
        return to_lists(self._using(chunk_size, overrides).embed_documents(texts))

    def embed_query(self, text: str, **overrides: Any) -> list[float]:
        """Return the vector of a query, of norm 1.

        Args:
            text: The query, without an instruction.
            **overrides: As for ``embed_documents``; for example ``query_instruction``.

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


def _refuse(data: Mapping[str, Any], owner: type[BaseModel]) -> None:
    known = owner.model_fields
    if unknown := sorted(set(data) - set(known)):
        raise SettingError(
            f"{owner.__name__} has no field {unknown[0]!r}{_called(unknown[0])}. "
            f"It has: {', '.join(sorted(known))}."
        )


def _made(embedder: Any, data: Mapping[str, Any]) -> Embedder | None:
    if embedder is None:
        return None
    if not isinstance(embedder, Embedder):
        raise SettingError(f"{embedder!r} is no emberd.Embedder.")
    if beside := sorted(name for name in data if name in _SETTING_OF):
        raise SettingError(
            f"{beside[0]} is given beside an Embedder, which has all settings. Give it to the "
            f"Embedder, or use model_copy(update=...) afterwards."
        )
    return embedder


def _called(name: str) -> str:
    return f"; it is called {_ELSEWHERE[name]} here" if name in _ELSEWHERE else ""


def _given(owner: type[BaseModel], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that were given; what was not comes from a subclass's own defaults."""
    declared = {
        name
        for kind in owner.__mro__[: owner.__mro__.index(EmberdEmbeddings)]
        for name in inspect.get_annotations(kind)
        if name in _SETTING_OF and not owner.model_fields[name].is_required()
    }
    defaults = {
        name: owner.model_fields[name].get_default(call_default_factory=True) for name in declared
    }
    # None counts as not given; but an idle timeout of None means never.
    given = {
        name: value
        for name, value in data.items()
        if name in _SETTING_OF and (value is not None or name == "idle_timeout")
    }
    return {_SETTING_OF[name]: value for name, value in (defaults | given).items()}


def _invalid(owner: type[BaseModel], data: Mapping[str, Any], error: SettingError) -> Exception:
    """Return ``error`` as pydantic's, which holds the names of what was given and no value."""
    detail = InitErrorDetails(type="value_error", loc=(), input=sorted(data), ctx={"error": error})
    return ValidationError.from_exception_data(owner.__name__, [detail], hide_input=True)


def _secret(value: str | None) -> SecretStr | None:
    return SecretStr(value) if value else None


def _shown(settings: Settings) -> dict[str, Any]:
    """Return the fields' values; an instruction that was left out shows as its template."""
    values = asdict(settings)
    values["api_key"] = _secret(settings.api_key)
    if settings.query_instruction is None:
        values["query_instruction"] = settings.query_template
    if settings.document_instruction is None:
        values["document_instruction"] = settings.document_template
    return {field: values[setting] for field, setting in _SETTING_OF.items()}
