"""A process that uses emberd as an application does, one command at a time.

It is the process to which faults happen, so that the campaign itself only watches. It is a fork of
a process that has imported emberd and used nothing of it; another version of emberd, whose code
must not be mixed with ours, runs as ``python caller.py DESCRIPTOR JSON``.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

import isolation
from emberd import Embedder
from emberd.client import clients, transport
from emberd.errors import EmberdError
from emberd.manager import Timing
from emberd.verified_manager import Manager
from faults import names
from stub_server import vector

__all__ = ["clients", "transport"]  # imported here, once for all forks

_SAME: Final = 1e-5
_FORK_S: Final = 90.0


@dataclass(frozen=True)
class Setup:
    """What a caller uses emberd with.

    Attributes:
        home: ``EMBERD_HOME``.
        model: The model; one of the stub engine, or the demo's.
        engine: The engine.
        timing: Of the manager and the supervisors that it starts.
        start_timeout: Seconds.
        timeout: Seconds of one request.
        idle_timeout: Seconds; None for never.
        known: Vectors by text, if the model is not the stub's.
        is_predictable: Give files predictable names; see ``names``.
        python: The interpreter that runs supervisors, if it is another one.
    """

    home: str
    model: str
    engine: str
    timing: dict[str, Any]
    start_timeout: float = 20.0
    timeout: float = 3.0
    idle_timeout: float | None = 600.0
    known: dict[str, list[float]] = field(default_factory=dict, repr=False)
    is_predictable: bool = False
    python: str = ""

    def right(self, text: str) -> list[float]:
        """Return the vector that the server must give for ``text``."""
        return self.known[text] if self.known else vector(text)


class Caller:
    """A caller, as the process sees it that gives the commands.

    Attributes:
        pid: Its process.
        busy: Whether it has a command whose reply was not read.
        ended: Whether it was killed.
    """

    def __init__(self, setup: Setup, traces: Path, path: str | None = None) -> None:
        """Start one.

        Args:
            setup: What it uses.
            traces: Where it writes what all of its threads do when it gets SIGUSR1.
            path: ``PYTHONPATH`` of a new interpreter, in place of a fork.
        """
        self._socket, other = socket.socketpair()
        self.busy = False
        self.ended = False
        self._received = b""
        text = json.dumps([setup.__dict__, str(traces)])
        self.pid = os.fork()
        if self.pid == 0:
            try:
                if path is not None:
                    os.set_inheritable(other.fileno(), True)
                    environment = {**os.environ, "PYTHONPATH": path}
                    command = [sys.executable, __file__, str(other.fileno()), text]
                    os.execve(sys.executable, command, environment)
                _serve(other, setup, traces)
            finally:
                os._exit(1)
        other.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable once there is a reply."""
        return self._socket.fileno()

    def ask(self, do: str, **more: Any) -> None:
        """Give it a command."""
        self.busy = True
        # If it was killed, the end of the file shows that.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(json.dumps({"do": do, **more}).encode() + b"\n")

    def read(self) -> dict[str, Any] | None:
        """Return its reply; None if it is not complete yet, ``{"killed": True}`` if it ended."""
        try:
            part = self._socket.recv(1 << 20)
        except ConnectionResetError:
            part = b""
        self._received += part
        if part and not self._received.endswith(b"\n"):
            return None
        self.busy = False
        content, self._received = self._received, b""
        if not part:
            self.ended = True
            return {"killed": True}
        reply: dict[str, Any] = json.loads(content)
        return reply

    def answer(self, do: str, seconds: float, **more: Any) -> dict[str, Any] | None:
        """Give it a command and return its reply; None if that does not come in time."""
        self.ask(do, **more)
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self], [], [], left)[0] and (reply := self.read()) is not None:
                return reply
        return None

    def signal(self, signum: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, signum)  # it is our child and not reaped: no other process has its pid

    def kill(self) -> None:
        """Kill it; if a reply is awaited, that becomes ``{"killed": True}``."""
        self.signal(signal.SIGKILL)
        self.ended = not self.busy

    def end(self) -> None:
        """Kill it, and forget it."""
        if self._socket.fileno() >= 0:
            self.signal(signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._socket.close()
            self.ended = True


# ---------------------------------------------------------------- in the process


class _Use:
    """What a caller keeps between two commands."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.manager = Manager(setup.home, timing=Timing(**setup.timing))
        # A stub's model describes no prompts.
        bare = "" if setup.model.startswith("stub/") else None
        self.embedder = Embedder(
            setup.model,
            engine=setup.engine,
            manager=self.manager,
            query_instruction=bare,
            document_instruction=bare,
            start_timeout=setup.start_timeout,
            timeout=setup.timeout,
            idle_timeout=setup.idle_timeout,
            batch_size=4,
            max_concurrency=4,
        )

    def ensure(self) -> dict[str, Any]:
        """Ask the manager, as a process does that has no server yet."""
        server = self.manager.ensure(
            self.embedder.settings.spec,
            start_timeout=self.setup.start_timeout,
            idle_timeout=self.setup.idle_timeout,
        )
        return {"start_id": server.start_id, "started": server.started}

    def embed(self, texts: list[str]) -> dict[str, Any]:
        return self._checked(texts, self.embedder.embed_documents(texts))

    def aembed(self, texts: list[str]) -> dict[str, Any]:
        async def embed() -> dict[str, Any]:
            vectors = await self.embedder.aembed_documents(texts)
            await self.embedder.aclose()
            return self._checked(texts, vectors)

        return asyncio.run(embed())

    def threads(self, texts: list[str]) -> dict[str, Any]:
        """Embed from four threads that share the embedder."""
        replies: list[dict[str, Any]] = []
        quarters = [texts[number::4] or texts for number in range(4)]
        running = [
            threading.Thread(target=lambda q=q: replies.append(_replied(lambda: self.embed(q))))
            for q in quarters
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return _worst(replies)

    def forks(self, texts: list[str]) -> dict[str, Any]:
        """Embed, fork, and embed in both processes at once."""
        first = _replied(lambda: self.embed(texts))
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                reply = _replied(lambda: self.embed(texts[::-1]))
                os.write(writing, json.dumps(reply).encode())
            finally:
                os._exit(0)
        os.close(writing)
        second = _replied(lambda: self.embed(texts))
        third: dict[str, Any] = {"hung": "the forked child"}
        if select.select([reading], [], [], _FORK_S)[0]:
            third = json.loads(os.read(reading, 1 << 20) or b'{"killed": true}')
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return _worst([first, second, third])

    def starve(self, texts: list[str], free: int) -> dict[str, Any]:
        """Embed while only ``free`` descriptors are left."""
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, before[1]))
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        for descriptor in taken[:free]:
            os.close(descriptor)
        try:
            return {**_replied(lambda: self.embed(texts)), "starved": True}
        finally:
            for descriptor in taken[free:]:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    def find(self) -> dict[str, Any]:
        found = self.manager.find(self.embedder.settings.spec)
        states = [str(status.state) for status in self.manager.status()]
        return {"start_id": found and found.start_id, "states": states}

    def stop(self) -> dict[str, Any]:
        return {"stopped": len(self.manager.stop())}

    def _checked(self, texts: list[str], vectors: Any) -> dict[str, Any]:
        right = np.array([self.setup.right(text) for text in texts])
        is_wrong = vectors.shape != right.shape or not np.allclose(vectors, right, atol=_SAME)
        return {"wrong": texts} if is_wrong else {"texts": len(texts)}


def _replied(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return call()
    except BaseException as error:  # noqa: BLE001 - which errors come is what is tested
        is_ours = isinstance(error, EmberdError)
        trace = traceback.format_exception(error)
        return {
            "error": type(error).__name__,
            "ours": is_ours,
            "text": str(error)[:600],
            "trace": "".join(trace)[-6000:],
        }


def _worst(replies: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the reply that is least allowed."""

    def badness(reply: dict[str, Any]) -> int:
        is_error = "error" in reply
        return 3 * ("wrong" in reply or "hung" in reply) + is_error * (1 + (not reply.get("ours")))

    return max(replies, key=badness)


def _serve(commands: socket.socket, setup: Setup, traces: Path) -> None:
    os.closerange(3, commands.fileno())
    os.closerange(commands.fileno() + 1, 1024)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    warnings.simplefilter("ignore")
    faulthandler.register(signal.SIGUSR1, traces.open("a"))
    if setup.is_predictable:
        names.make_predictable("c")
        sys.path.insert(0, str(Path(__file__).with_name("predictable")))
    sys.executable = setup.python or sys.executable
    use = _Use(setup)
    with commands.makefile("rw") as lines:
        for line in lines:
            command = json.loads(line)
            call = getattr(use, command.pop("do"))
            began = time.monotonic()
            reply = _replied(partial(call, **command))
            lines.write(json.dumps({**reply, "seconds": time.monotonic() - began}) + "\n")
            lines.flush()
    os._exit(0)


def main() -> None:
    """Be a caller of another version of emberd."""
    isolation.hide_other_sessions()
    setup, traces = json.loads(sys.argv[2])
    _serve(socket.socket(fileno=int(sys.argv[1])), Setup(**setup), Path(traces))


if __name__ == "__main__":
    main()
