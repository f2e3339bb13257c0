"""A server that starts in a tenth of a second and has the faults it is told to have.

It speaks as much of SGLang's surface as the manager and the verification ask for. Faults that a
real server can be asked for are tried on the real one; this one is for the rest.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import mmap
import multiprocessing
import multiprocessing.connection
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DIMENSIONS = 8


class Server(ThreadingHTTPServer):
    """The server and what it counts."""

    daemon_threads = True

    def __init__(
        self, port: int, model: str, key: str, faults: set[str], held: dict[str, Path] | None = None
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.key, self.faults = model, key, faults
        self.held = held or {}
        self.requests = 0
        self.in_flight = 0
        self.wedged = False


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *args: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        if self.path in ("/health", "/metrics") and self.server.wedged:
            time.sleep(0.2)
            return self.reply({}, 503)
        if self.path == "/metrics":
            return self.reply(self.metrics())
        has_route = self.path == "/health" or "no-ready-route" not in self.server.faults
        if self.path in ("/ready", "/health") and has_route:
            is_ready = "never-ready" not in self.server.faults and not self.is_held("ready")
            return self.reply({}, 200 if is_ready else 503)
        if not self.may():
            return self.reply({"error": "Unauthorized"}, 401)
        if self.path == "/v1/models":
            entry = {"id": self.server.model, "owned_by": "stub", "max_model_len": 512}
            return self.reply({"object": "list", "data": [entry]})
        if self.path == "/model_info":
            return self.reply({"model_path": self.server.model, "is_generation": False})
        if self.path == "/server_info":
            return self.reply({"revision": "r1", "dtype": "bfloat16"})
        return self.reply({}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.may():
            return self.reply({"error": "Unauthorized"}, 401)
        if self.path != "/v1/embeddings":
            return self.reply({}, 404)
        self.server.in_flight += 1
        while self.is_held("answer"):
            time.sleep(0.02)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        self.misbehave(" ".join(map(str, texts)))
        data = [
            {"object": "embedding", "index": i, "embedding": vector(t)} for i, t in enumerate(texts)
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        self.server.requests += 1
        content = {"object": "list", "data": data, "model": self.server.model, "usage": usage}
        try:
            return self.reply(content)
        finally:
            # Last: a server that drains ends when nothing is in flight; the reply must be out.
            self.server.in_flight -= 1

    def is_held(self, step: str) -> bool:
        """Return whether the step waits for its file; the log says so the first time."""
        file = self.server.held.get(step)
        if file is None or file.exists():
            return False
        if step not in self.server.faults:
            self.server.faults.add(step)
            sys.stderr.write(f"stub: {step} is held\n")
        return True

    def misbehave(self, text: str) -> None:
        if "SLOW" in text:
            time.sleep(float(text.partition("SLOW")[2].split()[0]))
        if "WEDGE" in text:
            self.server.wedged = True
            time.sleep(3600)
        if "DIE" in text:
            os._exit(3)

    def may(self) -> bool:
        return not self.server.key or self.headers["Authorization"] == f"Bearer {self.server.key}"

    def metrics(self) -> str:
        return (
            "# TYPE sglang:num_running_reqs gauge\n"
            f"sglang:num_running_reqs {self.server.in_flight}\n"
            "# TYPE sglang:num_requests_total counter\n"
            f"sglang:num_requests_total {self.server.requests}\n"
        )

    def reply(self, content: Any, status: int = 200) -> None:
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def vector(text: str) -> list[float]:
    """Return a vector of length one that follows from the text alone."""
    raw = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSIONS]]
    norm = sum(x * x for x in raw) ** 0.5
    return [x / norm for x in raw]


def _leave_files() -> None:
    """Write what SGLang leaves when it is killed: shared memory, a semaphore, a temporary file."""
    tempfile.mkstemp()
    kept.append(multiprocessing.get_context("spawn").Semaphore())
    path = Path(f"/dev/shm/stub_loads_{secrets.token_hex(8)}")
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        kept.append(mmap.mmap(file.fileno(), 4096))
    left.extend([path.name, f"sem.{kept[0]._semlock.name[1:]}"])


kept: list[Any] = []
left: list[str] = []


def _witness(path: str) -> None:
    """Write down what this process will leave, and whether another one runs that does so too."""
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
        # One in the group, one in a session of its own: both must go with the server.
        for new_session in (False, True):
            subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(600)"],
                start_new_session=new_session,
            )
    if "leaves-files" in faults:
        _leave_files()
    if "makes-socket" in faults:
        # As torch does, to share tensors between processes.
        kept.append(multiprocessing.connection.Listener(family="AF_UNIX"))
    sys.stderr.write("stub: loading\n")
    if "talks-much" in faults:
        sys.stderr.write("stub: and so on\n" * 200_000)
    if "doomed" in faults:
        sys.stderr.write("stub: doomed\n")
        time.sleep(3600)


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=int(os.environ.get("STUB_PORT", "0")))
    parser.add_argument("--witness", help="file for what servers of one key leave, and overlap")
    parser.add_argument("--model", required=True)
    parser.add_argument("--faults", default="")
    parser.add_argument("--start-s", type=float, default=0.0)
    parser.add_argument("--start-when", help="wait until this file exists")
    parser.add_argument("--ready-when", help="answer that it is not ready until this file exists")
    parser.add_argument("--answer-when", help="answer no request for vectors until then")
    given = parser.parse_args()
    faults = set(given.faults.split(","))
    _misbehave_at_start(faults)
    if given.witness:
        _witness(given.witness)
    time.sleep(given.start_s)
    while given.start_when and not Path(given.start_when).exists():
        time.sleep(0.02)
    if "dies-at-start" in faults:
        sys.exit("stub: no memory left for the model")
    if "loses-port" in faults:
        sys.exit("OSError: Address already in use")
    files = {"ready": given.ready_when, "answer": given.answer_when}
    held = {step: Path(file) for step, file in files.items() if file}
    server = Server(given.port, given.model, os.environ.get("STUB_KEY", ""), faults, held)
    if "ignores-term" not in faults:
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda signum, frame: stop.set())
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stop.wait()
        while server.in_flight:
            time.sleep(0.01)
        return
    server.serve_forever()


if __name__ == "__main__":
    main()
