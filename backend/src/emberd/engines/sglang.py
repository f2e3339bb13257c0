"""The engine for Qwen3-Embedding on a GPU: SGLang.

This version recognises SGLang servers that somebody else started, so that they are found and
used. It starts none: ``refusal`` says so, with the command that does.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Final

from emberd.catalog import DEMO_MODEL
from emberd.engines.base import Diagnosis, Launch, Plan
from emberd.errors import StartError
from emberd.settings import ServerSpec

_MODULES: Final = ("sglang.launch_server", "sglang.cli.main", "sglang")
_SCRIPT: Final = "sglang"
_VERB: Final = "serve"
_LAUNCHER: Final = ("sglang", "launch_server.py")
_INTERPRETER: Final = "python"
_ENDS_OPTIONS: Final = ("-m", "-c")
_TAKES_VALUE: Final = ("-W", "-X")

_DRIVER: Final = Path("/proc/driver/nvidia")
_TOOL: Final = "nvidia-smi"

_ELSEWHERE: Final = "EMBERD_BASE_URL=http://HOST:30000/v1"
_START: Final = (
    "python -m sglang.launch_server --model-path {model} --is-embedding "
    "--host 127.0.0.1 --port 30000"
)


class SglangEngine:
    """Knows an SGLang server when it sees one; starts none in this version."""

    name = "sglang"

    def refusal(self, spec: ServerSpec) -> str | None:
        """Return why it cannot start a server for ``spec``, and the next command to type."""
        if spec.model == DEMO_MODEL:
            return f"does not serve {DEMO_MODEL}, which is bundled with another engine"
        trial = f"to try emberd without a GPU, ask for model={DEMO_MODEL!r}"
        if not _has_gpu():
            return (
                f"no CUDA GPU on this machine; name a server on another one, {_ELSEWHERE}, "
                f"or, {trial}"
            )
        return (
            f"this version of emberd finds and uses a running SGLang server but cannot start "
            f"one yet; start it with `{_START.format(model=spec.model)}`, "
            f"or name one with {_ELSEWHERE}; {trial}"
        )

    def claims(self, _spec: ServerSpec) -> Sequence[str]:
        """Return nothing: it takes nothing that a server must have alone."""
        return ()

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Refuse: ``refusal`` never lets a start come this far.

        Raises:
            StartError: Always.
        """
        raise StartError(
            f"emberd cannot start SGLang for {spec.model} on port {launch.port}",
            advice=self.refusal(spec) or "",
        )

    def progress(self, log: str) -> str:
        """Return the last line of the log: this engine starts nothing that it could explain."""
        lines = log.split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "starting")

    def diagnose(self, exit_code: int | None, log: str) -> Diagnosis:
        """Return the exit code and the log's last line: there is no start to explain."""
        return Diagnosis(f"SGLang ended with code {exit_code}; its last line: {self.progress(log)}")

    def recognises(self, command: Sequence[str]) -> bool:
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


def _has_gpu() -> bool:
    return _DRIVER.exists() or shutil.which(_TOOL) is not None


ENGINE: Final = SglangEngine()
