"""``emberd up A B`` for real: an embedding model and a reranker on SGLang, in one command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from command import Command
from emberd import Embedder, Reranker
from emberd.verified_manager import Manager
from real import traces
from real.engines import EngineSide

DEVICE = ("--device", "cpu", "--engine", "sglang")
OUTSIDE_S = 400.0


@pytest.fixture(scope="module")
def reranker_folder(sglang_side: EngineSide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reranker; its name says that it is one."""
    folder = tmp_path_factory.mktemp("rerankers") / "Qwen3-Reranker-0.6B"
    return sglang_side.make_tiny_reranker(folder)


# Random weights may prefer the wrong document.
@pytest.mark.filterwarnings("ignore:.*its scores may mean nothing")
def test_two_models_are_served_by_one_command_and_stopped_by_one(
    tiny: Path, reranker_folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    models = (str(tiny), str(reranker_folder))
    with traces.all_gone(home):
        try:
            command = Command(home)
            with command.begin("up", *models, *DEVICE, "--json", text=True) as process:
                out, err = process.communicate(timeout=OUTSIDE_S)
            assert process.returncode == 0, err
            for model in models:
                assert f"{model}: " in err
            # Both classes use the servers that run, and start none.
            manager = Manager(home)
            before = {status.start_id for status in manager.status()}
            embedder = Embedder(tiny, engine="sglang", device="cpu", manager=manager)
            vectors = embedder.embed_documents(["a fox", "a dog"])
            assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)
            reranker = Reranker(reranker_folder, engine="sglang", device="cpu", manager=manager)
            scores = reranker.scores("which animal?", ["a fox", "a dog"])
            assert ((scores > 0) & (scores < 1)).all()
            assert {status.start_id for status in manager.status()} == before
            assert all(start_id in out for start_id in before)
            assert len(before) == len(models)
            assert command("stop").out.count("Stopped ") == len(models)
        finally:
            Manager(home).stop()
