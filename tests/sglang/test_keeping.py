"""One SGLang for all, kept through the death of each of its parts, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pytest

import leftovers
import waiting
from emberd import Embedder
from emberd.errors import ServerStoppedError, StartError
from emberd.manager import Server
from emberd.verified_manager import Manager
from homes import begin
from real.by_hand import POLL_S
from real.engines import embedder_for
from real.traces import all_gone

_ROOT: Final = Path(__file__).parents[2]
_PROCESSES: Final = 16
_TEXTS: Final = 5_000
_START_S: Final = 240.0

MAIN: Final = "sglang.launch_server"
SCHEDULER: Final = "sglang::scheduler"
SUPERVISOR: Final = "emberd.verified_manager"


@pytest.fixture(scope="module")
def home(shared_home: Path) -> Path:
    """The home whose server is killed again and again: that of the tests before these."""
    return shared_home


def part(home: Path, name: str) -> psutil.Process | None:
    """Return the process of the server in ``home`` whose command line has ``name`` in it."""
    for process in leftovers.find([str(home)]):
        with suppress(psutil.Error):
            if any(name in word for word in process.cmdline()):
                return process
    return None


@pytest.mark.full  # tests/gpu does the same, which test_gpu_script.py runs
def test_sixteen_processes_at_once_get_one_server(home: Path, tiny: Path) -> None:
    Manager(home).stop()  # another test may have come before
    environment = {
        **os.environ,
        "EMBERD_HOME": str(home),
        "PYTHONPATH": os.pathsep.join([str(_ROOT / "backend/src"), str(_ROOT / "tests")]),
    }
    asking = [
        subprocess.Popen(
            [sys.executable, "-m", "real.asker", str(tiny)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(_PROCESSES)
    ]
    answers = [json.loads(process.communicate(timeout=_START_S)[0]) for process in asking]
    assert len({answer["start_id"] for answer in answers}) == 1
    assert sum(answer["started"] for answer in answers) == 1
    mains = [p for p in leftovers.find([str(home)]) if MAIN in p.cmdline()]
    assert len(mains) == 1
    vectors = np.array([answer["numbers"] for answer in answers])
    assert np.abs(vectors - vectors[0]).max() < 1e-2


@pytest.mark.full  # tests/gpu does the same, which test_gpu_script.py runs
@pytest.mark.parametrize("name", [MAIN, SCHEDULER, SUPERVISOR])
def test_killed_process_loses_and_duplicates_no_text(
    home: Path, embedder: Embedder, name: str
) -> None:
    texts = [f"passage {i} of the ingest, number {i * 7919 % 104729}" for i in range(_TEXTS)]
    first = embedder.ensure()
    done: list[Any] = []
    ingest = threading.Thread(target=lambda: done.append(embedder.embed_documents(texts)))
    ingest.start()
    _after_some_requests(first)
    killed = part(home, name)
    assert killed is not None
    killed.kill()
    ingest.join(_START_S)
    assert len(done) == 1
    second = embedder.ensure()
    assert (second.start_id, second.origin) != (first.start_id, first.origin)
    # Each in its place: the vectors of the dead server and of the new one are those of one run.
    sample = [*range(0, _TEXTS, 97)]
    again = embedder.embed_documents([texts[i] for i in sample])
    assert np.sum(done[0][sample] * again, axis=1).min() > 0.9995
    assert len(np.unique(done[0].round(4), axis=0)) == _TEXTS


@pytest.mark.full
@pytest.mark.parametrize("name", [MAIN, SCHEDULER, SUPERVISOR])
def test_a_part_killed_while_loading_is_followed_by_a_start_that_succeeds(
    tmp_path: Path, tiny: Path, name: str
) -> None:
    home = tmp_path / "home"
    with all_gone(home):
        embedder = embedder_for(tiny, Manager(home))
        outcome: list[Server | Exception] = []
        starting = threading.Thread(target=lambda: outcome.append(_outcome(embedder.ensure)))
        starting.start()
        victim = waiting.until(lambda: part(home, name), 60.0, poll_s=POLL_S)
        assert victim is not None
        victim.kill()
        starting.join(_START_S)
        # Each caller that waited has a server or an error; each later caller has a server.
        assert isinstance(outcome[0], Server | StartError)
        assert embedder.embed_query("a").shape == (128,)
        Manager(home).stop()


def test_a_supervisor_killed_while_loading_leaves_nothing_and_is_replaced(
    tmp_path: Path, tiny: Path
) -> None:
    home = tmp_path / "home"
    with all_gone(home):
        begin(Manager(home), embedder_for(tiny, Manager(home)).settings.spec)
        waiting.until(
            lambda: part(home, SCHEDULER) or part(home, "spawn_main"), 60.0, poll_s=POLL_S
        )
        supervisor = part(home, SUPERVISOR)
        assert supervisor is not None
        supervisor.kill()
        waiting.until(lambda: not leftovers.find([str(home)]), 10.0)
        Manager(home).stop()  # sweeps what the dead one left in shared memory


def test_a_stop_under_load_drains_what_was_sent(home: Path, embedder: Embedder) -> None:
    server = embedder.ensure()
    assert server.folder is not None
    log = Path(server.folder) / "server.log"
    before = len(log.read_bytes())
    outcome: list[Any] = []
    texts = [f"text {i} " + "and more " * 8 for i in range(50_000)]
    job = threading.Thread(
        target=lambda: outcome.append(_outcome(lambda: embedder.embed_documents(texts)))
    )
    job.start()
    _after_some_requests(server)
    Manager(home).stop()
    job.join(_START_S)
    # The job gets an error: a person stopped its server. The server answered what it had accepted.
    assert isinstance(outcome[0], ServerStoppedError)
    told = log.read_bytes()[before:]
    assert b"Remaining number of requests 0" in told
    assert b" 500 " not in told


def _after_some_requests(server: Server) -> None:
    assert server.folder is not None
    log = Path(server.folder) / "server.log"
    before = log.read_text().count("Prefill batch")
    waiting.until(lambda: log.read_text().count("Prefill batch") > before + 2, 60.0)


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - the error is the outcome
        return error
