"""What the classes of this package share: fields that show the settings of an object of emberd."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from itertools import takewhile
from typing import Any, ClassVar, Final, Self

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

from emberd import Embedder, Endpoint, ModelInfo, Reranker, SettingError, Settings

DEFAULT: Final = Settings()  # does not read the environment


class SettingsModel(BaseModel):
    """A pydantic model over an ``Embedder`` or a ``Reranker``, whose settings its fields show.

    That object resolves and checks the values. A class that derives from this one declares the
    class of it, and what its own fields are called elsewhere.
    """

    # strict: a value that pydantic converts would differ from the one that emberd's object got.
    # hide_input_in_errors: the input contains the key.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    _wraps: ClassVar[type[Embedder] | type[Reranker]]
    _setting_of: ClassVar[Mapping[str, str]]  # field -> argument of the wrapped class
    _elsewhere: ClassVar[Mapping[str, str]]  # field of another class -> field of this one

    model: str
    """Name on the hub, or a folder."""
    revision: str | None = DEFAULT.revision
    """Commit, branch or tag on the hub; None for the default."""
    quantization: str | None = DEFAULT.quantization
    """``"fp8"`` for weights of eight bits, which give other results; None for none."""
    base_url: str | None = DEFAULT.base_url
    """A server to use; emberd then starts none."""
    api_key: SecretStr | None = Field(default=None, exclude=True)
    """Its key; left out of dumps, pickles and ``repr``."""
    engine: str | None = DEFAULT.engine
    """Which engine may serve; None for any."""
    device: str | None = DEFAULT.device
    """``"cuda"``, ``"mps"`` or ``"cpu"``; None for any."""
    context_tokens: int | None = DEFAULT.context_tokens
    """Longest text that must fit, in tokens; None for any."""
    deterministic: bool = DEFAULT.deterministic
    """A text gets the same result, to the bit, alone and in any batch."""
    batch_size: int = DEFAULT.batch_size
    """Maximum number of texts in one request."""
    max_concurrency: int = DEFAULT.max_concurrency
    """Maximum number of requests in flight in this process."""
    timeout: float = DEFAULT.timeout
    """Time limit of one request, in seconds; a text such as ``"90s"`` is accepted."""
    start_timeout: float = DEFAULT.start_timeout
    """How long to wait for a server to start, in seconds; ``"15m"`` is accepted."""
    idle_timeout: float | None = DEFAULT.idle_timeout
    """Time without use after which a started server stops, in the same form; None for never."""
    truncate: bool = DEFAULT.truncate
    """Cut texts that are too long instead of refusing them."""

    _wrapped: Any = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        data = dict(data)
        given = data.pop(_argument(cls._wraps), None)
        try:
            cls._check_names(data)
            wrapped = cls._checked(given, data) if given is not None else cls._made(data)
        except SettingError as error:
            raise cls._invalid(data, error) from None
        made = handler(data | cls._shown(wrapped))
        made._wrapped = wrapped
        return made

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, or, with ``update``, an object that has the other settings of this one.

        Args:
            update: Fields to change, checked like those of a new object.
            deep: Has no effect, because what the copies share never changes.
        """
        if not update:
            return super().model_copy(deep=deep)
        names = self._setting_of
        changes = {names[name]: update[name] for name in update if name in names}
        others = {name: getattr(self, name) for name in type(self).model_fields}
        others = {name: value for name, value in {**others, **update}.items() if name not in names}
        try:
            wrapped = self._wrapped.replace(**changes)
        except SettingError as error:
            raise self._invalid(update, error) from None
        return self._over(wrapped, others)

    @classmethod
    def _over(cls, wrapped: Any, others: Mapping[str, Any]) -> Self:
        """Return an object that uses ``wrapped``, with the other fields as given."""
        return cls(**{**others, _argument(cls._wraps): wrapped})

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self.__dict__ == other.__dict__  # the fields, without the connections

    def __hash__(self) -> int:
        return hash((type(self), self.model))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], "api_key": None}}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        # The wrapped object has read the key from this process's environment.
        api_key = _secret(state["__pydantic_private__"]["_wrapped"].settings.api_key)
        super().__setstate__({**state, "__dict__": {**state["__dict__"], "api_key": api_key}})

    def endpoint(self) -> Endpoint:
        """Return the server in use; find or start it now if there is none yet.

        Its ``base_url`` and ``api_key`` suit other clients of this server too.
        """
        endpoint: Endpoint = self._wrapped.endpoint()
        return endpoint

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model without asking a server; see ``emberd.ModelInfo``."""
        info: ModelInfo = self._wrapped.model_info
        return info

    @classmethod
    def _check_names(cls, data: Mapping[str, Any]) -> None:
        if unknown := sorted(set(data) - set(cls.model_fields)):
            name = unknown[0]
            elsewhere = cls._elsewhere
            hint = f"; it is called {elsewhere[name]} here" if name in elsewhere else ""
            raise SettingError(
                f"{cls.__name__} has no field {name!r}{hint}. "
                f"It has: {', '.join(sorted(cls.model_fields))}."
            )

    @classmethod
    def _checked(cls, given: Any, data: Mapping[str, Any]) -> Embedder | Reranker:
        wanted = f"an emberd.{cls._wraps.__name__}"
        if not isinstance(given, cls._wraps):
            raise SettingError(f"{given!r} is not {wanted}.")
        if settings := sorted(name for name in data if name in cls._setting_of):
            raise SettingError(
                f"{settings[0]} is given together with {wanted}, which has all settings. Give it "
                f"to that object, or use model_copy(update=...) afterwards."
            )
        return given

    @classmethod
    def _made(cls, data: Mapping[str, Any]) -> Embedder | Reranker:
        """Return what to wrap, with the given settings, and defaults that a subclass declares."""
        names, known = cls._setting_of, cls.model_fields
        # The classes after that are those of this package.
        own = takewhile(lambda kind: "_setting_of" not in vars(kind), cls.__mro__)
        values = {
            name: known[name].get_default(call_default_factory=True)
            for kind in own
            for name in inspect.get_annotations(kind)
            if name in names and not known[name].is_required()
        }
        # None counts as not given, except that an idle timeout of None means never.
        values |= {
            name: value
            for name, value in data.items()
            if name in names and (value is not None or name == "idle_timeout")
        }
        return cls._wraps(**{names[name]: value for name, value in values.items()})

    @classmethod
    def _invalid(cls, data: Mapping[str, Any], error: SettingError) -> Exception:
        """Return ``error`` as pydantic's, with the names of the given fields and without values."""
        detail = InitErrorDetails(
            type="value_error", loc=(), input=sorted(data), ctx={"error": error}
        )
        return ValidationError.from_exception_data(cls.__name__, [detail], hide_input=True)

    @classmethod
    def _shown(cls, wrapped: Any) -> dict[str, Any]:
        """Return the values of the fields that are settings of ``wrapped``."""
        settings: Settings = wrapped.settings
        values = {**asdict(settings), "api_key": _secret(settings.api_key)}
        return {
            field: values[setting]
            for field, setting in cls._setting_of.items()
            if setting in values
        }


def _argument(kind: type) -> str:
    return kind.__name__.lower()


def _secret(value: str | None) -> SecretStr | None:
    return SecretStr(value) if value else None
