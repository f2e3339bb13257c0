"""What a caller may ask for, and how it is validated.

``ServerSpec`` is identity and constraints of a server; ``StartOptions`` says how one is started;
``Settings`` is all that an ``Embedder`` takes. The environment is read once, when an object is
constructed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import partial
from typing import Any, Final

from emberd import durations, endpoint, env, model_card, model_files
from emberd.catalog import DEMO_MODEL, Model
from emberd.errors import SettingError
from emberd.prompts import Templates, templates

DEFAULT_MODEL: Final = "Qwen/Qwen3-Embedding-4B"
IDLE_TIMEOUT_S: Final = 1800.0
START_TIMEOUT_S: Final = 900.0
REQUEST_TIMEOUT_S: Final = 120.0
BATCH_TEXTS: Final = 256
CONCURRENT_REQUESTS: Final = 8


class Unset(Enum):
    """Tells "not given" from None, where None has a meaning of its own."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """What makes two servers interchangeable, and what a caller needs besides.

    Identity (it makes vectors what they are, and keys the folder of the server's state):

    Attributes:
        model: Name on the hub, or a folder.
        revision: Commit on the hub; None for whatever is there.
        quantization: Quantisation of the weights; None for none.
        content: For a folder, what stands for the files in it; None for a name on the hub.

    Constraints (any running server of the same identity that meets them will do):

    Attributes:
        engine: ``"sglang"``, ``"demo"``, or a module's dotted name; None for any.
        device: ``"cuda"``, ``"cpu"``; None for any.
        context_tokens: Longest text that must fit, in tokens; None for any.
    """

    model: str = DEFAULT_MODEL
    revision: str | None = None
    quantization: str | None = None
    engine: str | None = None
    device: str | None = None
    context_tokens: int | None = None
    content: str | None = None

    @property
    def identity(self) -> dict[str, str | None]:
        """The fields that decide what a vector is, as they were asked for."""
        return {
            "model": self.model,
            "revision": self.revision,
            "quantization": self.quantization,
            # Left out where there is none, so that the keys of hub models stay what they were.
            **({"content": self.content} if self.content else {}),
        }

    @property
    def key(self) -> str:
        """16 hexadecimal digits that stand for the identity."""
        canonical = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def accepts(self, engine: str, device: str | None, context_tokens: int | None) -> bool:
        """Return whether a server with these facts meets the constraints."""
        return (
            self.engine in (None, engine)
            and self.device in (None, device)
            and (
                self.context_tokens is None
                or context_tokens is None
                or context_tokens >= self.context_tokens
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that an embedder can be told; made by ``Settings.resolve``.

    Attributes:
        model: Name on the hub, or a folder.
        dimensions: Length of the vectors that leave; None for native. Where neither the caller nor
            the environment says, it is the ``truncate_dim`` of the model's folder.
        query_instruction: See ``emberd.prompts.template``.
        document_instruction: See ``emberd.prompts.template``.
        symmetric: Queries are embedded as documents are; see ``emberd.prompts.templates``.
        base_url: A server to use as it is; nothing is ever started then.
        api_key: Its key. Never printed, never pickled.
        revision: Commit on the hub; None for whatever is there.
        engine: Which engine may serve; None for any.
        device: ``"cuda"`` or ``"cpu"``; None for any.
        context_tokens: Longest text that must fit, in tokens; None for any.
        batch_size: Most texts in one request.
        max_concurrency: Most requests in flight, over the whole process.
        timeout: Seconds that one request may take.
        start_timeout: Seconds to wait for a server to start.
        idle_timeout: Seconds without use after which a started server stops; None for never.
        truncate: Cut over-long texts instead of refusing them.
        server_dimensions: Let the server cut vectors to ``dimensions``: less to transfer.
        show_progress: Show a progress bar while documents are embedded.
        cache: URL of the cache that is asked before a server is; None for none.
    """

    model: str = DEFAULT_MODEL
    dimensions: int | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None
    symmetric: bool = False
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    revision: str | None = None
    engine: str | None = None
    device: str | None = None
    context_tokens: int | None = None
    batch_size: int = BATCH_TEXTS
    max_concurrency: int = CONCURRENT_REQUESTS
    timeout: float = REQUEST_TIMEOUT_S
    start_timeout: float = START_TIMEOUT_S
    idle_timeout: float | None = IDLE_TIMEOUT_S
    truncate: bool = False
    server_dimensions: bool = False
    show_progress: bool = False
    cache: str | None = None

    @classmethod
    def resolve(cls, **given: Any) -> Settings:
        """Return settings: what was given, else the environment, else the default.

        Args:
            **given: Fields of this class; one that is None or ``UNSET`` counts as not given,
                except that ``idle_timeout=None`` means never. Durations may be texts, such as
                ``"5m"``.

        Raises:
            SettingError: An unknown field, or a value that cannot be used; it is named.
        """
        _refuse_unknown(given)
        values = env.setting_values()
        values |= {
            name: value
            for name, value in given.items()
            if value is not UNSET and (value is not None or name == "idle_timeout")
        }
        for name, read in _READ.items():
            if name in values:
                values[name] = read(values[name])
        if "dimensions" not in values and isinstance(values.get("model"), str):
            values["dimensions"] = model_card.describe(values["model"]).cut_to
        settings = cls(**values)
        settings._check()
        return settings

    def __reduce__(self) -> tuple[Any, ...]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return _rebuild, ({**values, "api_key": None},)

    def __copy__(self) -> Settings:
        return self  # nothing of it changes, and a copy by way of a pickle would lose the key

    def __deepcopy__(self, memo: dict[int, Any]) -> Settings:
        return self

    @property
    def spec(self) -> ServerSpec:
        """The part that says which server is wanted."""
        return ServerSpec(
            model=self.model,
            revision=self.revision,
            engine=self.engine,
            device=self.device,
            context_tokens=self.context_tokens,
            content=model_files.content_hash(self.model),
        )

    @property
    def known(self) -> Model:
        """What is known of the model, from the catalog or from its folder."""
        return model_card.describe(self.model)

    @property
    def query_template(self) -> str:
        """The template of queries, with ``{text}`` in it."""
        return self._templates.query

    @property
    def document_template(self) -> str:
        """The template of documents, with ``{text}`` in it."""
        return self._templates.document

    def changed(self, **changes: Any) -> Settings:
        """Return a copy with some fields changed, which the environment has no say in.

        Raises:
            SettingError: A value cannot be used; it is named.
        """
        _refuse_unknown(changes)
        read = {
            name: _READ[name](value) if name in _READ and value is not None else value
            for name, value in changes.items()
        }
        settings = replace(self, **read)
        settings._check()
        return settings

    @property
    def _templates(self) -> Templates:
        return templates(
            self.known,
            self.query_instruction,
            self.document_instruction,
            symmetric=self.symmetric,
        )

    def _check(self) -> None:
        check(self)
        # Raises for an instruction that would be misread: at construction, not at first use.
        _ = self._templates


def _refuse_unknown(given: Iterable[str]) -> None:
    known = {each.name for each in fields(Settings)}
    if unknown := sorted(set(given) - known):
        raise SettingError(
            f"Unknown setting {unknown[0]!r}. Known are: {', '.join(sorted(known))}."
        )


def _rebuild(values: dict[str, Any]) -> Settings:
    return Settings(**values)


def _read_path(given: Any) -> Any:
    name = os.fspath(given) if isinstance(given, os.PathLike) else given
    return model_files.absolute(name) if isinstance(name, str) else name


# What is given in several forms, and how it is brought into one.
_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "api_key": endpoint.read_key,
    "base_url": endpoint.read_url,
    "model": _read_path,
    "timeout": partial(durations.check, "timeout"),
    "start_timeout": partial(durations.check, "start_timeout"),
    "idle_timeout": partial(durations.check_or_never, "idle_timeout"),
}


