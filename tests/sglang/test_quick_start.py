"""What everybody writes runs unchanged: port 30000, no key, dimensions; then the server is idle."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import openai
import pytest

import leftovers
import waiting
from emberd.manager import Server, idle
from emberd.manager.discovery import DEFAULT_PORT
from emberd.settings import StartOptions
from emberd.verified_manager import Manager
from real.by_hand import POLL_S
from real.engines import START_S, embedder_for
from real.traces import all_gone

_IDLE_S: Final = 15.0
_MEASURED_S: Final = 5.0
_REST_S: Final = 60.0
# Under 2 on an idle machine; a scheduler that polls takes 100. Other work on the machine adds some.
_MOST_IDLE_PERCENT: Final = 20.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a server on the default port; at the end nothing of it may be left."""
    home = tmp_path_factory.mktemp("quick-start")
    with all_gone(home):
        yield home
        Manager(home).stop()


@pytest.fixture(scope="module")
def server(home: Path, tiny: Path) -> Server:
    """A server on the default port without a key, which stops when it is idle."""
    manager = Manager(home)
    spec = embedder_for(tiny, manager).settings.spec
    open_port = StartOptions(port=DEFAULT_PORT, no_auth=True)
    return manager.ensure(spec, start_timeout=START_S, options=open_port, idle_timeout=_IDLE_S)


@pytest.mark.usefixtures("server")
def test_the_common_quick_start_runs_unchanged() -> None:
    client = openai.Client(base_url="http://localhost:30000/v1", api_key="EMPTY")
    reply = client.embeddings.create(model="default", input=["some text"], dimensions=64)
    vector = np.array(reply.data[0].embedding)
    assert vector.shape == (64,)
    assert abs(np.linalg.norm(vector) - 1) < 1e-2


def test_an_idle_server_rests_answers_and_stops_after_its_time(
    home: Path, server: Server, tiny: Path
) -> None:
    embedder = embedder_for(tiny, Manager(home), idle_timeout=_IDLE_S)
    embedder.embed_documents(["a", "b"])
    assert embedder.ensure().start_id == server.start_id
    shares: list[float] = []
    # It comes to rest some seconds after its first requests.
    waiting.until(lambda: _rests(home, server, shares), _REST_S)
    print(f"\nidle, % of a core in {_MEASURED_S:.0f} s, supervisor included: {shares}")
    assert Manager(home).status()[0].state == "ready"
    assert embedder.embed_query("c").shape == (128,)
    waiting.until(
        lambda: Manager(home).status()[0].state == "absent", _IDLE_S + 60.0, poll_s=POLL_S
    )
    assert Manager(home).status()[0].detail.startswith("not used for")


def _rests(home: Path, server: Server, shares: list[float]) -> bool:
    assert server.folder is not None
    idle.touch(server.folder)  # or it would stop while it is measured
    shares.append(round(100 * _cpu_share(home), 2))
    return shares[-1] < _MOST_IDLE_PERCENT


def _cpu_share(home: Path) -> float:
    def used_s() -> float:
        times = [process.cpu_times() for process in leftovers.find([str(home)])]
        return sum(each.user + each.system for each in times)

    before = used_s()
    threading.Event().wait(_MEASURED_S)
    return (used_s() - before) / _MEASURED_S
