"""Downloads from ModelScope with its own package, from a server on loopback that has its routes."""

from __future__ import annotations

import hashlib
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from modelscope_hub.config import set_default_config

from emberd import modelscope_weights
from emberd.errors import HubError
from http_server import HttpServer, Request, reply
from real import fake_hub

MODEL: Final = "owner/model"
FIRST: Final = "model-00001-of-00002.safetensors"


@dataclass
class ModelScope:
    """What it has, and what it sends instead."""

    files: dict[str, bytes] = field(default_factory=fake_hub.tiny_model)
    tampered: dict[str, bytes] = field(default_factory=dict)
    sent: list[str] = field(default_factory=list)

    def answer(self, request: Request, _: socket.socket) -> bytes:
        url = urlsplit(request.path)
        if url.path == f"/api/v1/models/{MODEL}/repo/files":
            files = [self._entry(name, content) for name, content in self.files.items()]
            return reply(200, {"Code": 200, "Success": True, "Data": {"Files": files}})
        if url.path == f"/api/v1/models/{MODEL}/repo":
            [name] = parse_qs(url.query)["FilePath"]
            self.sent.append(name)
            return reply(200, self.tampered.get(name, self.files[name]))
        return reply(404, {"Code": 404, "Success": False, "Message": "not found"})

    @staticmethod
    def _entry(name: str, content: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(content).hexdigest()
        return {"Path": name, "Type": "blob", "Size": len(content), "Sha256": digest}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScope]:
    made = ModelScope()
    with HttpServer(made.answer) as server:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", server.url)
        set_default_config(None)  # it is read once in a process
        yield made
        set_default_config(None)


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_what_a_server_reads_is_downloaded_once(served: ModelScope) -> None:
    wanted = dict(served.files)
    served.files |= {"pytorch_model.bin": b"a pickle", "README.md": b""}
    folder = modelscope_weights.fetch(MODEL, None)
    assert files(folder) == wanted
    assert sorted(served.sent) == sorted(wanted)
    assert modelscope_weights.fetch(MODEL, None) == folder
    assert len(served.sent) == len(wanted)


def test_a_file_with_a_wrong_hash_is_not_kept(served: ModelScope) -> None:
    content = served.files[FIRST]
    served.tampered[FIRST] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(HubError, match=FIRST):
        modelscope_weights.fetch(MODEL, None)
    served.tampered.clear()
    assert files(modelscope_weights.fetch(MODEL, None)) == served.files


def test_a_repository_without_safetensors_is_refused(served: ModelScope) -> None:
    served.files = {
        name: content for name, content in served.files.items() if "safetensors" not in name
    }
    served.files["pytorch_model.bin"] = b"a pickle"
    with pytest.raises(HubError, match="safetensors"):
        modelscope_weights.fetch(MODEL, None)
    assert "pytorch_model.bin" not in served.sent


def test_a_model_that_it_does_not_have_is_an_error(served: ModelScope) -> None:
    with pytest.raises(HubError, match="owner/other"):
        modelscope_weights.fetch("owner/other", None)


def test_without_its_package_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(HubError, match="pip install modelscope"):
        modelscope_weights.fetch(MODEL, None)


def test_a_complete_model_in_the_cache_is_found_and_nothing_is_downloaded(
    served: ModelScope,
) -> None:
    assert modelscope_weights.find(MODEL, None) is None
    assert served.sent == []
    folder = modelscope_weights.fetch(MODEL, None)
    sent = list(served.sent)
    assert modelscope_weights.find(MODEL, None) == folder
    (folder / FIRST).unlink()
    assert modelscope_weights.find(MODEL, None) is None
    assert served.sent == sent


def test_without_its_package_no_model_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modelscope_weights, "find_spec", lambda _: None)
    assert modelscope_weights.find(MODEL, None) is None
