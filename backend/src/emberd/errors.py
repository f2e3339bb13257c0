"""Every error that emberd raises.

::

    EmberdError
    ├── SettingError (ValueError)          an argument or EMBERD_ variable cannot be used
    │   ├── InstructionError               an instruction in a form that would be misread
    │   ├── IdentityError                  an index was made with other settings
    │   └── MissingKeyError                a key is missing (pickles do not contain keys)
    ├── CollectionRowError                 one row of a collection cannot be embedded again
    ├── HubError                           files of a model on the hub cannot be fetched
    ├── VerifyError                        there are no vectors to compare a server with
    ├── ServerError
    │   ├── NoEngineError                  nothing on this machine can serve the model
    │   │   └── DownloadNeededError        an engine or weights are missing; no permission
    │   ├── InstallError                   an engine could not be installed or removed
    │   ├── StartError                     the server was started and failed
    │   ├── StartTimeoutError (TimeoutError)  the caller stopped waiting; startup continues
    │   ├── LockTimeoutError (TimeoutError)   another process holds the start lock
    │   ├── ServerStoppedError             a user stopped it during a job
    │   ├── ServerMismatchError            the server serves something else
    │   └── StateFolderError (OSError)     EMBERD_HOME is unsafe, or has no locks
    └── RequestError
        ├── TextError (ValueError)         one text cannot be embedded; see index
        │   ├── TextTooLongError           more tokens than the model's context
        │   └── PoisonTextError            the text crashes the server
        ├── QueryError (ValueError)        the query of a reranker cannot be read
        ├── BadReplyError                  the reply is invalid; no vector is returned
        ├── RejectedError                  the server refused the request (400, 404, 413, ...)
        ├── AuthenticationError            the server requires another key (401, 403)
        ├── RequestTimeoutError (TimeoutError)   no answer in time, after the retries
        └── ServerUnavailableError (ConnectionError)  no response, after the retries

The text of an error states the fact, the values, and what to do next. All errors can be pickled,
because they cross process pools.
"""

from __future__ import annotations

import copy
import re
from typing import Any, Self


class EmberdError(Exception):
    """Base of all errors that emberd raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls __init__ with args, which loses keyword-only fields.
        return _new, (type(self), *self.args), self.__dict__


def _new(kind: type[EmberdError], *args: Any) -> EmberdError:
    return kind.__new__(kind, *args)


class SettingError(EmberdError, ValueError):
    """An argument or an EMBERD_ environment variable has a value that cannot be used."""


class InstructionError(SettingError):
    """An instruction has a form that would be misread and give wrong vectors."""


class IdentityError(SettingError):
    """An index was made with another model, revision, length or instruction.

    Attributes:
        kept: The identity that was stored with the index.
        now: The identity of the object that was used with it.
    """

    def __init__(self, message: str, *, kept: str, now: str) -> None:
        super().__init__(message)
        self.kept = kept
        self.now = now


class MissingKeyError(SettingError):
    """The server's key is needed again, because an unpickled object has none."""


class CollectionRowError(EmberdError):
    """One row of a collection cannot be embedded again.

    Attributes:
        row: Its id in the store.
    """

    def __init__(self, message: str, *, row: Any) -> None:
        super().__init__(message)
        self.row = row


class HubError(EmberdError):
    """Files of a model on the hub cannot be fetched; the text says what to do."""


class VerifyError(EmberdError):
    """The vectors that ``emberd verify`` compares a server with cannot be computed here."""


class ServerError(EmberdError):
    """Base of errors about finding, starting and running a server."""


class NoEngineError(ServerError, RuntimeError):
    """No engine can serve the model on this machine; the text gives the reason for each."""


class DownloadNeededError(NoEngineError):
    """A start needs an engine or weights that are not on this machine, and no user agreed to that.

    Only the command raises it; the text says what would be downloaded, and how to allow it.
    """


class _FailedProgramError(RuntimeError):
    """A program failed that emberd ran.

    Attributes:
        cause: What happened, in one sentence.
        advice: What to do about it.
        log_path: The log of the program; None if there is none.
    """

    def __init__(self, cause: str, *, advice: str = "", log_path: str | None = None) -> None:
        parts = [cause.rstrip(".") + ".", advice, f"Log: {log_path}" if log_path else ""]
        super().__init__(" ".join(part for part in parts if part))
        self.cause = cause
        self.advice = advice
        self.log_path = log_path


class InstallError(ServerError, _FailedProgramError):
    """An engine could not be installed or removed; ``log_path`` is the installer's output."""


class StartError(ServerError, _FailedProgramError):
    """A server was started and did not become ready; ``log_path`` is the server's log."""


class StartTimeoutError(ServerError, TimeoutError):
    """The caller's ``start_timeout`` expired; startup continues in the background."""


class LockTimeoutError(ServerError, TimeoutError):
    """The start lock could not be acquired in time; the text names its holder."""


class ServerStoppedError(ServerError):
    """A user stopped the server while a job was using it."""


class ServerMismatchError(ServerError):
    """The server at the URL does not serve what was requested; the text says what it serves."""


class StateFolderError(ServerError, OSError):
    """The state folder belongs to another user, is open to others, or does not support locks."""


class RequestError(EmberdError):
    """Base of errors about one embedding request."""


class TextError(RequestError, ValueError):
    """One text cannot be embedded.

    Attributes:
        index: Its place in the list of the caller, from 0.
    """

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index

    def at(self, index: int) -> Self:
        """Return this error for another place, if the caller's list was embedded in parts.

        Args:
            index: The place of the text in the whole list.
        """
        moved = copy.copy(self)
        named = re.compile(rf"\b(text|document) {self.index}\b", re.IGNORECASE)
        moved.args = (named.sub(rf"\g<1> {index}", str(self), count=1),)
        moved.index = index
        return moved


class TextTooLongError(TextError):
    """A text has more tokens than the model accepts.

    Attributes:
        index: Its place in the list of the caller, from 0.
        tokens: Its length in tokens, including the end-of-text token; None if not known.
        limit: The maximum that the server accepts; None if not known.
    """

    def __init__(self, message: str, *, index: int, tokens: int | None, limit: int | None) -> None:
        super().__init__(message, index=index)
        self.tokens = tokens
        self.limit = limit


class QueryError(RequestError, ValueError):
    """The query of a reranker is not a text, or cannot be encoded."""


class PoisonTextError(TextError):
    """The server crashes each time it is given this text."""


class BadReplyError(RequestError):
    """A reply is invalid: vectors are missing, duplicated, of a wrong length, or not finite."""


class RejectedError(RequestError):
    """The server refused the request and would refuse it again.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class AuthenticationError(RequestError):
    """The server requires a key, or another one."""


class RequestTimeoutError(RequestError, TimeoutError):
    """The server accepted the request but did not answer in time."""


class ServerUnavailableError(RequestError, ConnectionError):
    """The server's address does not respond, or the server stays busy.

    Attributes:
        is_starting: Whether it is a gateway that may be starting the server of the model, which
            continues.
    """

    is_starting = False
