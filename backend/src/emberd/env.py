"""Every ``EMBERD_`` variable that users set, in one table, and the paths derived from them.

Their values are parsed only here. Those of ``INTERNAL`` are read by the processes that get them,
and those of the Hugging Face hub in ``model_files``.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from emberd import durations
from emberd.catalog import DEFAULT_MODELS, EMBED, RERANK
from emberd.endpoint import root_url
from emberd.errors import EmberdError, SettingError
from emberd.system import processes

PREFIX: Final = "EMBERD_"

API_KEY: Final = "EMBERD_API_KEY"
CACHE_PASSWORD: Final = "EMBERD_CACHE_PASSWORD"  # noqa: S105 - the name, not the password
STORE_API_KEY: Final = "EMBERD_STORE_API_KEY"
CACHE_USER: Final = "EMBERD_CACHE_USER"
IDLE_TIMEOUT: Final = "EMBERD_IDLE_TIMEOUT"

SERVE_KEY: Final = "EMBERD_SERVE_KEY"
SHARE_GPU: Final = "EMBERD_SHARE_GPU"
SERVER_KEY: Final = "EMBERD_SERVER_KEY"
"""Gives a server process the key that its clients must send."""

INTERNAL: Final = (processes.MARK, SERVER_KEY)
"""Variables that emberd's own processes pass to each other; users do not set them."""


@dataclass(frozen=True, slots=True)
class _Form:
    """How a variable is parsed, and what error messages say it must be."""

    parse: Callable[[str], Any]
    expected: str


def _switch(text: str) -> bool:
    word = text.strip().casefold()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(text)


def _port(text: str) -> int:
    if (port := int(text)) not in range(1, 65_536):
        raise ValueError(text)
    return port


def _urls(text: str) -> tuple[str, ...]:
    return tuple(root_url(url, "EMBERD_DISCOVER") for url in text.replace(",", " ").split())


_TEXT: Final = _Form(str, "a text")
_INTEGER: Final = _Form(int, "a whole number")
_PORT: Final = _Form(_port, "a port, 1 to 65535")
_SWITCH: Final = _Form(_switch, "1 or 0")
_DURATION: Final = _Form(durations.seconds, durations.FORMS)
_DURATION_OR_NEVER: Final = _Form(durations.seconds_or_never, durations.FORMS_OR_NEVER)
_URLS: Final = _Form(_urls, "http(s) URLs, separated by commas or spaces")
_WORDS: Final = _Form(
    lambda text: tuple(shlex.split(text)), "words as a shell splits them, with matching quotes"
)


def _models(text: str) -> tuple[str, ...] | bool:
    try:
        return _switch(text)
    except ValueError:
        words = shlex.shlex(text, posix=True)
        words.whitespace += ","
        words.whitespace_split = True
        words.commenters = ""
        return tuple(words)


_MODELS: Final = _Form(
    _models,
    "1, 0, or names of models, separated by commas or spaces; quote one that contains these",
)

