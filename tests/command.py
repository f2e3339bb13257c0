"""Runs the command as a user does: in its own process, with its own state folder."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from command_server import CommandServer

ENGINE: Final = "stubs.engine"
TIMEOUT_S: Final = 240.0  # less than the limit of a test, so that an error shows the output
_READ_BYTES: Final = 65536

_FRAMEWORKS: Final = (
    *("langchain_emberd", "langchain_openai", "langchain_text_splitters"),
    *("llama_index.embeddings.emberd", "llama_index.embeddings.openai_like"),
    *("llama_index.postprocessor.emberd", "langchain_classic.retrievers"),
)
_servers: Final[dict[tuple[str, ...], CommandServer]] = {}


def stop_servers() -> None:
    """End the processes that commands and programs are forked from, if there are any."""
    while _servers:
        _servers.popitem()[1].stop()


def _server(*modules: str) -> CommandServer:
    if modules not in _servers:
        _servers[modules] = CommandServer(modules)
    return _servers[modules]


@dataclass(frozen=True)
class Outcome:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The parsed stdout."""
        return json.loads(self.out)


class Child(subprocess.Popen[Any]):
    """A process that a failing test does not wait for: a ``with`` block that raises kills it."""

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """Kill it if the block raised, and wait for its end."""
        if kind is not None:
            self.kill()
        super().__exit__(kind, *rest)


@dataclass(frozen=True)
class Command:
    """Runs ``emberd`` with one EMBERD_HOME."""

    home: Path
    more: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """The environment that it runs in."""
        path = os.pathsep.join(entry for entry in sys.path if entry)
        return {**os.environ, "PYTHONPATH": path, "EMBERD_HOME": str(self.home), **self.more}

    def environment_of(self, *arguments: str) -> dict[str, str]:
        """The environment for these arguments: a stub's model describes no prompts."""
        is_stub = arguments[:1] == ("embed",) and any(a.startswith("stub/") for a in arguments)
        names = ("EMBERD_QUERY_INSTRUCTION", "EMBERD_DOCUMENT_INSTRUCTION") if is_stub else ()
        return {**dict.fromkeys(names, ""), **self.environment}

    @staticmethod
    def line(*arguments: str) -> list[str]:
        """Return its command line."""
        return [sys.executable, "-m", "emberd", *arguments]

    def __call__(self, *arguments: str, stdin: str = "") -> Outcome:
        """Run it to its end, with pipes for all streams, in a fork of a process that imported it.

        ``begin`` and ``on_terminal`` start a new interpreter, as a user's shell does.
        """
        code, out, err = _server().run(
            list(arguments), self.environment_of(*arguments), stdin.encode(), TIMEOUT_S
        )
        return Outcome(code, out.decode(), err.decode())

    def begin(self, *arguments: str, **options: Any) -> Child:
        """Start it; its output goes into pipes unless ``options`` say otherwise."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return Child(self.line(*arguments), env=self.environment_of(*arguments), **streams)

    def on_terminal(self, *arguments: str, typed: str = "") -> Outcome:
        """Run it to its end on its own terminal; ``out`` is everything that is shown there."""
        parent_end, child_end = pty.openpty()
        os.write(parent_end, typed.encode())
        with self.begin(*arguments, stdin=child_end, stdout=child_end, stderr=child_end) as process:
            os.close(child_end)
            shown = b""
            # The read fails with EIO once all descriptors of the other end are closed.
            with suppress(OSError):
                while piece := os.read(parent_end, _READ_BYTES):
                    shown += piece
            os.close(parent_end)
        return Outcome(process.returncode, shown.decode(), "")


def run_program(
    *arguments: str,
    environment: dict[str, str],
    stdin: str = "",
    timeout_s: float = TIMEOUT_S,
    with_frameworks: bool = True,
) -> Outcome:
    """Run a Python program to its end, in a fork of a process that has imported emberd.

    Args:
        arguments: Those of an interpreter: ``-c`` and code, or a file; then the program's.
        environment: The environment that it runs in.
        stdin: The content of its standard input.
        timeout_s: The timeout, in seconds.
        with_frameworks: Whether LangChain and LlamaIndex are imported too.
    """
    server = _server(*(_FRAMEWORKS if with_frameworks else ()))
    code, out, err = server.run(
        list(arguments), environment, stdin.encode(), timeout_s, is_program=True
    )
    return Outcome(code, out.decode(), err.decode())


def stub(name: str = "ok", **options: object) -> Sequence[str]:
    """Return the command's options for a stub server with these faults."""
    query = "&".join(f"{key}={value}" for key, value in options.items())
    return "--engine", ENGINE, "--model", f"stub/{name}" + (f"?{query}" if query else "")
