"""The command as a user runs it: in a process of its own, against a state folder of its own."""

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
TIMEOUT_S: Final = 60.0
_READ_BYTES: Final = 65536

_FRAMEWORKS: Final = (
    *("langchain_emberd", "langchain_openai", "langchain_text_splitters"),
    *("llama_index.embeddings.emberd", "llama_index.embeddings.openai_like"),
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
    """What a run of the command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it wrote to stdout."""
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

    @staticmethod
    def line(*arguments: str) -> list[str]:
        """Return its command line."""
        return [sys.executable, "-m", "emberd.cli", *arguments]

    def __call__(self, *arguments: str, stdin: str = "") -> Outcome:
        """Run it to its end, with pipes for all streams, in a fork of a process that imported it.

        ``begin`` and ``on_terminal`` start a new interpreter, as a user's shell does.
        """
        code, out, err = _server().run(list(arguments), self.environment, stdin.encode(), TIMEOUT_S)
        return Outcome(code, out.decode(), err.decode())

    def begin(self, *arguments: str, **options: Any) -> Child:
        """Start it; its output goes into pipes unless ``options`` say otherwise."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return Child(self.line(*arguments), env=self.environment, **streams)

    def on_terminal(self, *arguments: str) -> Outcome:
        """Run it to its end on a terminal of its own; ``out`` is all that it shows."""
        ours, theirs = pty.openpty()
        with self.begin(*arguments, stdin=theirs, stdout=theirs, stderr=theirs) as process:
            os.close(theirs)
            shown = b""
            # The kernel says "input/output error" when nobody holds the other side any more.
            with suppress(OSError):
                while piece := os.read(ours, _READ_BYTES):
                    shown += piece
            os.close(ours)
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
        arguments: What an interpreter is given: ``-c`` and code, or a file; then the program's.
        environment: The environment that it runs in.
        stdin: What it can read.
        timeout_s: How long it may take.
        with_frameworks: Whether LangChain and LlamaIndex are imported too.
    """
    server = _server(*(_FRAMEWORKS if with_frameworks else ()))
    code, out, err = server.run(
        list(arguments), environment, stdin.encode(), timeout_s, is_program=True
    )
    return Outcome(code, out.decode(), err.decode())


def stub(name: str = "ok", **wishes: object) -> Sequence[str]:
    """Return the options that ask for a stub server with such faults."""
    query = "&".join(f"{key}={value}" for key, value in wishes.items())
    return "--engine", ENGINE, "--model", f"stub/{name}" + (f"?{query}" if query else "")