Display = Literal["value", "origin", "name"]


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable.

    Attributes:
        name: Its name.
        form: How it is parsed.
        description: What it sets, in one line.
        sets: The field that it sets; empty for a variable that is read on its own.
        display: How much of the value a report may show: all, scheme and host of its URLs, or
            only that the variable is set.
        repeats: Whether an error may repeat the value.
        allows_empty: Whether an empty value counts as set.
    """

    name: str
    form: _Form
    description: str
    sets: str = ""
    display: Display = "name"
    repeats: bool = True
    allows_empty: bool = False

    def parse(self, text: str) -> Any:
        """Return the value that ``text`` stands for.

        Raises:
            SettingError: ``text`` does not have the variable's form.
        """
        try:
            return self.form.parse(text)
        except SettingError:
            raise
        except ValueError as error:
            shown = f"{self.name}={text!r}" if self.repeats else self.name
            raise SettingError(f"{shown} cannot be read: give {self.form.expected}.") from error


def _for_settings(field: str, form: _Form, description: str, **more: Any) -> Variable:
    return Variable(f"{PREFIX}{field.upper()}", form, description, field, **more)


_SETTINGS: Final = (
    _for_settings("model", _TEXT, "Model: a name on the hub, or a folder", display="value"),
    _for_settings("dimensions", _INTEGER, "Length of the vectors; native if not set"),
    _for_settings(
        "query_instruction",
        _TEXT,
        "Instruction of queries: a task, its name, or a template; empty for none",
        allows_empty=True,
    ),
    _for_settings(
        "document_instruction", _TEXT, "The same for documents; empty for none", allows_empty=True
    ),
    _for_settings("symmetric", _SWITCH, "Embed queries as documents are embedded"),
    _for_settings("base_url", _TEXT, "Server to use; emberd then starts none", display="origin"),
    _for_settings(
        "api_key", _TEXT, "Key of that server, and of those of the model in EMBERD_DISCOVER"
    ),
    _for_settings("revision", _TEXT, "Commit, branch or tag of the model on the hub"),
    _for_settings("quantization", _TEXT, "fp8 for weights of eight bits", display="value"),
    _for_settings("engine", _TEXT, "Engine that may serve the model", display="value"),
    _for_settings("device", _TEXT, "cuda, mps or cpu", display="value"),
    _for_settings("context_tokens", _INTEGER, "Longest text that must fit, in tokens"),
    _for_settings(
        "deterministic", _SWITCH, "Same vector or score of a text, to the bit, in any batch"
    ),
    _for_settings("batch_size", _INTEGER, "Maximum number of texts in one request"),
    _for_settings("max_concurrency", _INTEGER, "Maximum number of requests in flight"),
    _for_settings("timeout", _DURATION, "Time limit of one request"),
    _for_settings("start_timeout", _DURATION, "How long to wait for a server to start"),
    _for_settings("idle_timeout", _DURATION_OR_NEVER, "Time without use after which it stops"),
    _for_settings("truncate", _SWITCH, "Cut texts that are too long, instead of refusing them"),
    _for_settings("server_dimensions", _SWITCH, "Let the server cut vectors"),
    _for_settings(
        "show_progress",
        _SWITCH,
        "Show a progress bar while documents are embedded; not for a reranker",
    ),
    _for_settings("cache", _TEXT, "URL of a cache of vectors"),
)
# An embedder and a reranker in one process have different models, and so different servers: what
# names a server has a variable for each. All other settings are shared.
_RERANK: Final = (
    Variable("EMBERD_RERANK_MODEL", _TEXT, "Model of a reranker", "model", display="value"),
    Variable("EMBERD_RERANK_BASE_URL", _TEXT, "Server of a reranker", "base_url", display="origin"),
    Variable(
        "EMBERD_RERANK_API_KEY",
        _TEXT,
        "Key of that server, and of those of the model in EMBERD_DISCOVER",
        "api_key",
    ),
    Variable("EMBERD_RERANK_REVISION", _TEXT, "Commit, branch or tag of that model", "revision"),
)
_ONLY_EMBED: Final = frozenset(
    {
        *("dimensions", "query_instruction", "document_instruction", "symmetric"),
        *("server_dimensions", "show_progress", "cache"),
    }
)
_START_OPTIONS: Final = (
    Variable("EMBERD_PORT", _PORT, "Loopback port of an embedding server that is started", "port"),
    Variable("EMBERD_TP_SIZE", _INTEGER, "GPUs per copy of the model", "tp_size"),
    Variable("EMBERD_DP_SIZE", _INTEGER, "Copies of the model, each on its own GPUs", "dp_size"),
    Variable(  # arguments may hold secrets
        "EMBERD_ENGINE_ARGS",
        _WORDS,
        "Arguments for the engine, after emberd's own",
        "arguments",
        repeats=False,
    ),
    Variable(
        SHARE_GPU,
        _MODELS,
        "Models that share a GPU: a start leaves memory for the others; 1 for the embedding model "
        "and the reranker in use",
        "share_gpu",
        display="value",
    ),
)
_RERANK_PORT: Final = Variable(
    "EMBERD_RERANK_PORT", _PORT, "Loopback port of a server of a reranker that is started", "port"
)
_OTHERS: Final = (
    Variable("EMBERD_HOME", _TEXT, "Folder of all state", display="value"),
    Variable("EMBERD_ENGINES", _TEXT, "Folder of the engines' environments", display="value"),
    Variable("EMBERD_DISCOVER", _URLS, "External servers that may be used", display="origin"),
    Variable(
        "EMBERD_AUTO_INSTALL",
        _SWITCH,
        "Install an engine that a start needs; `emberd up` does not ask",
    ),
    Variable("EMBERD_SGLANG_PYTHON", _TEXT, "Interpreter or environment that has SGLang"),
    Variable("EMBERD_TRANSFORMERS_PYTHON", _TEXT, "Interpreter or environment with transformers"),
    Variable(CACHE_USER, _TEXT, "User name for a Redis cache"),
    Variable(CACHE_PASSWORD, _TEXT, "Password for a Redis cache", repeats=False),
    Variable(STORE_API_KEY, _TEXT, "Key of a vector store, for emberd reindex", repeats=False),
    Variable(SERVE_KEY, _TEXT, "Key that clients of emberd serve must send", repeats=False),
    Variable("EMBERD_DEBUG", _TEXT, "If set, the command shows tracebacks of errors"),
)

VARIABLES: Final = {
    each.name: each for each in (*_SETTINGS, *_RERANK, *_START_OPTIONS, _RERANK_PORT, *_OTHERS)
}
"""Name -> variable, in the order of the documentation."""

_RENAMED: Final = {
    usual.name: own.name
    for own in (*_RERANK, _RERANK_PORT)
    for usual in (*_SETTINGS, *_START_OPTIONS)
    if usual.sets == own.sets
}
_NAMES: Final = re.compile(rf"\b({'|'.join(_RENAMED)})\b")


def text(name: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """Return the text of a variable; None if it is not set or empty."""
    return environ.get(name) or None


def value(name: str, environ: Mapping[str, str] = os.environ) -> Any:
    """Return the parsed value of a variable; None if it is not set or empty.

    Raises:
        SettingError: The value cannot be parsed.
    """
    found = text(name, environ)
    return None if found is None else VARIABLES[name].parse(found)


def setting_values(
    environ: Mapping[str, str] = os.environ,
    without: Collection[str] = (),
    task: str = EMBED,
) -> dict[str, Any]:
    """Return the fields of ``Settings`` that the environment sets.

    Args:
        environ: The environment.
        without: Fields that arguments set: their variables are not read.
        task: What the model is used for.

    Raises:
        SettingError: A value cannot be parsed.
    """
    return _fields(_settings_of(task), environ, without)


def setting_variable(field: str, task: str = EMBED) -> str:
    """Return the name of the variable that sets a field of ``Settings``."""
    return next(each.name for each in _settings_of(task) if each.sets == field)


def _settings_of(task: str) -> tuple[Variable, ...]:
    if task == EMBED:
        return _SETTINGS
    own = _ONLY_EMBED | {each.sets for each in _RERANK}
    return (*_RERANK, *(each for each in _SETTINGS if each.sets not in own))


def start_option_values(
    environ: Mapping[str, str] = os.environ,
    without: Collection[str] = (),
    task: str = EMBED,
) -> dict[str, Any]:
    """Return the fields of ``StartOptions`` that the environment sets; see ``setting_values``."""
    found = _fields(_start_options_of(task), environ, without)
    if isinstance(found.get("share_gpu"), bool):
        found["share_gpu"] = _models_in_use(environ) if found["share_gpu"] else ()
    return found


def _models_in_use(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the embedding model and the reranker, without one whose server is given."""
    names = []
    for task in (EMBED, RERANK):
        if not text(setting_variable("base_url", task), environ):
            name = text(setting_variable("model", task), environ)
            names.append(name or DEFAULT_MODELS[task])
    return tuple(names)


