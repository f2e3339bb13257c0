"""The real SGLang: its interpreter, a tiny checkpoint, and one server that tests share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from emberd import Embedder
from emberd.verified_manager import Manager
from real import traces
from real.engines import (
    HERE,
    Refer,
    Reference,
    embedder_for,
    engines_of_this_machine,
    python_of,
    run,
)

__all__ = ["engines_of_this_machine"]

_TEST_S: Final = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the time of a start, which its first fixture may need, and a little more."""
    for item in items:
        item.add_marker(pytest.mark.timeout(_TEST_S))


@pytest.fixture(scope="session")
def sglang_python() -> str:
    """The interpreter that has SGLang."""
    return python_of("sglang")


@pytest.fixture(scope="session")
def tiny(sglang_python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-Embedding checkpoint; random weights, its own tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    run(sglang_python, HERE / "make_tiny.py", str(folder))
    return folder


@pytest.fixture(scope="session")
def refer(sglang_python: str, tiny: Path) -> Refer:
    """Texts to what Transformers makes of them, on the weights of ``tiny``."""

    def ask(texts: list[str]) -> Reference:
        said = run(sglang_python, HERE / "reference.py", str(tiny), stdin=json.dumps(texts))
        found = json.loads(said)
        return Reference(found["ids"], np.array(found["vectors"], np.float32))

    return ask


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of the server that tests share; at the end nothing of it may be left anywhere."""
    home = tmp_path_factory.mktemp("shared-home")
    with traces.all_gone(home):
        yield home
        Manager(home).stop()


@pytest.fixture(scope="session")
def embedder(shared_home: Path, tiny: Path) -> Embedder:
    """The embedder of ``tiny`` through SGLang on the CPU; its server is started here, once."""
    made = embedder_for(tiny, Manager(shared_home))
    made.ensure()
    return made
