"""A machine with a GPU and nothing else: the GPU, the hub and SGLang are fake.

The installer, huggingface_hub, the terminal and the processes are real. A test imports the fixtures
``hub`` and ``machine``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import fake_sglang
import leftovers
import tiny_engine
from command import Command, Outcome
from emberd import Manager
from emberd.installs import RECIPES
from fake_nvml import GIB, Card
from real import fake_hub
from real.fake_hub import Hub

MODEL: Final = "Qwen/Qwen3-Embedding-4B"
RERANKER: Final = "Qwen/Qwen3-Reranker-4B"
VERSION: Final = RECIPES["sglang"].version
CARDS: Final = {
    16: Card(name="NVIDIA RTX A4000", capability=(8, 6)),
    24: Card(name="NVIDIA L4", capability=(8, 9)),
    48: Card(name="NVIDIA L40S", capability=(8, 9)),
    80: Card(name="NVIDIA H100 80GB HBM3", capability=(9, 0)),
    141: Card(name="NVIDIA H200", capability=(9, 0)),
}
_FREE: Final = 0.93


class Machine(Command):
    """The command on that machine."""

    @staticmethod
    def line(*arguments: str) -> list[str]:
        """Return its command line."""
        return [sys.executable, "-m", "fake_sglang", *arguments]

    def __call__(self, *arguments: str, stdin: str = "") -> Outcome:
        """Run it to its end without a terminal."""
        with self.begin(*arguments, stdin=subprocess.PIPE, text=True) as process:
            out, err = process.communicate(stdin)
        return Outcome(process.returncode, out, err)

    @property
    def command_file(self) -> Path:
        """Where the server of the embedding model writes its command."""
        return self.command_of(MODEL)

    def command_of(self, model: str) -> Path:
        """Where the server of a model writes its command."""
        return self.home.parent / "commands" / f"{model.replace('/', '--')}.json"

    @property
    def is_empty(self) -> bool:
        """Whether nothing was downloaded or started."""
        root = self.home.parent
        return not any((root / name).exists() for name in ("engines", "hub", "commands"))


@pytest.fixture
def hub() -> Hub:
    """A hub that has the model and the reranker, with weights of a few bytes."""
    config = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 2560}
    files = fake_hub.tiny_model() | {"config.json": json.dumps(config).encode()}
    no_modules = {name: files[name] for name in files if "odul" not in name and "Pool" not in name}
    return Hub({MODEL: files, RERANKER: no_modules})


@pytest.fixture
def machine(
    request: pytest.FixtureRequest, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    """A machine with a card of so many GB as the parameter says."""
    size = getattr(request, "param", 24)
    for name in ("wheels", "modules"):
        (tmp_path / name).mkdir()
    fake_sglang.write_wheel(tmp_path / "wheels", VERSION)
    card = CARDS[size]
    card.total, card.free = size * GIB, round(size * _FREE * GIB)
    fake_sglang.write_nvml(tmp_path / "modules", [card], tmp_path / "taken")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    path = os.pathsep.join([str(tmp_path / "modules"), *(entry for entry in sys.path if entry)])
    with fake_hub.serve_models(hub) as url:
        variables = {
            "PATH": tiny_engine.path_with_uv(tmp_path / "bin", tiny_engine.QUICK_UV),
            "PYTHONPATH": path,
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_FIND_LINKS": str(tmp_path / "wheels"),
            "PIP_NO_CACHE_DIR": "1",
            "PIP_NO_INDEX": "1",
            "EMBERD_ENGINES": str(tmp_path / "engines"),
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
            "HF_ENDPOINT": url,
        }
        home = tmp_path / "home"
        made = Machine(home, variables)
        made.more.update(fake_sglang.environment(tmp_path / "commands", tmp_path / "taken"))
        yield made
        Manager(home).stop()
        left = leftovers.end_all([str(home), str(tmp_path / "engines")])
        assert not left, left