def _start_options_of(task: str) -> tuple[Variable, ...]:
    if task == EMBED:
        return _START_OPTIONS
    return tuple(_RERANK_PORT if each.sets == "port" else each for each in _START_OPTIONS)


def named_for(task: str, text: str) -> str:
    """Return ``text`` with the variables of an embedding model renamed to those of the task.

    Texts about servers name the variables of an embedding model. Most of those who write them do
    not know the task, as a rule for a line of a log.

    Args:
        task: What the model is used for.
        text: A message.
    """
    own = {} if task == EMBED else _RENAMED
    return _NAMES.sub(lambda found: own.get(found[0], found[0]), text)


@contextmanager
def errors_for(task: str) -> Iterator[None]:
    """Name the variables of the task in the errors of the block; see ``named_for``.

    Args:
        task: What the model is used for.

    Raises:
        EmberdError: What the block raised.
    """
    try:
        yield
    except EmberdError as error:
        texts = {k: named_for(task, v) for k, v in vars(error).items() if isinstance(v, str)}
        vars(error).update(texts)
        error.args = tuple(named_for(task, v) if isinstance(v, str) else v for v in error.args)
        raise


@contextmanager
def named_in_errors(fields: Iterable[str], task: str = EMBED) -> Iterator[None]:
    """Name the variable, and not the argument, in errors about ``fields``, which variables set.

    Args:
        fields: Fields of ``Settings``.
        task: What the model is used for.

    Raises:
        SettingError: What the block raised.
    """
    try:
        yield
    except SettingError as error:
        field = rf"\b({'|'.join(fields) or '$^'})(?==| contains )"
        text = re.sub(field, lambda found: _name_of(found[1], task), str(error))
        raise type(error)(text) from error.__cause__


