"""What each part is given: the model, an embedder of it, sizes, the engine's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from emberd import Embedder, Manager
from gpu.result import SkippedError, read_json

Vectors = NDArray[np.float32]

CUDA: Final = "cuda"
CPU: Final = "cpu"
LIVING: Final = ("starting", "ready")
NO_INSTRUCTION: Final = ""
"""For comparisons with clients that add none."""

_ENGINE_SIDE: Final = Path(__file__).with_name("engine_side")
_START_S: Final = 600.0  # a part's own limit comes first
_SETUP: Final = "setup.json"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Attributes:
        bulk: Tokens a text -> how many texts are embedded in bulk.
        rounds: Tokens a text -> how often each way of embedding them is timed.
        ingest: Texts of 16 tokens in the ingest that is interrupted.
        queries: Single queries that are timed.
        at_once: Queries that are asked at the same time.
        askers: Processes that want a server at the same time.
        long_words: Words of the longest texts that are compared with the reference.
    """

    bulk: dict[int, int]
    rounds: dict[int, int]
    ingest: int
    queries: int
    at_once: int
    askers: int
    long_words: int


SIZES: Final = {
    CUDA: Sizes(
        bulk={16: 2048, 256: 384, 2000: 48},
        rounds={16: 2, 256: 2, 2000: 1},
        ingest=6144,
        queries=100,
        at_once=512,
        askers=16,
        long_words=3000,
    ),
    CPU: Sizes(
        bulk={16: 64, 256: 8, 2000: 1},
        rounds={16: 1, 256: 1, 2000: 1},
        ingest=2048,  # the kill comes after the first thousand, while the next is under way
        queries=10,
        at_once=64,
        askers=4,
        long_words=1000,
    ),
}


@dataclass(frozen=True, slots=True)
class Bench:
    """What a part works with.

    Attributes:
        folder: All files of the run.
        device: ``cuda`` or ``cpu``.
        shape: Name of the model's shape.
        python: The interpreter that has SGLang and torch.
        others: Interpreters that may have sentence-transformers.
        deadline_s: When the part is ended, on the monotonic clock.
    """

    folder: Path
    device: str
    shape: str
    python: str
    others: tuple[str, ...] = ()
    deadline_s: float = float("inf")

    @property
    def sizes(self) -> Sizes:
        """How much of everything, on this device."""
        return SIZES[self.device]

    @property
    def model(self) -> str:
        """The folder of the checkpoint."""
        return str(self.folder / "model")

    @property
    def home(self) -> Path:
        """The folder of all state of servers."""
        return self.folder / "home"

    @property
    def manager(self) -> Manager:
        """What finds and starts servers."""
        return Manager(self.home)

    @property
    def left_s(self) -> float:
        """Seconds until this part is ended."""
        return self.deadline_s - time.monotonic()

    def embedder(self, engine: str = "sglang", **settings: Any) -> Embedder:
        """Return an embedder of the model; nothing is started yet."""
        return Embedder(
            self.model,
            engine=engine,
            device=self.device,
            start_timeout=_START_S,
            idle_timeout=None,
            manager=self.manager,
            **settings,
        )

    def shared(self, **settings: Any) -> Embedder:
        """Return an embedder whose server runs; start none.

        Raises:
            SkippedError: None runs.
        """
        if not any(own.state in LIVING for own in self.manager.status()):
            raise SkippedError("no server runs: the part that starts one failed")
        embedder = self.embedder(**settings)
        embedder.ensure()
        return embedder

    def texts(self, tokens: int) -> list[str]:
        """Return the texts that have so many tokens each."""
        found: list[str] = read_json(self.folder / "texts.json")[str(tokens)]
        return found

    def keep(self, name: str, vectors: Vectors) -> None:
        """Keep vectors for a later part."""
        np.save(self.folder / f"{name}.npy", vectors)

    def kept(self, name: str) -> Vectors | None:
        """Return the vectors that an earlier part kept; None where it kept none."""
        path = self.folder / f"{name}.npy"
        return np.load(path) if path.exists() else None

    def figures(self, part: str) -> dict[str, Any]:
        """Return what an earlier part measured; empty where it did not run."""
        found: dict[str, Any] = read_json(self.folder / "results" / f"{part}.json")
        figures: dict[str, Any] = found.get("figures", {})
        return figures

    def script(self, name: str, *arguments: str, python: str = "") -> list[str]:
        """Return the command of a script for an engine's interpreter."""
        return [python or self.python, str(_ENGINE_SIDE / name), *arguments]

    def ask(self, name: str, *arguments: str, given: Any = None) -> str:
        """Run a script by the engine's interpreter; return what it printed.

        Raises:
            RuntimeError: It failed; the text is the end of what it said.
        """
        done = subprocess.run(
            self.script(name, *arguments),
            input=json.dumps(given),
            capture_output=True,
            text=True,
            env=foreign_environment(),
            timeout=max(1.0, self.left_s),
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed: {done.stderr.strip()[-1500:]}")
        return done.stdout

    def emberd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command ``emberd``, which need not be on the PATH."""
        return subprocess.run(
            [sys.executable, "-m", "emberd", *arguments],
            capture_output=True,
            text=True,
            timeout=max(1.0, self.left_s),
        )

    def save(self) -> None:
        """Write what the processes of parts have to know."""
        content = {
            "device": self.device,
            "shape": self.shape,
            "python": self.python,
            "others": list(self.others),
        }
        (self.folder / _SETUP).write_text(json.dumps(content), encoding="utf-8")


def load(folder: Path, limit_s: float) -> Bench:
    """Return what ``Bench.save`` wrote, for a part that is ended after ``limit_s``."""
    found = json.loads((folder / _SETUP).read_text(encoding="utf-8"))
    return Bench(
        folder=folder,
        device=found["device"],
        shape=found["shape"],
        python=found["python"],
        others=tuple(found["others"]),
        deadline_s=time.monotonic() + limit_s,
    )


def foreign_environment() -> dict[str, str]:
    """Return the environment for another interpreter.

    It has neither this one's packages nor the variables of emberd: by the name of the home in them
    the processes of servers are found.
    """
    ours = ("EMBERD_", "PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}
