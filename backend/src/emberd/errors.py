"""Every error that emberd raises.

::

    EmberdError
    ├── SettingError (ValueError)          an argument or EMBERD_ variable cannot be used
    │   ├── InstructionError               an instruction in a form that would be misread
    │   ├── IdentityError                  an index was made with other settings
    │   └── MissingKeyError                a key was lost on the way (pickles carry none)
    ├── ServerError
    │   ├── NoEngineError                  nothing on this machine can serve the model
    │   ├── InstallError                   an engine could not be installed or removed
    │   ├── StartError                     the server was started and failed
    │   ├── StartTimeoutError (TimeoutError)  the caller stopped waiting; the start goes on
    │   ├── LockTimeoutError (TimeoutError)   somebody else holds the start lock
    │   ├── ServerStoppedError             a person stopped it in the middle of a job
    │   ├── ServerMismatchError            what answers is not what was asked for
    │   └── StateFolderError (OSError)     EMBERD_HOME is not ours, or cannot hold locks
    └── RequestError
        ├── TextError (ValueError)         one text cannot be embedded; it is named
        │   ├── TextTooLongError           more tokens than the model's context
        │   └── PoisonTextError            the server dies of it
        ├── BadReplyError                  the answer is not what was asked: no vector leaves
        ├── RejectedError                  the server refused the request (400, 404, 413, ...)
        ├── AuthenticationError            the server wants another key (401, 403)
        ├── RequestTimeoutError (TimeoutError)   no answer in time, after the retries
        └── ServerUnavailableError (ConnectionError)  no response, after the retries

The text of an error is the fact, the values, and what to do next. All of them pickle: they
cross process pools.
"""

from __future__ import annotations

from typing import Any


class EmberdError(Exception):
    """Base of all errors that emberd raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default re-calls __init__ with args, which loses keyword-only fields.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[EmberdError], args: tuple[Any, ...], fields: dict[str, Any]) -> EmberdError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


def _told(cause: str, advice: str, log_path: str | None) -> str:
    parts = [cause.rstrip(".") + ".", advice, f"Log: {log_path}" if log_path else ""]
    return " ".join(part for part in parts if part)


class SettingError(EmberdError, ValueError):
    """An argument or an EMBERD_ environment variable has a value that cannot be used."""


class InstructionError(SettingError):
    """An instruction is written in a form that would give wrong vectors."""


class IdentityError(SettingError):
    """An index was made with another model, revision, length or instruction.

    Attributes:
        kept: The identity that was kept beside the index.
        now: The identity of the object that was to be used with it.
    """

    def __init__(self, message: str, *, kept: str, now: str) -> None:
        super().__init__(message)
        self.kept = kept
        self.now = now


class MissingKeyError(SettingError):
    """The server's key is needed again: an unpickled object carries none."""


class ServerError(EmberdError):
    """Base of errors about finding, starting and keeping a server."""


class NoEngineError(ServerError, RuntimeError):
    """No engine can serve the model on this machine; the text says why for each."""


class InstallError(ServerError, RuntimeError):
    """An engine could not be installed, or not be removed.

    Attributes:
        cause: What happened, in one sentence.
        advice: What to do about it.
        log_path: What the installer said, or None when it never ran.
    """

    def __init__(self, cause: str, *, advice: str = "", log_path: str | None = None) -> None:
        super().__init__(_told(cause, advice, log_path))
        self.cause = cause
        self.advice = advice
        self.log_path = log_path


class StartError(ServerError, RuntimeError):
    """A server was started and did not become ready.

    Attributes:
        cause: What happened, in one sentence.
        advice: What to do about it.
        log_path: The server's log, or None when it never had one.
    """

    def __init__(self, cause: str, *, advice: str = "", log_path: str | None = None) -> None:
        super().__init__(_told(cause, advice, log_path))
        self.cause = cause
        self.advice = advice
        self.log_path = log_path


class StartTimeoutError(ServerError, TimeoutError):
    """The caller's ``start_timeout`` ended its waiting; the start itself goes on."""


class LockTimeoutError(ServerError, TimeoutError):
    """The start lock was not to be had in time; the text says who holds it."""


class ServerStoppedError(ServerError):
    """The server was stopped by a person while a job was using it."""


class ServerMismatchError(ServerError):
    """What answers at the URL does not serve what was asked for; the text says what it is."""


class StateFolderError(ServerError, OSError):
    """The state folder belongs to somebody else, is open to others, or cannot hold locks."""


class RequestError(EmberdError):
    """Base of errors about one embedding request."""


class TextError(RequestError, ValueError):
    """One text cannot be embedded.

    Attributes:
        index: Its place in the list that the caller gave, from 0.
    """

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class TextTooLongError(TextError):
    """A text has more tokens than the model takes.

    Attributes:
        index: Its place in the list that the caller gave, from 0.
        tokens: Its length in tokens, the end-of-text token included; None when not known.
        limit: How many the server takes; None when not known.
    """

    def __init__(self, message: str, *, index: int, tokens: int | None, limit: int | None) -> None:
        super().__init__(message, index=index)
        self.tokens = tokens
        self.limit = limit


class PoisonTextError(TextError):
    """The server dies each time when it is given this text."""


class BadReplyError(RequestError):
    """A reply is not what was asked for: vectors missing, doubled, misshapen, not finite."""


class RejectedError(RequestError):
    """The server refused the request, and would refuse it again.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class AuthenticationError(RequestError):
    """The server wants a key, or another one."""


class RequestTimeoutError(RequestError, TimeoutError):
    """The server took the request and did not answer in time."""


class ServerUnavailableError(RequestError, ConnectionError):
    """There is no response from the server's address, or it kept saying that it is busy."""