def _name_of(field: str, task: str) -> str:
    variables = (*_settings_of(task), *_start_options_of(task))
    return next((each.name for each in variables if each.sets == field), field)


def start_option_variable(field: str, task: str = EMBED) -> str:
    """Return the name of the variable that sets a field of ``StartOptions``."""
    return next(each.name for each in _start_options_of(task) if each.sets == field)


def _fields(
    variables: tuple[Variable, ...], environ: Mapping[str, str], without: Collection[str]
) -> dict[str, Any]:
    return {
        each.sets: each.parse(environ[each.name])
        for each in variables
        if environ.get(each.name) or (each.allows_empty and each.name in environ)
        if each.sets not in without
    }


def home_folder(given: str | os.PathLike[str] | None = None) -> str:
    """Return the absolute path of the folder of all state.

    Args:
        given: The folder that a caller named; None for ``EMBERD_HOME``, else the platform's.

    Raises:
        SettingError: It is unknown, or not a path; the message names where it was given.
    """
    if given not in (None, ""):
        return _absolute(given, "home")
    if home := text("EMBERD_HOME"):
        return _absolute(home, "EMBERD_HOME")
    # Imported late: not needed where EMBERD_HOME is set.
    from platformdirs import user_state_path

    try:
        home = str(user_state_path("emberd", appauthor=False))
    except RuntimeError:  # HOME is not set, and the user is not in the password database
        home = "~"
    if os.path.isabs(home):
        return home
    raise SettingError(
        f"The folder of emberd's state is unknown: HOME={os.environ.get('HOME', '')!r} and "
        f"XDG_STATE_HOME={os.environ.get('XDG_STATE_HOME', '')!r} give no absolute path for user "
        f"{os.geteuid()}. Set EMBERD_HOME to a folder that you may write to."
    )


def _absolute(path: str | os.PathLike[str], source: str) -> str:
    # A supervisor runs in the root folder and must find the same place.
    try:
        expanded = os.path.expanduser(os.fsdecode(path))
        if not expanded.startswith("~") and "\0" not in expanded:
            return os.path.abspath(expanded)
        why = "it is not a path, or that user has no home folder"
    except TypeError:
        why = f"it is of type {type(path).__name__}"
    except OSError as error:
        why = f"it is relative, and the working folder cannot be read ({error.strerror})"
    raise SettingError(f"{source}={path!r} cannot be used: {why}. Give an absolute path.")


@dataclass(frozen=True, slots=True)
class Places:
    """Where emberd keeps its files, and which servers and installations the environment allows.

    Attributes:
        home: State of servers; ``EMBERD_HOME``, else the platform's state folder.
        engines: Environments of engines; ``EMBERD_ENGINES``, else ``engines`` in the home.
        discover: URLs of external servers that ``EMBERD_DISCOVER`` lists.
        auto_install: Whether ``EMBERD_AUTO_INSTALL`` allows a start to install an engine.
    """

    home: str
    engines: str
    discover: tuple[str, ...] = ()
    auto_install: bool = False

    @classmethod
    def resolve(cls, home: str | os.PathLike[str] | None = None) -> Places:
        """Return the places of this process; ``home`` takes precedence over ``EMBERD_HOME``.

        Raises:
            SettingError: A value cannot be parsed.
        """
        root = home_folder(home)
        engines = text("EMBERD_ENGINES")
        return cls(
            home=root,
            engines=_absolute(engines, "EMBERD_ENGINES") if engines else f"{root}/engines",
            discover=value("EMBERD_DISCOVER") or (),
            auto_install=value("EMBERD_AUTO_INSTALL") or False,
        )
