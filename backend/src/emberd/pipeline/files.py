"""Reads the JSON files of a model folder, and says why one cannot be used."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

PROMPTS_FILE: Final = "config_sentence_transformers.json"

_COPY_AGAIN: Final = "Compare the file with the original and copy it again."


class Problem(NamedTuple):
    """Why a folder cannot be served.

    Attributes:
        cause: The fact, with the file and the value, without a full stop.
        advice: What to do, in sentences.
    """

    cause: str
    advice: str

    def __str__(self) -> str:
        return f"{self.cause}. {self.advice}"


class UnservableError(Exception):
    """What a file asks for cannot be done; callers outside ``emberd.pipeline`` get a ``Problem``.

    Attributes:
        problem: The reason.
    """

    def __init__(self, cause: str, advice: str = _COPY_AGAIN) -> None:
        super().__init__(cause)
        self.problem = Problem(cause, advice)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, and never wait for a named pipe or a device.

    Raises:
        OSError: It cannot be opened, or is of another kind.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def text_of(path: Path) -> str:
    """Return the text of a regular file in UTF-8.

    Raises:
        OSError: As ``open_regular``.
        UnicodeError: It is not UTF-8.
    """
    with open_regular(path) as file:
        return file.read().decode("utf-8")


def read(path: Path) -> object | None:
    """Return what a JSON file holds; None where there is no such file.

    Raises:
        UnservableError: It cannot be read.
    """
    try:
        text = text_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise UnservableError(f"{path} cannot be read ({error})") from error
    try:
        found: object = json.loads(text)
    except ValueError as error:
        raise UnservableError(f"{path} is not JSON ({error})") from error
    except RecursionError as error:
        raise UnservableError(f"{path} is JSON that is nested too deeply") from error
    if found is None:  # not to be confused with a file that is not there
        raise UnservableError(f"{path} holds null")
    return found


def json_object(path: Path, found: object, what: str = "") -> dict[str, Any]:
    """Return ``found`` if it is a JSON object.

    Args:
        path: The file that it was read from.
        found: What ``read`` returned, or a part of it.
        what: The key of the part; empty for the whole file.

    Raises:
        UnservableError: It is something else, or there is no such file.
    """
    if isinstance(found, dict):
        return found
    if found is None and not what:
        raise UnservableError(f"there is no {path}")
    raise UnservableError(f"{path} holds no JSON object{f' under {what}' if what else ''}")
