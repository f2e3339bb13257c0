"""Runs recipes of docs/agents.md as they stand, and keeps what they send.

Each framework has a separate environment (``make test-agents``), because their pins clash.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

import emberd
from agents.recipes import Recipe, Sent, code
from fake_server import QWEN, FakeServer
from managed import MODEL, stopped_at_the_end
from real.recorder import Recorder, in_front_of

__all__ = ["stopped_at_the_end"]

_NAME: Final = "recipe"
_DIMENSIONS: Final = 1024  # of Qwen3-Embedding-0.6B


@pytest.fixture(autouse=True)
def _demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Recipes name no model, and write where they stand."""
    monkeypatch.setenv("EMBERD_MODEL", MODEL)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recipe:
    """Runs the code of a section, and returns the module that it made."""

    def run(section: str) -> ModuleType:
        path = tmp_path / f"{_NAME}.py"
        path.write_text(code(section), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(_NAME, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # A pipeline that is read from YAML looks its components up by the name of their module.
        monkeypatch.setitem(sys.modules, _NAME, module)
        spec.loader.exec_module(module)
        return module

    return run


@pytest.fixture
def sent_to_demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """The texts that the session's server was sent, which everything now goes to."""
    with in_front_of(emberd.Embedder(MODEL).endpoint()) as recorder:
        monkeypatch.setenv("EMBERD_BASE_URL", recorder.base_url)
        monkeypatch.setenv("EMBERD_API_KEY", recorder.api_key)
        yield lambda: _texts(recorder)


@pytest.fixture
def sent_to_qwen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """The same of a server that says it serves Qwen3-Embedding; its vectors mean nothing."""
    with FakeServer(model=QWEN, dimensions=_DIMENSIONS) as server:
        monkeypatch.setenv("EMBERD_BASE_URL", server.url)
        monkeypatch.setenv("EMBERD_MODEL", QWEN)
        yield lambda: [text for texts in server.embedded for text in texts]


def _texts(recorder: Recorder) -> list[str]:
    inputs = [json.loads(body)["input"] for body in recorder.taken()]
    return [text for texts in inputs for text in ([texts] if isinstance(texts, str) else texts)]
