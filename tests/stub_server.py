"""A stub server that starts in a tenth of a second, with configurable faults.

It implements the part of SGLang's API that the manager and the verification use. Faults that a real
server can produce on request are tested with the real one; the stub covers the rest.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from http_server import (
    HttpServer,
    Request,
    embeddings,
    model_info,
    models,
    reply,
)

DIMENSIONS = 8


class StubServer(HttpServer):
    """The server, its faults, and the files for which it waits at some steps."""

    keeps_requests = False

    def __init__(
        self, port: int, model: str, key: str, faults: set[str], held: dict[str, Path]
    ) -> None:
        super().__init__(self.respond, port)
        self.model, self.key, self.faults, self.held = model, key, faults, held
        self.answered = 0
        self.wedged = False

    def respond(self, request: Request, _: socket.socket) -> bytes:
        if request.path in ("/health", "/metrics") and self.wedged:
            time.sleep(0.2)
            return reply(503, {})
        if request.path == "/metrics":
            return reply(200, self.metrics())
        has_route = request.path == "/health" or "no-ready-route" not in self.faults
        if request.path in ("/ready", "/health") and has_route:
            is_ready = "never-ready" not in self.faults and not self.is_held("ready")
            return reply(200 if is_ready else 503, {})
        if not request.has_key(self.key):
            return reply(401, {"error": "Unauthorized"})
        match request.path:
            case "/v1/models":
                owner = os.environ.get("STUB_OWNER", "stub")
                return reply(200, models(self.model, 512, owner))
            case "/model_info":
                return reply(200, model_info(self.model))
            case "/server_info":
                has_it = "deterministic" in self.faults
                told = {"revision": "r1", "enable_deterministic_inference": has_it}
                told |= {"dtype": "bfloat16", "quantization": os.environ.get("STUB_QUANTIZATION")}
                return reply(200, told)
            case "/v1/embeddings":
                return reply(200, self.embed(request.body["input"]))
        return reply(404, {})

    def embed(self, inputs: str | list[str]) -> dict[str, Any]:
        while self.is_held("answer"):
            time.sleep(0.02)
        texts = [inputs] if isinstance(inputs, str) else inputs
        self.misbehave(" ".join(map(str, texts)))
        self.answered += 1
        return embeddings(self.model, map(vector, texts), len(texts))

    def is_held(self, step: str) -> bool:
        """Return whether the step waits for its file; the first wait is logged."""
        file = self.held.get(step)
        if file is None or file.exists():
            return False
        if step not in self.faults:
            self.faults.add(step)
            sys.stderr.write(f"stub: {step} is held\n")
        return True

    def misbehave(self, text: str) -> None:
        if "SLOW" in text:
            time.sleep(float(text.partition("SLOW")[2].split()[0]))
        if "WEDGE" in text:
            self.wedged = True
            time.sleep(3600)
        if "DIE" in text:
            os._exit(3)

    def metrics(self) -> bytes:
        return (
            "# TYPE sglang:num_running_reqs gauge\n"
            f"sglang:num_running_reqs {self.in_flight}\n"
            "# TYPE sglang:num_requests_total counter\n"
            f"sglang:num_requests_total {self.answered}\n"
        ).encode()


def vector(text: str) -> list[float]:
    """Return a unit vector that depends only on the text."""
    raw = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSIONS]]
    norm = sum(x * x for x in raw) ** 0.5
    return [x / norm for x in raw]


def _leave_files() -> None:
    """Write what SGLang leaves when it is killed: shared memory, a semaphore, a temporary file."""
    # Imported here: of hundreds of starts, few need them.
    import mmap
    import multiprocessing
    import secrets
    import tempfile

    tempfile.mkstemp()
    kept.append(multiprocessing.get_context("spawn").Semaphore())
    path = Path(f"/dev/shm/stub_loads_{secrets.token_hex(8)}")
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        kept.append(mmap.mmap(file.fileno(), 4096))
    list_of_memory = os.path.basename(os.environ.get("TMPDIR", ""))
    left.extend([path.name, f"sem.{kept[0]._semlock.name[1:]}", list_of_memory])


kept: list[Any] = []
left: list[str] = []


def _witness(path: str) -> None:
    """Record what this process leaves behind, and whether it overlaps with another one."""
    file = open(path, "a")  # noqa: SIM115 - locked for as long as this process runs
    file.write("".join(f"{name}\n" for name in left))
    file.flush()
    kept.append(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with open(f"{path}.overlaps", "a") as overlaps:
            overlaps.write(f"{os.getpid()} at {time.monotonic()}\n")
        threading.Thread(target=fcntl.flock, args=(file, fcntl.LOCK_EX), daemon=True).start()


def _misbehave_at_start(faults: set[str]) -> None:
    if "ignores-term" in faults:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "leaves-children" in faults:
        import subprocess

        # One in the process group, one in a new session: both must end with the server.
        for new_session in (False, True):
            subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(600)"],
                start_new_session=new_session,
            )
    if "leaves-files" in faults:
        _leave_files()
    if "leaves-unseen" in faults:
        # Closed at once, so that its owner cannot be found.
        path = Path(f"/dev/shm/stub_loads_{os.getpid()}")
        signal.signal(signal.SIGUSR1, lambda signum, frame: path.write_bytes(bytes(4096)))
    if "makes-socket" in faults:
        from multiprocessing.connection import Listener

        # As torch does, to share tensors between processes.
        kept.append(Listener(family="AF_UNIX"))
    sys.stderr.write("stub: loading\n")
    if "talks-much" in faults:
        sys.stderr.write("stub: and so on\n" * 200_000)
    if "doomed" in faults:
        sys.stderr.write("stub: doomed\n")
        time.sleep(3600)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=int(os.environ.get("STUB_PORT", "0")))
    parser.add_argument(
        "--witness", help="file that records what servers of one key leave behind, and overlaps"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--faults", default="")
    parser.add_argument("--start-s", type=float, default=0.0)
    parser.add_argument("--start-when", help="wait until this file exists")
    parser.add_argument("--ready-when", help="report not ready until this file exists")
    parser.add_argument("--answer-when", help="answer no embedding request until this file exists")
    arguments = parser.parse_args()
    faults = set(arguments.faults.split(","))
    _misbehave_at_start(faults)
    if arguments.witness:
        _witness(arguments.witness)
    time.sleep(arguments.start_s)
    while arguments.start_when and not Path(arguments.start_when).exists():
        time.sleep(0.02)
    if "dies-at-start" in faults:
        sys.exit("stub: no memory left for the model")
    if "loses-port" in faults:
        sys.exit("OSError: Address already in use")
    files = {"ready": arguments.ready_when, "answer": arguments.answer_when}
    held = {step: Path(file) for step, file in files.items() if file}
    stop = threading.Event()
    if "ignores-term" not in faults:
        signal.signal(signal.SIGTERM, lambda signum, frame: stop.set())
    with StubServer(
        arguments.port, arguments.model, os.environ.get("STUB_KEY", ""), faults, held
    ) as server:
        stop.wait()
        server.drain()


if __name__ == "__main__":
    main()
