from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from emberd import errors
from emberd.errors import EmberdError

# How to make each; fields included.
MADE: dict[str, EmberdError] = {
    "AuthenticationError": errors.AuthenticationError("text"),
    "BadReplyError": errors.BadReplyError("text"),
    "CollectionRowError": errors.CollectionRowError("text", row="id"),
    "DownloadNeededError": errors.DownloadNeededError("text"),
    "EmberdError": errors.EmberdError("text"),
    "InstallError": errors.InstallError("text", advice="Do it.", log_path="install.log"),
    "HubError": errors.HubError("text"),
    "IdentityError": errors.IdentityError("text", kept="emberd:a", now="emberd:b"),
    "InstructionError": errors.InstructionError("text"),
    "LockTimeoutError": errors.LockTimeoutError("text"),
    "MissingKeyError": errors.MissingKeyError("text"),
    "NoEngineError": errors.NoEngineError("text"),
    "PoisonTextError": errors.PoisonTextError("text", index=3),
    "QueryError": errors.QueryError("text"),
    "RejectedError": errors.RejectedError("text", status=413),
    "RequestError": errors.RequestError("text"),
    "RequestTimeoutError": errors.RequestTimeoutError("text"),
    "ServerError": errors.ServerError("text"),
    "ServerMismatchError": errors.ServerMismatchError("text"),
    "ServerStoppedError": errors.ServerStoppedError("text"),
    "ServerUnavailableError": errors.ServerUnavailableError("text"),
    "SettingError": errors.SettingError("text"),
    "StartError": errors.StartError("text", advice="Do it.", log_path="server.log"),
    "StartTimeoutError": errors.StartTimeoutError("text"),
    "StateFolderError": errors.StateFolderError("text"),
    "TextError": errors.TextError("text", index=2),
    "TextTooLongError": errors.TextTooLongError("text", index=1, tokens=9, limit=None),
    "VerifyError": errors.VerifyError("text"),
}
BUILTIN: dict[str, type[Exception]] = {
    "InstallError": RuntimeError,
    "LockTimeoutError": TimeoutError,
    "NoEngineError": RuntimeError,
    "PoisonTextError": ValueError,
    "QueryError": ValueError,
    "RequestTimeoutError": TimeoutError,
    "ServerUnavailableError": ConnectionError,
    "SettingError": ValueError,
    "StartError": RuntimeError,
    "StartTimeoutError": TimeoutError,
    "StateFolderError": OSError,
    "TextError": ValueError,
}


def _all() -> dict[str, type[EmberdError]]:
    return {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, EmberdError)
    }


def test_every_error_is_made_here() -> None:
    assert set(_all()) == set(MADE)


@pytest.mark.parametrize("name", sorted(MADE))
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
def test_an_error_crosses_processes_with_its_text_and_fields(name: str, again: Any) -> None:
    error = MADE[name]
    other = again(error)
    assert type(other) is type(error)
    assert (str(other), other.args, vars(other)) == (str(error), error.args, vars(error))
    assert "text" in str(other)


def test_every_error_is_drawn_in_the_tree_below_its_parent() -> None:
    """The picture at the top of the module is the class hierarchy."""
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("├── ", "    ").replace("└── ", "    ").replace("│", " ")
        name = words.split()[0] if words.split() else ""
        if name in MADE:
            depth = (len(words) - len(words.lstrip())) // 4 - 1
            path[depth:] = [name]
            drawn[name] = path[depth - 1] if depth else None
    assert set(drawn) == set(MADE)
    for name, parent in drawn.items():
        bases = [base.__name__ for base in _all()[name].__bases__]
        assert parent is None or parent in bases, name


@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_callers_may_catch_the_builtin_they_know(name: str) -> None:
    assert isinstance(MADE[name], BUILTIN[name])


def test_a_failed_start_tells_cause_advice_and_log() -> None:
    error = errors.StartError("it died", advice="Do it.", log_path="server.log")
    assert str(error) == "it died. Do it. Log: server.log"
    assert str(errors.StartError("it died.")) == "it died."
