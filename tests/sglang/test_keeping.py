"""One SGLang for all, kept through the death of each of its parts, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
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
from real.engines import embedder_for
from real.traces import all_gone

_ROOT: Final = Path(__file__).parents[2]
_PROCESSES: Final = 16
_TEXTS: Final = 5_000
_START_S: Final = 240.0
_IDLE_S: Final = 60.0
_MEASURED_S: Final = 10.0
_REST_S: Final = 50.0
# Under 2 on an idle machine; a scheduler that polls takes 100. Other work on the machine adds some.
_MOST_IDLE_PERCENT: Final = 20.0

MAIN: Final = "sglang.launch_server"
SCHEDULER: Final = "sglang::scheduler"
SUPERVISOR: Final = "emberd.verified_manager"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose server is killed again and again; at the end nothing of it may be left."""
    home = tmp_path_factory.mktemp("killed")
    with all_gone(home):
        yield home
        Manager(home).stop()


@pytest.fixture(scope="module")
def embedder(home: Path, tiny: Path) -> Embedder:
    return embedder_for(tiny, Manager(home))


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
    vectors = np.array([answer["vector"] for answer in answers])
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
        victim = waiting.until(lambda: part(home, name), 60.0)
        assert victim is not None
        victim.kill()
        starting.join(_START_S)
        # Whoever waited has a server, or knows why not; whoever comes then has one.
        assert isinstance(outcome[0], Server | StartError)
        assert embedder.embed_query("a").shape == (128,)
        Manager(home).stop()


def test_a_supervisor_killed_while_loading_leaves_nothing_and_is_replaced(
    tmp_path: Path, tiny: Path
) -> None:
    home = tmp_path / "home"
    with all_gone(home):
        begin(Manager(home), embedder_for(tiny, Manager(home)).settings.spec)
        waiting.until(lambda: part(home, SCHEDULER) or part(home, "spawn_main"), 60.0)
        supervisor = part(home, SUPERVISOR)
        assert supervisor is not None
        supervisor.kill()
        waiting.until(lambda: not leftovers.find([str(home)]), 10.0)
        Manager(home).stop()  # sweeps what the dead one left in shared memory


def test_an_idle_server_rests_answers_and_stops_after_its_time(tmp_path: Path, tiny: Path) -> None:
    home = tmp_path / "home"
    with all_gone(home):
        embedder = embedder_for(tiny, Manager(home), idle_timeout=_IDLE_S)
        server = embedder.ensure()
        embedder.embed_documents(["a", "b"])
        shares: list[float] = []
        # It comes to rest some seconds after its first requests.
        waiting.until(lambda: _rests(home, shares), _REST_S)
        print(f"\nidle, % of a core in {_MEASURED_S:.0f} s, supervisor included: {shares}")
        waiting.until(lambda: Manager(home).status()[0].state == "absent", _IDLE_S + 30.0)
        assert Manager(home).status()[0].detail.startswith("not used for")
        assert server.endpoint.url.startswith("http://127.0.0.1:")


def test_a_stop_under_load_drains_what_was_sent(home: Path, embedder: Embedder) -> None:
    server = embedder.ensure()
    outcome: list[Any] = []
    texts = [f"text {i} " + "and more " * 8 for i in range(50_000)]
    job = threading.Thread(
        target=lambda: outcome.append(_outcome(lambda: embedder.embed_documents(texts)))
    )
    job.start()
    _after_some_requests(server)
    Manager(home).stop()
    job.join(_START_S)
    # The job is told that a person stopped its server; what the server had taken, it answered.
    assert isinstance(outcome[0], ServerStoppedError)
    assert server.folder is not None
    log = (Path(server.folder) / "server.log").read_text()
    assert "Remaining number of requests 0" in log
    assert " 500 " not in log


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


def _rests(home: Path, shares: list[float]) -> bool:
    shares.append(round(100 * _cpu_share(home), 2))
    return shares[-1] < _MOST_IDLE_PERCENT


def _cpu_share(home: Path) -> float:
    def used_s() -> float:
        times = [process.cpu_times() for process in leftovers.find([str(home)])]
        return sum(each.user + each.system for each in times)

    before = used_s()
    threading.Event().wait(_MEASURED_S)
    return (used_s() - before) / _MEASURED_S
