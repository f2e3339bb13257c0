"""What tests of the real engines share: interpreters, scripts, the reference, embedders."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from emberd import Embedder, installs
from emberd.env import Places
from emberd.model_files import CONFIG
from emberd.verified_manager import Manager

HERE: Final = Path(__file__).parent
# Before the session's environment is cleaned: the engines are this machine's, not the session's.
_ENGINES: Final = Places.resolve().engines
_SGLANG: Final = os.environ.get("EMBERD_SGLANG_PYTHON")
START_S: Final = 480.0
_WORKER: Final = uuid.uuid4().hex
_SCRIPT_S: Final = 240.0

Vectors = NDArray[np.float32]
Special = Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Reference:
    """What Transformers makes of some texts.

    Attributes:
        ids: Token ids of each text.
        vectors: Their vectors: float32, (n, dimensions).
    """

    ids: list[list[int]]
    vectors: Vectors


Refer = Callable[[list[str]], Reference]


@pytest.fixture(scope="session", autouse=True)
def engines_of_this_machine(_session_environment: None) -> Iterator[None]:
    """Let the tests find the engines that this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBERD_ENGINES", _ENGINES)
        if _SGLANG:  # another version: make test-sglang SGLANG=0.5.17
            patch.setenv("EMBERD_SGLANG_PYTHON", _SGLANG)
        yield


def embedder_for(model: Path | str, manager: Manager, **settings: Any) -> Embedder:
    """Return an embedder of ``model`` through SGLang on the CPU."""
    return Embedder(
        model,
        engine="sglang",
        device="cpu",
        start_timeout=START_S,
        manager=manager,
        **settings,
    )


def python_of(engine: str) -> str:
    """Return the interpreter that has an engine."""
    found = installs.locate(engine, Places.resolve())
    assert found is not None, f"Not installed here. Run: emberd engine install {engine}"
    return found.python


def with_sentence_transformers(engine: installs.Interpreter, folder: Path) -> str:
    """Return an interpreter that has sentence-transformers and what the engine has.

    It is made in ``folder``, which is empty: nothing is installed into the engine's environment.
    """
    subprocess.run([engine.python, "-m", "venv", str(folder)], check=True, timeout=_SCRIPT_S)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "engine.pth").write_text(engine.packages)
    python = str(folder / "bin" / "python")
    # By pip: uv would not see the engine's packages, and would install torch again.
    pip = [python, "-m", "pip", "install", "-q", "--no-compile"]
    subprocess.run([*pip, "sentence-transformers>=6"], check=True, timeout=_SCRIPT_S)
    return python


def run(python: str, script: Path, *arguments: str, stdin: str = "") -> str:
    """Run a script by an engine's interpreter; return what it printed."""
    done = subprocess.run(
        [python, str(script), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=_SCRIPT_S,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def _own(folder: Path) -> Path:
    """Give a checkpoint content that those of no other worker have; return it.

    The weights are the same in each session. A server of another worker or session that was started
    by hand would serve the same model, and emberd would rightly use it.
    """
    config = folder / CONFIG
    known = json.loads(config.read_text())
    config.write_text(json.dumps({**known, "made_for_tests": _WORKER}))
    return folder


class EngineSide:
    """A process of an engine's interpreter, which answers what needs torch."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def make_tiny(self, folder: Path, layers: int = 2, hidden: int = 128) -> Path:
        """Write a tiny Qwen3-Embedding checkpoint with random weights to ``folder``; return it."""
        self._ask("make_tiny", str(folder), layers, hidden)
        return _own(folder)

    def reference(self, folder: Path, texts: list[str], dtype: str = "bfloat16") -> Reference:
        """Return what Transformers makes of ``texts`` with the weights in ``folder``."""
        found = self._ask("reference", str(folder), dtype, texts)
        return Reference(found["ids"], np.array(found["vectors"], np.float32))

    def make_tiny_reranker(
        self, folder: Path, *habits: str, layers: int = 2, hidden: int = 128
    ) -> Path:
        """Write a tiny Qwen3-Reranker with random weights to ``folder``; return it."""
        self._ask("make_tiny_reranker", str(folder), habits, layers, hidden)
        return _own(folder)

    def scores(self, folder: Path, prompts: list[str] | list[list[int]], dtype: str) -> Reference:
        """Return what Transformers makes of whole prompts of a reranker."""
        found = self._ask("scores", str(folder), dtype, prompts)
        return Reference(found["ids"], np.array(found["scores"], np.float32))

    def make_shape(
        self, folder: Path, architecture: str, habits: Sequence[str], config: Mapping[str, Any]
    ) -> Path:
        """Write a tiny checkpoint as ``make_shapes.make`` does to ``folder``; return it."""
        self._ask("make_shape", str(folder), architecture, habits, config)
        return _own(folder)

    def make_module(self, folder: Path, kind: str) -> None:
        """Write the settings and weights of a module to ``folder``."""
        self._ask("make_module", str(folder), kind)

    def pooled(
        self, folder: Path, texts: Sequence[str], token: int, config: Mapping[str, Any]
    ) -> Vectors:
        """Return the state of one token of each text: -1 is the last one, 0 the first."""
        return np.array(self._ask("pooled", str(folder), texts, token, config), np.float32)

    def sentences(self, asked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return what sentence-transformers does with folders: ``sentence_decisions.py``."""
        found: list[dict[str, Any]] = self._ask("sentences", asked)
        return found

    def make_qwen(self, folder: Path, table: Path, special: Special) -> Path:
        """Write a tiny checkpoint with Qwen's real tokenizer to ``folder``; return it."""
        self._ask("make_qwen", str(folder), str(table), special)
        return _own(folder)

    def count(self, table: Path, special: Special, texts: list[str]) -> list[int]:
        """Return how many tokens ``texts`` have by Qwen's real tokenizer."""
        counts: list[int] = self._ask("count", str(table), special, texts)
        return counts

    def _ask(self, *asked: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{json.dumps(asked)}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process has ended; what it wrote is in the output of the tests"
        return json.loads(answer)


@contextmanager
def engine_side(python: str) -> Iterator[EngineSide]:
    """Run ``engine_side.py`` by an engine's interpreter."""
    with subprocess.Popen(
        [python, str(HERE / "engine_side.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    ) as process:
        yield EngineSide(process)