def is_demo(model: str) -> bool:
    """Return whether ``model`` is the bundled one, whose vectors are not Qwen3's."""
    return model == DEMO_MODEL


# ------------------------------------------------------------ how a server is started

_PORTS: Final = range(1, 65_536)


@dataclass(frozen=True, slots=True)
class StartOptions:
    """How to start a server.

    Attributes:
        port: The loopback port that it is to listen on; None for any that is free.
        no_auth: It asks for no key: every user and every web page of this machine may use it.
        tp_size: GPUs over which one copy of the model is spread.
        dp_size: Copies of the model, each on GPUs of its own.
        arguments: Put behind the engine's own, as they are; the last of two that clash wins.
    """

    port: int | None = None
    no_auth: bool = False
    tp_size: int = 1
    dp_size: int = 1
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A record keeps them as JSON, which knows lists alone.
        object.__setattr__(self, "arguments", tuple(self.arguments))
        if self.port is not None and self.port not in _PORTS:
            raise SettingError(f"port={self.port} is no port: give one from 1 to 65535.")
        for name in ("tp_size", "dp_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} must be at least 1.")

    @property
    def gpus(self) -> int:
        """How many GPUs a server started like this takes."""
        return self.tp_size * self.dp_size

    @classmethod
    def resolve(cls, environ: Mapping[str, str] = os.environ, **given: Any) -> StartOptions:
        """Return what was given, else what the environment says, else the defaults.

        Args:
            environ: Where ``EMBERD_PORT``, ``EMBERD_TP_SIZE``, ``EMBERD_DP_SIZE`` and
                ``EMBERD_ENGINE_ARGS`` (words as a shell would split them) are looked for. An
                open server is never asked for by the environment.
            **given: Fields of this class; None counts as not given.

        Raises:
            SettingError: A value cannot be used; it is named.
        """
        values = env.start_option_values(environ)
        return replace(cls(**values), **{n: v for n, v in given.items() if v is not None})


