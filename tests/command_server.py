"""Runs the command, or a Python program, in forks of a process that has imported it already.

A new interpreter spends most of a short command on imports, and the tests run hundreds of them.
``python -m command_server SOCKET [MODULE...]`` imports emberd and the modules once, listens, and
leaves a process running that exits when its standard input is closed. Each command still has its
own process, environment, folder and streams.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, Final, NoReturn

import isolation

_PRELOADED: Final = ("numpy", "rich.console", "rich.table")
_PUBLIC: Final = ("Embedder", "Manager")
_WARM_UP: Final = (["status"], ["up", "emberd/demo", "--dry-run"])
# The command has no options for these. Only periods that the tests wait for are shorter; the
# deadlines of a start or a stop are unchanged.
_PERIODS: Final = {"poll_s": 0.02, "tick_s": 0.2, "look_s": 2.0, "record_s": 2.0, "lost_s": 3.0}
_STREAMS: Final = 3
_SIZE_BYTES: Final = 8
_LISTENER_BACKLOG: Final = 64


class CommandServer:
    """Starts the process, and runs commands in forks of it."""

    def __init__(self, modules: tuple[str, ...] = ()) -> None:
        """Start it, with a folder for its socket.

        Args:
            modules: Modules to import besides emberd.
        """
        self._folder = tempfile.mkdtemp(prefix="emb-command-")
        self._path = f"{self._folder}/socket"
        path = os.pathsep.join(entry for entry in sys.path if entry)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("EMBERD_")}
        # The server is not a child of this process, because some tests reap all children.
        self._launcher = subprocess.Popen(
            [sys.executable, "-m", "command_server", self._path, *modules],
            stdin=subprocess.PIPE,
            cwd=self._folder,
            env={**kept, "PYTHONPATH": path},
        )
        self._launcher.wait()
        assert self._launcher.returncode == 0

    def stop(self) -> None:
        """Stop the process, and remove its folder."""
        assert self._launcher.stdin is not None
        self._launcher.stdin.close()
        shutil.rmtree(self._folder)

    def run(
        self,
        arguments: list[str],
        environment: dict[str, str],
        stdin: bytes,
        timeout_s: float,
        *,
        is_program: bool = False,
    ) -> tuple[int, bytes, bytes]:
        """Run the command to its end, with pipes for all streams.

        Args:
            arguments: Those of emberd's command.
            environment: The environment that it runs in.
            stdin: The content of its standard input.
            timeout_s: The timeout, in seconds.
            is_program: Whether ``arguments`` are those of an interpreter, which begin with ``-c``
                or a file.

        Returns:
            Its exit code, and what it wrote to stdout and to stderr.

        Raises:
            subprocess.TimeoutExpired: It took longer than ``timeout_s`` and was killed.
        """
        pipes = [os.pipe() for _ in range(_STREAMS)]
        (their_in, our_in), (our_out, their_out), (our_err, their_err) = pipes
        request = {
            "arguments": arguments,
            "environment": environment,
            "cwd": str(Path.cwd()),
            "is_program": is_program,
        }
        content = json.dumps(request).encode()
        connection = socket.socket(socket.AF_UNIX)
        with connection, open(our_out, "rb") as out, open(our_err, "rb") as err:
            connection.connect(self._path)
            theirs = [their_in, their_out, their_err]
            socket.send_fds(connection, [len(content).to_bytes(_SIZE_BYTES, "big")], theirs)
            for descriptor in theirs:
                os.close(descriptor)
            connection.sendall(content)
            readers = [_Reader(out), _Reader(err)]
            # A command that does not read its input closes it, as `| head` does.
            with suppress(BrokenPipeError), open(our_in, "wb") as pipe:
                pipe.write(stdin)
            replies = connection.makefile("rb")
            pid = int(replies.readline())
            connection.settimeout(timeout_s)
            try:
                code = int(replies.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(arguments, timeout_s) from None
            return code, readers[0].content(), readers[1].content()


class _Reader:
    """Reads a pipe to its end in a thread."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._read = b""
        self._thread = threading.Thread(target=self._run, args=(stream,), daemon=True)
        self._thread.start()

    def _run(self, stream: IO[bytes]) -> None:
        self._read = stream.read()

    def content(self) -> bytes:
        self._thread.join()
        return self._read


# ---------------------------------------------------------------- in the process itself


def _serve(path: str, *modules: str) -> NoReturn:
    """Listen, and fork for each request."""
    isolation.hide_other_sessions()
    for name in (*_PRELOADED, *modules):
        importlib.import_module(name)
    emberd = importlib.import_module("emberd")
    for name in _PUBLIC:
        getattr(emberd, name)
    _shorten_periods()
    # The first command imports what the others need, and creates the parser.
    os.environ["EMBERD_HOME"] = str(Path(path).parent / "home")
    run = importlib.import_module("emberd.cli.app").run
    with open(os.devnull, "w") as devnull, redirect_stdout(devnull), redirect_stderr(devnull):
        for command in _WARM_UP:
            run(command)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(_LISTENER_BACKLOG)
    if os.fork():
        os._exit(0)  # the launcher's parent waits for its exit before it connects
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the commands
    while True:
        ready, _, _ = select.select([sys.stdin.fileno(), listener], [], [])
        if listener not in ready:
            os._exit(0)
        connection, _ = listener.accept()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():
            listener.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _run(connection)
        connection.close()


def _shorten_periods() -> None:
    from emberd.manager import Timing

    defaults = [_PERIODS.get(each.name, each.default) for each in fields(Timing)]
    Timing.__init__.__defaults__ = tuple(defaults)


def _run(connection: socket.socket) -> NoReturn:
    """Run one command or program in a fork, report its exit code, and end."""
    size, descriptors, _, _ = socket.recv_fds(connection, _SIZE_BYTES, _STREAMS)
    content = connection.makefile("rb").read(int.from_bytes(size, "big"))
    request: dict[str, Any] = json.loads(content)
    if pid := os.fork():
        for descriptor in descriptors:
            os.close(descriptor)
        connection.sendall(f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        with suppress(OSError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    connection.close()
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8")
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(_writing(1)), "utf-8")
    sys.stderr = io.TextIOWrapper(
        io.BufferedWriter(_writing(2)), "utf-8", "backslashreplace", line_buffering=True
    )
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [entry for entry in path if entry not in sys.path]
    try:
        run = _run_program if request["is_program"] else _run_command
        code = run(request["arguments"])
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - a fork must not return into the server
        traceback.print_exc()
        code = 1
    # Finalizing the interpreter writes to all pages shared with the parent: 0.15 s of CPU time.
    os._exit(code)


def _run_command(arguments: list[str]) -> int:
    sys.argv = ["emberd", *arguments]
    return int(importlib.import_module("emberd.cli").main())


def _run_program(arguments: list[str]) -> int:
    """Run what an interpreter with these arguments would run, and return its exit code."""
    try:
        if arguments[0] == "-c":
            _, code, *rest = arguments
            sys.argv, sys.modules["__main__"] = ["-c", *rest], types.ModuleType("__main__")
            exec(code, sys.modules["__main__"].__dict__)
        else:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as at every exit
    return 0


def _writing(descriptor: int) -> io.FileIO:
    return io.FileIO(descriptor, "w", closefd=False)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
