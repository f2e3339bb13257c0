"""What a caller may request, and its validation.

``ServerSpec`` is identity and constraints of a server; ``StartOptions`` says how one is started;
``Settings`` is all that an ``Embedder`` takes, ``RerankSettings`` all that a ``Reranker`` does. The
environment is read once, when an object is constructed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import Enum
from functools import partial
from typing import Any, ClassVar, Final

from emberd import durations, endpoint, env, hub, model_card, model_files
from emberd.catalog import DEFAULT_MODELS, EMBED, QWEN_FORM, RERANK, Model
from emberd.errors import HubError, InstructionError, SettingError
from emberd.prompts import Templates, plain, templates

_LOG: Final = logging.getLogger("emberd")

DEFAULT_MODEL: Final = DEFAULT_MODELS[EMBED]
DEFAULT_RERANKER: Final = DEFAULT_MODELS[RERANK]
IDLE_TIMEOUT_S: Final = 1800.0
START_TIMEOUT_S: Final = 900.0
QUANTIZATIONS: Final = ("fp8",)
"""What ``quantization=`` may be besides None."""

# The engines that compare a model's pooling with their own; None is any engine.
_CHECKING_ENGINES: Final = (None, "sglang", "transformers")


class Unset(Enum):
    """Distinguishes "not given" from None, where None is a value."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """Which server is wanted: its identity, and constraints that it must meet.

    Identity (determines the vectors, and the folder of the server's state):

    Attributes:
        model: Name on the hub, or a folder.
        revision: Commit, branch or tag on the hub; None for the default.
        quantization: Quantisation of the weights; None for none.
        content: Content hash of a folder; None for a name on the hub.
        task: ``"embed"`` or ``"rerank"``: a server does one of them.

    Constraints (any running server of the same identity that meets them is used):

    Attributes:
        engine: ``"sglang"``, ``"transformers"``, ``"demo"``, or the dotted name of a module; None
            for any.
        device: ``"cuda"``, ``"mps"`` or ``"cpu"``; None for any.
        context_tokens: Longest text that must fit, in tokens; None for any.
        deterministic: A text must get the same vector, to the bit, alone and in any batch.
    """

    model: str = DEFAULT_MODEL
    revision: str | None = None
    quantization: str | None = None
    engine: str | None = None
    device: str | None = None
    context_tokens: int | None = None
    content: str | None = None
    deterministic: bool = False
    task: str = EMBED

    @property
    def identity(self) -> dict[str, str | None]:
        """The fields that determine a vector, as requested."""
        return {
            "model": self.model,
            "revision": self.revision,
            "quantization": self.quantization,
            # Left out if None, so that the keys of models on the hub do not depend on it.
            **({"content": self.content} if self.content else {}),
            # Likewise, so that the keys of embedding models do not depend on it.
            **({"task": self.task} if self.task != EMBED else {}),
        }

    @property
    def key(self) -> str:
        """Hash of the identity, 16 hexadecimal digits."""
        canonical = json.dumps(self.identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def accepts(
        self, engine: str, device: str | None, context_tokens: int | None, *, deterministic: bool
    ) -> bool:
        """Return whether a server with these properties meets the constraints."""
        wanted = self.context_tokens
        is_long_enough = wanted is None or context_tokens is None or context_tokens >= wanted
        return (
            self.engine in (None, engine)
            and self.device in (None, device)
            and is_long_enough
            and (deterministic or not self.deterministic)
        )


class _WithCard:
    """Holds what ``Settings.with_card`` keeps, which is no setting."""

    __slots__ = ("_card",)
    _card: tuple[Model, Templates]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(_WithCard):
    """All settings of an embedder; made by ``Settings.resolve``.

    ``RerankSettings`` are those of a reranker.

    Attributes:
        task: What the model is used for.
        model: Name on the hub, or a folder.
        dimensions: Length of the returned vectors; None for native. The default is the
            ``truncate_dim`` of the model's folder.
        query_instruction, document_instruction: See ``emberd.prompts.template``.
        symmetric: Embed queries as documents; see ``emberd.prompts.templates``.
        base_url: A server to use; emberd then starts none.
        api_key: Its key. Never printed, never pickled.
        revision: Commit, branch or tag on the hub; None for the default.
        quantization: ``"fp8"`` for weights of eight bits, which give other vectors; None for none.
        engine: Which engine may serve; None for any.
        device: ``"cuda"``, ``"mps"`` or ``"cpu"``; None for any.
        context_tokens: Longest text that must fit, in tokens; None for any.
        deterministic: A text must get the same vector, to the bit, alone and in any batch.
        batch_size: Maximum number of texts in one request.
        max_concurrency: Maximum number of requests in flight in this process.
        timeout: Time limit of one request, in seconds.
        start_timeout: Seconds to wait for a server to start.
        idle_timeout: Seconds without use after which a started server stops; None for never.
        truncate: Cut texts that are too long instead of refusing them.
        server_dimensions: Let the server cut vectors to ``dimensions``: less to transfer.
        show_progress: Show a progress bar while documents are embedded.
        cache: URL of the cache of vectors; None for none.
    """

    task: ClassVar[str] = EMBED

    model: str = DEFAULT_MODEL
    dimensions: int | None = None
    query_instruction: str | None = None
    document_instruction: str | None = None
    symmetric: bool = False
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    revision: str | None = None
    quantization: str | None = None
    engine: str | None = None
    device: str | None = None
    context_tokens: int | None = None
    deterministic: bool = False
    batch_size: int = 256
    max_concurrency: int = 8
    timeout: float = 120.0
    start_timeout: float = START_TIMEOUT_S
    idle_timeout: float | None = IDLE_TIMEOUT_S
    truncate: bool = False
    server_dimensions: bool = False
    show_progress: bool = False
    cache: str | None = None

    @classmethod
    def resolve(cls, **given: Any) -> Settings:
        """Return settings: what is given, else the environment, else the default.

        Args:
            **given: Fields of this class. None and ``UNSET`` count as not given, except that
                ``idle_timeout=None`` means never. Durations may be texts, such as ``"5m"``.

        Raises:
            SettingError: A field is unknown, or a value is invalid; the text names it.
        """
        _check_names(given)
        chosen = {
            name: value
            for name, value in given.items()
            if value is not UNSET and (value is not None or name == "idle_timeout")
        }
        found = env.setting_values(without=chosen, task=cls.task)
        with env.named_in_errors(found, cls.task):
            values = _read({**found, **chosen})
            is_named = isinstance(values.get("model"), str)
            if cls.task == EMBED and "dimensions" not in values and is_named:
                revision = values.get("revision")
                at = revision if isinstance(revision, str) else None
                values["dimensions"] = model_card.describe(values["model"], at).cut_to
            settings = cls(**values)
            settings._validate()
        return settings

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **{**asdict(self), "api_key": None}), ()

    def __copy__(self) -> Settings:
        return self  # immutable, and a copy through a pickle would lose the key

    def __deepcopy__(self, memo: dict[int, Any]) -> Settings:
        return self

    @property
    def spec(self) -> ServerSpec:
        """Which server is wanted."""
        return ServerSpec(
            model=self.model,
            revision=self.revision,
            quantization=self.quantization,
            engine=self.engine,
            device=self.device,
            context_tokens=self.context_tokens,
            deterministic=self.deterministic,
            content=model_files.content_hash(self.model),
            task=self.task,
        )

    @property
    def known(self) -> Model:
        """What is known of the model, from the catalog or from its files on this machine."""
        card = self._kept_card
        return card[0] if card else model_card.describe(self.model, self.revision, task=self.task)

    @property
    def has_templates(self) -> bool:
        """Whether the templates are known, without files that have to be fetched first."""
        if self._kept_card or not model_card.lacks_prompts_file(self.model, self.revision):
            return True
        try:
            _ = self._templates
        except InstructionError:
            return False
        return True

    @property
    def is_described(self) -> bool:
        """Whether all files that describe the model are on this machine."""
        return not model_card.is_incomplete(self.model, self.revision)

    @property
    def awaits_card(self) -> bool:
        """Whether ``fetch_card`` has something to fetch."""
        # A given server, or an engine that is a module, may have any name for its model. The hub is
        # not asked for it without need.
        asks = self.base_url is None and self.engine in _CHECKING_ENGINES
        return asks and not self.is_described

    def fetch_card(self) -> HubError | None:
        """Fetch what describes a model on the hub, so that its pooling is checked before a start.

        May wait for the network. A model is served without it too.

        Returns:
            The error if the files cannot be fetched.
        """
        return self._fetch_card() if self.awaits_card else None

    def _fetch_card(self) -> HubError | None:
        if self.is_described:
            return None
        try:
            hub.fetch(self.model, self.revision, optional=self.has_templates)
        except HubError as error:
            _LOG.info("%s", error)
            return error
        return None

    def obtain_card(self) -> Model:
        """Fetch what describes the model before the first text, and return what is known then.

        If the instructions are given, a model that cannot be described is used all the same.

        Raises:
            HubError: The files cannot be fetched, and the templates are not known without them.
        """
        error = self.fetch_card() if self.has_templates else self._fetch_card()
        if error is not None and not self.has_templates:
            raise HubError(
                f"{error} Or give query_instruction= and document_instruction=, '' for no prompt, "
                f"and emberd does not need them."
            ) from error
        return self.known

    def check_card(self, *, native: bool = False) -> None:
        """Check the settings against what is known of the model now.

        Args:
            native: ``dimensions=None`` was chosen; it is not just the default.

        Raises:
            SettingError: A setting does not suit the model.
        """
        self._validate()
        cut_to = self.known.cut_to
        if self.dimensions is None and cut_to is not None and not native:
            # Known at construction, it would be the default.
            raise SettingError(
                f"sentence-transformers cuts the vectors of {self.model} to {cut_to} dimensions "
                f"(truncate_dim). Give dimensions={cut_to}, or dimensions={self.known.dimensions} "
                f"for native vectors."
            )

    def check_task(self) -> None:
        """Raise if the model is known to do something else than it is wanted for.

        Raises:
            SettingError: It does; the text says which file, or which entry, shows it.
        """
        known = self.known
        if known.task == self.task:
            if self.task == RERANK and known.query_problem:
                raise SettingError(
                    f"model={self.model!r} is a reranker whose prompt emberd cannot write: "
                    f"{known.query_problem}. Use {DEFAULT_RERANKER}, or another model made from "
                    f"Qwen3-Reranker with its prompt."
                )
            return
        # Which kind of model a folder holds is decided by its files before anything is started. A
        # name on the hub whose files are not here, or of a given server, is decided later.
        is_settled = bool(known.task_reason) or model_files.is_folder(self.model)
        is_open = self.task == EMBED or not is_settled
        if known.task is None and is_open:
            return
        reason = f" ({known.task_reason})" if known.task_reason else ""
        if self.task == RERANK:
            raise SettingError(
                f"model={self.model!r} is {_KINDS.get(known.task, 'not known as a reranker')}"
                f"{reason}, but a reranker is needed. Use {DEFAULT_RERANKER}, or another "
                f"Qwen3-Reranker; to embed texts, use emberd.Embedder."
            )
        raise SettingError(
            f"model={self.model!r} is {_KINDS[known.task]}{reason}, but an embedding model is "
            f"needed. To score documents with it, use emberd.Reranker; its model is set by "
            f"{env.setting_variable('model', RERANK)}."
        )

    def with_card(self, known: Model) -> Settings:
        """Return settings that use ``known``: each query needs it, and files may arrive later.

        Not for a folder, whose files are looked at again: that they have changed is an error.
        """
        if model_files.is_folder(self.model):
            return self
        kept = replace(self)
        object.__setattr__(kept, "_card", (known, self._templates_of(known)))
        return kept

    @property
    def query_template(self) -> str:
        """The template of queries, which contains ``{text}``."""
        return self._templates.query

    @property
    def document_template(self) -> str:
        """The template of documents, which contains ``{text}``."""
        return self._templates.document

    def changed(self, **changes: Any) -> Settings:
        """Return a copy with some fields changed; the environment is not read.

        A key belongs to one server: with another ``base_url``, on another origin, the copy has only
        the key that is given with it.

        Raises:
            SettingError: A field is unknown, or a value is invalid; the text names it.
        """
        _check_names(changes)
        values = _read(changes)
        if "base_url" in values and not endpoint.is_same_origin(values["base_url"], self.base_url):
            values.setdefault("api_key", None)
        settings = replace(self, **values)
        settings._validate()
        return settings

    @property
    def _kept_card(self) -> tuple[Model, Templates] | None:
        return getattr(self, "_card", None)

    @property
    def _templates(self) -> Templates:
        card = self._kept_card
        return card[1] if card else self._templates_of(self.known)

    def _templates_of(self, known: Model) -> Templates:
        return templates(
            known,
            self.query_instruction,
            self.document_instruction,
            symmetric=self.symmetric,
        )

    def _validate(self) -> None:
        """Check the fields that ``_read`` does not check."""
        for name in (*_TEXTS, *_INSTRUCTIONS, *_COUNTS, *_SWITCHES, _QUANTIZATION):
            value = getattr(self, name)
            if why := _why_invalid(name, value):
                raise SettingError(f"{name}={value!r} must be {why}.")
        known = self.known
        self.check_task()
        if self.dimensions is not None:
            _check_dimensions(known, self.dimensions)
        # Refuses an instruction that would be misread at construction, not at first use.
        if model_card.lacks_prompts_file(self.model, self.revision):
            # The files may show prompts, and in which form the model takes a task.
            known = Model(self.model, instruction_form=QWEN_FORM)
        _ = self._templates_of(known)


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankSettings(Settings):
    """All settings of a reranker; those that concern vectors keep their defaults."""

    task: ClassVar[str] = RERANK

    model: str = DEFAULT_RERANKER
    query_instruction: str | None = ""
    document_instruction: str | None = ""

    def obtain_card(self) -> Model:
        """Fetch what describes the model, as its files may name an instruction; return it.

        Raises:
            HubError: The files cannot be fetched.
            SettingError: They are not those of a reranker whose prompt emberd can write.
        """
        if self.awaits_card:
            try:
                hub.fetch(self.model, self.revision, optional=False)
            except HubError as error:
                raise HubError(f"{error} Or give instruction=, which needs no file.") from error
        self.check_task()
        return self.known


_KINDS: Final[Mapping[str | None, str]] = {EMBED: "an embedding model", RERANK: "a reranker"}
_BY_TASK: Final = {EMBED: Settings, RERANK: RerankSettings}


def kind_of(
    model: str | None, revision: str | None = None, task: str | None = None
) -> type[Settings]:
    """Return the settings of a reranker if a model is one, else those of an embedder.

    Args:
        model: The model that is named; None if none is.
        revision: Commit, branch or tag on the hub.
        task: What it is used for; None if that depends on the model.

    Raises:
        SettingError: There is no such task.
    """
    if task is None and model is not None:
        task = model_card.describe(model_files.absolute(model), revision).task
    if task not in (None, *_BY_TASK):
        raise SettingError(f"task={task!r} must be {' or '.join(map(repr, _BY_TASK))}.")
    return _BY_TASK[task or EMBED]


_DEFAULT: Final = Settings()


def _check_names(given: Mapping[str, Any]) -> None:
    known = {each.name for each in fields(Settings)}
    if unknown := sorted(set(given) - known):
        raise SettingError(
            f"Unknown setting {unknown[0]!r}. Known are: {', '.join(sorted(known))}."
        )


def _read(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of ``Settings`` with what accepts several forms converted to one."""
    values = {n: plain(value) if isinstance(value, str) else value for n, value in given.items()}
    return {n: _READERS[n](value) if n in _READERS else value for n, value in values.items()}


def _read_path(given: Any) -> Any:
    name = os.fspath(given) if isinstance(given, os.PathLike) else given
    return model_files.absolute(name) if isinstance(name, str) else name


_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    "api_key": lambda given: None if given is None else endpoint.read_key(given),
    "base_url": lambda given: None if given is None else endpoint.root_url(given),
    "model": _read_path,
    "timeout": partial(durations.validate, "timeout"),
    "start_timeout": partial(durations.validate, "start_timeout"),
    "idle_timeout": partial(durations.validate_or_never, "idle_timeout"),
}

