"""Model hubs on loopback: one that refuses everything, and one that has models.

Both answer as the real one does, so that the real huggingface_hub can be used with them.
"""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

from checkpoints_made import LAST_TOKEN, MODULES
from http_server import HttpServer, Request, head, reply

GATED: Final = "somebody/gated"
NO_REVISION: Final = "somebody/no-revision"
GONE: Final = "somebody/gone"

# Repository -> status, and the two headers from which the hub's client makes its error.
_ANSWERS: Final = {
    GATED: (403, "GatedRepo", f"Access to model {GATED} is restricted."),
    NO_REVISION: (404, "RevisionNotFound", "Invalid rev id"),
    GONE: (401, "RepoNotFound", "Repository not found"),
}


def _answer(request: Request, _: socket.socket) -> bytes:
    repository = next((name for name in _ANSWERS if name in request.path), GONE)
    status, code, message = _ANSWERS[repository]
    return reply(status, b"", {"X-Error-Code": code, "X-Error-Message": message})


@contextmanager
def serve_hub() -> Iterator[str]:
    """Yield the URL (for ``HF_ENDPOINT``) of a hub that lives as long as the context."""
    with HttpServer(_answer) as server:
        yield server.url


# ---------------------------------------------------------------- a hub that has models

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
_LFS_ENDINGS: Final = (".safetensors", ".bin")


def weights(size: int, seed: int = 0) -> bytes:
    """Return a safetensors file with one tensor of ``size`` bytes."""
    header = {"w": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    content = hashlib.shake_256(bytes([seed])).digest(size)
    return len(text).to_bytes(8, "little") + text + content


def tiny_model(size: int = 40_000) -> dict[str, bytes]:
    """Return the files of a model whose weights have two parts of ``size`` bytes."""
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    modules = [{"path": path, "type": kind} for path, kind in MODULES]
    index = {"weight_map": {f"w{number}": part for number, part in enumerate(parts)}}
    return {
        "config.json": json.dumps({"architectures": ["Qwen3ForCausalLM"]}).encode(),
        "tokenizer.json": b"{}",
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": json.dumps(LAST_TOKEN).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{part: weights(size, number) for number, part in enumerate(parts)},
    }


@dataclass
class Hub:
    """What a hub has, and how it fails. Large files are redirected to another host, as there.

    Attributes:
        models: Name of a model -> name of a file -> content.
        cuts: Name of a file -> after how many bytes of a reply each of the next connections breaks.
        tampered: Name of a file -> content that is sent instead, of the same size.
        commit: The commit that ``main`` is at.
        ignores_ranges: Whole files are sent although a part was requested.
        has_hashes: Whether the description of a model contains hashes.
        hold: Name of a file whose transfer waits, after half of it, until ``held`` is set.
        ranges: The ``Range`` header of each transfer of a large file, with its name.
        halfway: Set when the first half of that file was sent.
        tokens: The authorisations that the host of the large files has seen.
        own_tokens: Those that the hub itself has seen.
    """

    models: Mapping[str, dict[str, bytes]]
    cuts: dict[str, list[int]] = field(default_factory=dict)
    tampered: dict[str, bytes] = field(default_factory=dict)
    commit: str = COMMIT
    ignores_ranges: bool = False
    has_hashes: bool = True
    hold: str = ""
    held: threading.Event = field(default_factory=threading.Event)
    halfway: threading.Event = field(default_factory=threading.Event)
    ranges: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    own_tokens: set[str | None] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def transfers(self) -> list[str]:
        """The names of the large files that were requested."""
        return [name for name, _ in self.ranges]

    def answer(self, request: Request, connection: socket.socket) -> bytes:
        """Answer one request."""
        path = unquote(request.path.partition("?")[0])
        self.requests.append((request.method, path))
        if path.startswith("/large/"):
            return self._send_large(request, path.removeprefix("/large/"), connection)
        self.own_tokens.add(request.headers.get("authorization"))
        if path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/").partition("/revision/")[0]
            return self._describe(name) if name in self.models else _not_found("RepoNotFound", 401)
        model, _, rest = path[1:].partition("/resolve/")
        name = rest.partition("/")[2]
        if model not in self.models:
            return _not_found("RepoNotFound", 401)
        if name not in self.models[model]:
            return _not_found("EntryNotFound", 404, {"X-Repo-Commit": self.commit})
        return self._resolve(request, f"{model}/{name}", self.models[model][name])

    def _describe(self, model: str) -> bytes:
        siblings = [self._sibling(name, body) for name, body in self.models[model].items()]
        return reply(200, {"id": model, "sha": self.commit, "siblings": siblings})

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": name, "size": len(content)}
        if self.has_hashes:
            entry["blobId"] = _git_hash(content)
        if self.has_hashes and name.endswith(_LFS_ENDINGS):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
        return entry

    def _resolve(self, request: Request, name: str, content: bytes) -> bytes:
        about = {"X-Repo-Commit": self.commit}
        if name.endswith(_LFS_ENDINGS):
            about["X-Linked-Size"] = str(len(content))
            about["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            port = request.headers["host"].rpartition(":")[2]
            about["Location"] = f"http://localhost:{port}/large/{name}"
            return head(302, 0, about)
        about["ETag"] = f'"{_git_hash(content)}"'
        sent = self.tampered.get(name.split("/", 2)[2], content)
        return head(200, len(sent), about) if request.method == "HEAD" else reply(200, sent, about)

    def _send_large(self, request: Request, path: str, connection: socket.socket) -> bytes:
        owner, model, name = path.split("/", 2)
        wanted = request.headers.get("range")
        self.ranges.append((name, wanted))
        self.tokens.add(request.headers.get("authorization"))
        whole = self.tampered.get(name, self.models[f"{owner}/{model}"][name])
        begin = 0 if self.ignores_ranges or not wanted else int(wanted[len("bytes=") :].rstrip("-"))
        content = whole[begin:]
        about = {"Accept-Ranges": "bytes"}
        if begin:
            about["Content-Range"] = f"bytes {begin}-{len(whole) - 1}/{len(whole)}"
        start = head(206 if begin else 200, len(content), about)
        if self.cuts.get(name):
            connection.sendall(start + content[: self.cuts[name].pop(0)])
            raise ConnectionError
        if self.hold == name:
            connection.sendall(start + content[: len(content) // 2])
            self.halfway.set()
            self.held.wait(60)
            return content[len(content) // 2 :]
        return start + content


def _not_found(code: str, status: int, more: Mapping[str, str] | None = None) -> bytes:
    return reply(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(more or {})})


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve_models(hub: Hub) -> Iterator[str]:
    """Yield the URL (for ``HF_ENDPOINT``) of a hub that lives as long as the context."""
    with HttpServer(hub.answer) as server:
        yield server.url
