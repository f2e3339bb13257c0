"""Knowing an SGLang server by the command line of its process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

_MODULES: Final = ("sglang.launch_server", "sglang.cli.main", "sglang")
_SCRIPT: Final = "sglang"
_VERB: Final = "serve"
_LAUNCHER: Final = ("sglang", "launch_server.py")
_INTERPRETER: Final = "python"
_ENDS_OPTIONS: Final = ("-m", "-c")
_TAKES_VALUE: Final = ("-W", "-X")


def recognises(command: Sequence[str]) -> bool:
    """Return whether a process with this command line is the main process of a server.

    The processes that SGLang names ``sglang::scheduler`` and the like are its parts.
    """
    if not command:
        return False
    if PurePath(command[0]).name == _SCRIPT:
        return _VERB in command[1:2]
    if not PurePath(command[0]).name.startswith(_INTERPRETER):
        return False
    return _runs_server(command[1:])


def _runs_server(words: Sequence[str]) -> bool:
    i = 0
    while i < len(words) and words[i].startswith("-") and words[i] not in _ENDS_OPTIONS:
        i += 2 if words[i] in _TAKES_VALUE else 1
    word, rest = (words[i] if i < len(words) else ""), words[i + 1 :]
    if word in _ENDS_OPTIONS:
        return word == "-m" and _is_server_module(rest)
    script = PurePath(word)
    return (script.name == _SCRIPT and _VERB in rest[:1]) or script.parts[-2:] == _LAUNCHER


def _is_server_module(words: Sequence[str]) -> bool:
    if not words or words[0] not in _MODULES:
        return False
    return words[0] == _MODULES[0] or _VERB in words[1:2]
