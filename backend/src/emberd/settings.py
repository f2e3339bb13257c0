"""What a caller may ask for, and where it is read from.

``ServerSpec`` is identity and constraints of a server; ``Settings`` is all that an ``Embedder``
takes. The environment is read in one call, when an object is constructed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

from emberd import checkpoints, checks, durations, environment
from emberd.catalog import DEMO_MODEL, Model
from emberd.errors import SettingError
from emberd.instructions import Templates, templates
from emberd.listeners import Listener

DEFAULT_MODEL: Final = "Qwen/Qwen3-Embedding-4B"
IDLE_TIMEOUT_S: Final = 1800.0
START_TIMEOUT_S: Final = 900.0
REQUEST_TIMEOUT_S: Final = 120.0
BATCH_TEXTS: Final = 256
CONCURRENT_REQUESTS: Final = 8


@runtime_checkable
class Secret(Protocol):
    """A text that does not print itself, such as pydantic's ``SecretStr``."""

    def get_secret_value(self) -> str:
        """Return the text."""


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
        dtype: Number format of the weights; None for the engine's own choice.
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
    dtype: str | None = None
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
            "dtype": self.dtype,
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


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A verified place to send texts to.

    Attributes:
        url: Root of the server, without ``/v1`` and without a slash at the end.
        model: The name that the server goes by; sent with each request.
        dimensions: Length of its native vectors.
        context_tokens: Longest text that it takes, in tokens; None when it does not say.
        api_key: Its key, or None when it wants none. Never printed.
        server: What kind of server answers, in one word; for people.
        listener: The listening socket that was verified; each new connection is checked against
            it before anything is sent. None for a server on another machine.
        canary: The vector of the text that verified it, as the server gave it; empty when it is
            not kept. A server that comes back must give the same one.
    """

    url: str
    model: str
    dimensions: int
    context_tokens: int | None = None
    api_key: str | None = field(default=None, repr=False)
    server: str = "unknown"
    listener: Listener | None = None
    canary: tuple[float, ...] = field(default=(), repr=False, compare=False)

    @property
    def base_url(self) -> str:
        """The URL that OpenAI clients want: with ``/v1``."""
        return f"{self.url}/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that an embedder can be told; made by ``Settings.resolve``.

    Attributes:
        model: Name on the hub, or a folder.
        dimensions: Length of the vectors that leave; None for native. Where neither the caller nor
            the environment says, it is the ``truncate_dim`` of the model's folder.
        query_instruction: See ``emberd.instructions.template``.
        document_instruction: See ``emberd.instructions.template``.
        symmetric: Queries are embedded as documents are; see ``emberd.instructions.templates``.
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
        values = environment.read(os.environ)
        values |= {
            name: value
            for name, value in given.items()
            if value is not UNSET and (value is not None or name == "idle_timeout")
        }
        for name, read in _READ.items():
            if name in values:
                values[name] = read(values[name])
        if "dimensions" not in values and isinstance(values.get("model"), str):
            values["dimensions"] = checkpoints.describe(values["model"]).cut_to
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
            content=checkpoints.content(self.model),
        )

    @property
    def known(self) -> Model:
        """What is known of the model, from the catalog or from its folder."""
        return checkpoints.describe(self.model)

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
        checks.check(self)
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


def root_url(url: str, name: str = "base_url") -> str:
    """Return ``url`` without a trailing slash or ``/v1``.

    Args:
        url: What was given.
        name: Where it was given, for the error.

    Raises:
        SettingError: It is not an http or https URL, or has a part that may hold secrets, which
            would then stand in logs and errors too.
    """
    # First of all, for the other errors repeat the URL.
    if "@" in url:
        raise SettingError(
            f"{name} has a user name or password in it. Leave them out, and give api_key=, or a "
            f"client of your own (client=) where the server wants another way to log in."
        )
    if "?" in url or "#" in url:
        raise SettingError(
            f"{name} has a query (?) or a fragment (#) in it. Leave it out, and give a client of "
            f"your own (client=) where the server wants one."
        )
    bare = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    if not bare.startswith(("http://", "https://")) or bare.endswith("//"):
        raise SettingError(
            f"{name}={url!r} is not an http(s) URL. Write it like http://127.0.0.1:30000/v1."
        )
    return bare


def _read_url(given: object) -> str:
    if not isinstance(given, str):
        raise SettingError(f"base_url is of type {type(given).__name__} and must be a text.")
    return root_url(given)


def read_key(given: object) -> str | None:
    """Return a key that can stand in a header, or None for a blank one.

    Raises:
        SettingError: It is none; the text never shows it.
    """
    if isinstance(given, Secret):
        given = given.get_secret_value()
    if not isinstance(given, str):
        raise SettingError(f"api_key is of type {type(given).__name__} and must be a text.")
    key = given.strip()
    if not all("!" <= character <= "~" for character in key):
        raise SettingError(
            "api_key has a space, a line break or a character outside of ASCII in it, which no "
            "HTTP header can carry. Look whether it was copied whole, and nothing with it."
        )
    return key or None


def _read_path(given: Any) -> Any:
    name = os.fspath(given) if isinstance(given, os.PathLike) else given
    return checkpoints.absolute(name) if isinstance(name, str) else name


# What is given in several forms, and how it is brought into one.
_READ: Final[dict[str, Callable[[Any], Any]]] = {
    "api_key": read_key,
    "base_url": _read_url,
    "model": _read_path,
    "timeout": partial(durations.check, "timeout"),
    "start_timeout": partial(durations.check, "start_timeout"),
    "idle_timeout": partial(durations.check_or_never, "idle_timeout"),
}


def is_demo(model: str) -> bool:
    """Return whether ``model`` is the bundled one, whose vectors are not Qwen3's."""
    return model == DEMO_MODEL
