"""The requested server, and the settings that say so: invalid ones are collected, not raised."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

from emberd import env, model_card, model_files
from emberd.catalog import EMBED, RERANK
from emberd.doctor.findings import Finding, note, ok, problem, split
from emberd.env import Places
from emberd.errors import InstructionError, SettingError
from emberd.settings import DEFAULT_MODEL, RerankSettings, ServerSpec, Settings, StartOptions
from emberd.system.redaction import HIDDEN, origin

T = TypeVar("T")

_SLIP_CHARACTERS: Final = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """The requested server, and settings that could not be used.

    Attributes:
        spec: The requested server.
        places: Folders and discovery settings.
        options: How to start a server.
        base_url: Root URL of a given server, so that none is started; None if none is given.
        api_key: The key of the given server and of EMBERD_DISCOVER. Never printed.
        batch_size: Most texts in a request; None if that setting is invalid.
        problems: Settings that cannot be used, one sentence each.
        unknown_prompts: What to say of a model whose prompts the caller has to give; else empty.
        given: Command-line options, to repeat in suggested commands.
    """

    spec: ServerSpec
    places: Places
    options: StartOptions = field(default_factory=StartOptions)
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    batch_size: int | None = None
    problems: tuple[str, ...] = ()
    unknown_prompts: str = ""
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """The folder of all state, EMBERD_HOME."""
        return Path(self.places.home)


def read(given: Mapping[str, str]) -> Wanted:
    """Return the server requested on the command line, else in the environment.

    Settings that cannot be used are left out and listed in ``problems``. Reads the model's folder.
    """
    problems: list[str] = []
    kind = kind_of(given)

    def tried(call: Callable[[], T]) -> T | None:
        try:
            return call()
        except SettingError as error:
            problems.append(str(error))
            return None

    unknown_prompts = ""
    try:
        settings = tried(lambda: kind.resolve(**{**given, **_no_prompts()}))
        _ = kind.resolve(**given) if settings else None
    except InstructionError as error:
        unknown_prompts = str(error)  # an application may give them
    spec = tried(lambda: settings.spec) if settings else None
    places = _places(problems)
    options = tried(lambda: StartOptions.resolve(env.start_environ(kind.task)))
    # Each variable separately: reading them together stops at the first error.
    for name, text in os.environ.items():
        for task in (EMBED, RERANK):
            tried(lambda: env.setting_values({name: text}, task=task))  # noqa: B023 - called at once
            tried(lambda: StartOptions.resolve(env.start_environ(task, {name: text})))  # noqa: B023
    if kind is Settings:
        tried(RerankSettings.resolve)
    names = ("revision", "quantization", "engine", "device")
    fields = {name: _requested(name, given, kind.task) for name in names}
    fields["task"] = kind.task
    model = model_files.absolute(_requested("model", given, kind.task) or DEFAULT_MODEL)
    return Wanted(
        spec=spec
        or tried(lambda: ServerSpec(model, content=model_files.content_hash(model), **fields))
        or ServerSpec(model, **fields),
        places=places,
        options=options or StartOptions(),
        base_url=settings.base_url if settings else None,
        api_key=settings.api_key if settings else None,
        batch_size=settings.batch_size if settings else None,
        problems=tuple(dict.fromkeys(map(_without_secret, problems))),
        unknown_prompts=unknown_prompts,
        given=given,
    )


def kind_of(given: Mapping[str, Any]) -> type[Settings]:
    """Return the settings of a reranker if a named model is one, else those of an embedder.

    Args:
        given: Command-line options by field of ``Settings``.
    """
    name, revision = given.get("model"), given.get("revision")
    if name is None or model_card.describe(name, revision).task != RERANK:
        return Settings
    return RerankSettings


def unread(given: Mapping[str, str], problem: str) -> Wanted:
    """Return the requested server without reading any file."""
    fields: dict[str, Any] = {"model": env.text("EMBERD_MODEL") or DEFAULT_MODEL, **given}
    problems = [problem]
    return Wanted(ServerSpec(**fields), _places(problems), problems=tuple(problems), given=given)


def check_variables(wanted: Wanted) -> Iterator[Finding]:
    """Yield which settings are invalid, and which variables are set or unknown."""
    for text in wanted.problems:
        fact, advice = split(text)
        yield problem("setting", fact, advice or "Correct or unset it.")
    if wanted.unknown_prompts:
        yield note("prompts", *split(wanted.unknown_prompts))
    for name in sorted(os.environ):
        if name.startswith(env.PREFIX) and name not in (*env.VARIABLES, *env.INTERNAL):
            # The value is not shown: it may be a key under a wrong name.
            close = get_close_matches(name, sorted(env.VARIABLES), n=1)
            advice = f"Did you mean {close[0]}? Rename it, or unset it." if close else ""
            fact = f"{name} is set, but emberd reads no such variable"
            yield note("unknown", fact, advice or f"unset {name}")
    shown = ", ".join(_shown(name) for name in sorted(env.VARIABLES) if os.environ.get(name))
    yield ok("variables", f"set: {shown}" if shown else "no EMBERD_ variable is set")
    if others := sorted(name for name in os.environ if name.startswith("OPENAI_")):
        yield ok("openai", f"{', '.join(others)} set: emberd reads none of them")


def _no_prompts() -> dict[str, str]:
    names = ("query_instruction", "document_instruction")
    return {name: "" for name in names if f"{env.PREFIX}{name.upper()}" not in os.environ}


def _requested(name: str, given: Mapping[str, str], task: str) -> Any:
    return given.get(name) or env.text(env.setting_variable(name, task))


def _places(problems: list[str]) -> Places:
    try:
        return Places.resolve()
    except SettingError as error:
        problems.append(str(error))
    try:
        home = env.home_folder()
    except SettingError as error:
        problems.append(str(error))
        home = os.path.join(tempfile.gettempdir(), "emberd-home-is-unknown")
    return Places(home, env.text("EMBERD_ENGINES") or os.path.join(home, "engines"))


def _without_secret(text: str) -> str:
    """Return the text of an error without the value of its variable if that may be a secret."""
    for name, variable in env.VARIABLES.items():
        value = os.environ.get(name, "")
        if not text.startswith(f"{name}={value!r}"):
            continue
        if variable.display == "origin":
            return text.replace(repr(value), repr(" ".join(_origins(value))))
        # Typing errors are short. A long value may be a key meant for another variable.
        is_slip = len(value) <= _SLIP_CHARACTERS and variable.repeats
        return text if is_slip else text.replace(repr(value), HIDDEN)
    return text


def _shown(name: str) -> str:
    value, display = os.environ[name], env.VARIABLES[name].display
    if display == "origin":
        return f"{name}={','.join(_origins(value))}"
    return f"{name}={value}" if display == "value" else name


def _origins(urls: str) -> list[str]:
    return [origin(url) for url in urls.replace(",", " ").split()]