_TEXTS: Final = ("model", "revision", "engine", "device")
_INSTRUCTIONS: Final = ("query_instruction", "document_instruction")
_QUANTIZATION: Final = "quantization"
_COUNTS: Final = ("batch_size", "max_concurrency", "context_tokens")
_SWITCHES: Final = (
    "symmetric",
    "deterministic",
    "truncate",
    "server_dimensions",
    "show_progress",
)


def _why_invalid(name: str, value: object) -> str | None:
    """Return what a field must be; None if ``value`` is that."""
    if value is None and getattr(_DEFAULT, name) is None:
        return None
    if name in _TEXTS and not (isinstance(value, str) and value.strip()):
        return "a string that is not blank"
    if name in _INSTRUCTIONS and not isinstance(value, str):
        return "a string: a task, its name, or a template"
    if name == _QUANTIZATION and value not in QUANTIZATIONS:
        return " or ".join(map(repr, QUANTIZATIONS))
    if name in _SWITCHES and not isinstance(value, bool):
        return "True or False"
    is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return "an integer of at least 1" if name in _COUNTS and not is_count else None


def _check_dimensions(model: Model, dimensions: object) -> None:
    source = f" (the truncate_dim of {model.name})" if dimensions == model.cut_to else ""
    if isinstance(dimensions, bool) or not isinstance(dimensions, int):
        raise SettingError(f"dimensions={dimensions!r}{source} must be an integer.")
    longest = model.dimensions
    if dimensions < model.min_dimensions or (longest is not None and dimensions > longest):
        upper = f" and at most {longest}" if longest else ""
        raise SettingError(
            f"dimensions={dimensions}{source} does not suit {model.name}: "
            f"it must be at least {model.min_dimensions}{upper}."
        )


