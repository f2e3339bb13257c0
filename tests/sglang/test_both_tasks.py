"""An embedder and a reranker on one machine: a server each, for all processes, through kills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pytest

import leftovers
from emberd import Embedder, Reranker
from emberd.catalog import EMBED, RERANK
from emberd.verified_manager import Manager
from real import asker, traces
from real.engines import START_S, EngineSide

_ROOT: Final = Path(__file__).parents[2]
_PROCESSES: Final = 16
_MAIN: Final = "sglang.launch_server"
_EMBEDS: Final = "--is-embedding"
_APART: Final = 0.01  # of numbers in bfloat16, computed in other batches

pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore:.*scores may mean nothing")]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of both servers, of which nothing is left at the end."""
    home = tmp_path_factory.mktemp("home")
    with traces.all_gone(home):
        yield home
        Manager(home).stop()


@pytest.fixture(scope="module")
def reranker_folder(sglang_side: EngineSide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reranker."""
    return sglang_side.make_tiny_reranker(tmp_path_factory.mktemp("models") / "tiny-reranker")


@pytest.fixture(scope="module")
def answers(home: Path, tiny: Path, reranker_folder: Path) -> list[list[dict[str, Any]]]:
    """What each of the processes got that began at once: of its embedder, and of its reranker."""
    environment = {
        **os.environ,
        "EMBERD_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(_ROOT / "backend/src"), str(_ROOT / "tests")]),
    }
    asking = [
        subprocess.Popen(
            [sys.executable, "-m", "real.asker", str(tiny), str(reranker_folder)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(_PROCESSES)
    ]
    with ThreadPoolExecutor(_PROCESSES) as pool:
        printed = pool.map(lambda process: process.communicate(timeout=START_S)[0], asking)
        said = [[json.loads(line) for line in text.splitlines()] for text in printed]
    assert [process.returncode for process in asking] == [0] * _PROCESSES
    return said


def _mains(home: Path) -> dict[str, list[psutil.Process]]:
    """Return the main processes of SGLang of each task."""
    found: dict[str, list[psutil.Process]] = {EMBED: [], RERANK: []}
    for process in leftovers.find([str(home)]):
        with suppress(psutil.Error):
            if _MAIN in (command := process.cmdline()):
                found[EMBED if _EMBEDS in command else RERANK].append(process)
    return found


def test_sixteen_processes_that_want_both_share_one_server_of_each(
    home: Path, answers: list[list[dict[str, Any]]]
) -> None:
    of_embedders, of_rerankers = zip(*answers, strict=True)
    for each in (of_embedders, of_rerankers):
        assert len(each) == _PROCESSES
        assert len({answer["start_id"] for answer in each}) == 1
        assert sum(answer["started"] for answer in each) == 1
        numbers = np.array([answer["numbers"] for answer in each])
        assert np.abs(numbers - numbers[0]).max() < _APART
    assert of_embedders[0]["url"] != of_rerankers[0]["url"]
    assert [len(processes) for processes in _mains(home).values()] == [1, 1]


@pytest.mark.parametrize("task", [EMBED, RERANK])
def test_a_killed_server_of_one_task_is_replaced_and_the_other_stays(
    home: Path,
    tiny: Path,
    reranker_folder: Path,
    answers: list[list[dict[str, Any]]],
    task: str,
) -> None:
    options: dict[str, Any] = {"engine": "sglang", "device": "cpu", "start_timeout": START_S}
    embedder = Embedder(tiny, manager=Manager(home), **options)
    reranker = Reranker(reranker_folder, manager=Manager(home), **options)
    vector, score = (answer["numbers"] for answer in answers[0])

    def ask() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a server was replaced
            assert np.abs(embedder.embed_query(asker.QUERY) - vector).max() < _APART
            found = reranker.scores(asker.QUERY, [asker.DOCUMENT])
        assert np.abs(found - score).max() < _APART

    ask()
    before = _mains(home)
    (killed,) = before[task]
    killed.kill()
    ask()
    after = _mains(home)
    (other,) = {EMBED, RERANK} - {task}
    assert after[other] == before[other]
    assert len(after[task]) == 1
    assert after[task] != before[task]
    assert not killed.is_running()