# ------------------------------------------------------------ validation

_TEXTS: Final = ("model", "revision", "engine", "device")
_INSTRUCTIONS: Final = ("query_instruction", "document_instruction")
_COUNTS: Final = ("batch_size", "max_concurrency", "context_tokens")
_DURATIONS: Final = ("timeout", "start_timeout")
_SWITCHES: Final = ("symmetric", "truncate", "server_dimensions", "show_progress")


def check(settings: Any) -> None:
    """Check every field of ``settings`` that stands for itself.

    Args:
        settings: An ``emberd.settings.Settings``.

    Raises:
        SettingError: A value cannot be used; it is named.
    """
    for names, refuse in _CHECKS:
        for name in names:
            refuse(name, getattr(settings, name))
    if settings.dimensions is not None:
        _check_dimensions(settings.known, settings.dimensions)


def _check_text(name: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and value.strip()):
        raise SettingError(f"{name}={value!r} must be a text that is not blank.")


def _check_instruction(name: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise SettingError(f"{name}={value!r} must be a text: a task, its name, or a template.")


def _check_count(name: str, value: object) -> None:
    if value is None and name == "context_tokens":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(f"{name}={value!r} must be a whole number, at least 1.")


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise SettingError(f"{name}={value!r} must be True or False.")


def _check_dimensions(model: Model, dimensions: int) -> None:
    longest = model.dimensions
    source = f" (the truncate_dim of {model.name})" if dimensions == model.cut_to else ""
    if isinstance(dimensions, bool) or not isinstance(dimensions, int):
        raise SettingError(f"dimensions={dimensions!r}{source} must be a whole number.")
    if dimensions < model.min_dimensions or (longest is not None and dimensions > longest):
        upper = f" and at most {longest}" if longest else ""
        raise SettingError(
            f"dimensions={dimensions}{source} does not suit {model.name}: "
            f"it must be at least {model.min_dimensions}{upper}."
        )


_CHECKS: Final = (
    (_TEXTS, _check_text),
    (_INSTRUCTIONS, _check_instruction),
    (_COUNTS, _check_count),
    (_DURATIONS, durations.check),
    (("idle_timeout",), durations.check_or_never),
    (_SWITCHES, _check_switch),
)