@dataclass(frozen=True, slots=True)
class StartOptions:
    """How to start a server.

    Attributes:
        port: Loopback port to listen on; None for any free one.
        no_auth: Require no key, so that every user and every web page on this machine can use it.
        tp_size: GPUs per copy of the model.
        dp_size: Copies of the model, each on its own GPUs.
        arguments: Added after emberd's arguments for the engine; the last of two conflicting
            ones takes effect.
        share_gpu: Models whose servers are to fit on one GPU, this one among them or not: a server
            that starts leaves memory for those that do not run yet.
    """

    port: int | None = None
    no_auth: bool = False
    tp_size: int = 1
    dp_size: int = 1
    arguments: tuple[str, ...] = ()
    share_gpu: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # A record stores them as JSON, which has only lists.
        object.__setattr__(self, "arguments", tuple(self.arguments))
        shared = {model_files.absolute(name) for name in self.share_gpu}
        object.__setattr__(self, "share_gpu", tuple(sorted(shared)))
        if self.port is not None and self.port not in range(1, 65_536):
            raise SettingError(f"port={self.port} is not a port: use 1 to 65535.")
        for name in ("tp_size", "dp_size"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} must be at least 1.")

    @property
    def gpus(self) -> int:
        """Number of GPUs that a server with these options uses."""
        return self.tp_size * self.dp_size

    @classmethod
    def resolve(
        cls, environ: Mapping[str, str] = os.environ, *, task: str = EMBED, **given: Any
    ) -> StartOptions:
        """Return options: what is given, else the environment, else the default.

        Args:
            environ: The environment. It cannot set ``no_auth``.
            task: What the model is used for. A port is that of one server, so a server of a
                reranker has a variable for it; the other options are shared.
            **given: Fields of this class; None counts as not given.

        Raises:
            SettingError: A value is invalid; the text names it.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        found = env.start_option_values(environ, without=chosen, task=task)
        with env.named_in_errors(found, task):
            return cls(**found, **chosen)
