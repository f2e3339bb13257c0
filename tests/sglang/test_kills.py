"""A server that is killed again and again, at any moment of its life: loading, warm-up, serving.

``FAULTS_SEED`` chooses the moments and ``KILLS`` their number. With ``-s`` it prints them.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

import leftovers
from emberd.errors import StartError
from emberd.manager import Server
from emberd.system import background
from emberd.verified_manager import Manager
from real.engines import embedder_for
from real.traces import all_gone

_KILLS: Final = int(os.environ.get("KILLS", "30"))
_JOB_KILLS: Final = max(1, _KILLS // 10)
_SEED: Final = int(os.environ.get("FAULTS_SEED", "0"))
_PARTS: Final = ("sglang.launch_server", "sglang::scheduler", "emberd.verified_manager", "all")
_TEXTS: Final = [f"passage {i} of the ingest, number {i * 7919 % 104729}" for i in range(5_000)]
_SAMPLE: Final = _TEXTS[::97]
_AWAITED: Final = " (awaited)"
_MOST_S: Final = 300.0
_START_S: Final = 45.0
"""About how long a start takes here, and some seconds of serving."""


@pytest.mark.full
@pytest.mark.timeout(120 * _KILLS + 600)
def test_vectors_are_correct_and_nothing_is_left_after_kills_at_random_moments(
    tmp_path: Path, tiny: Path
) -> None:
    choose = random.Random(_SEED)
    home = tmp_path / "home"
    moments: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    with all_gone(home):
        embedder = embedder_for(tiny, Manager(home))
        undisturbed = embedder.embed_documents(_SAMPLE)
        for number in range(1, _KILLS + 1):
            start = background.run(embedder.ensure, "start")
            moments[_kill_after(choose.uniform(0.5, _START_S), home, choose, start)] += 1
            outcomes[_outcome(start)] += 1
            if number % 5 == 0:  # not after each: a start that is killed early must be seen too
                assert _least_cosine(embedder.embed_documents(_SAMPLE), undisturbed) > 0.9995
        Manager(home).stop()
    _report(_KILLS, began, moments)
    print(f"calls of ensure: {dict(outcomes)}")


@pytest.mark.full
@pytest.mark.timeout(120 * _JOB_KILLS + 600)
def test_jobs_are_correct_and_nothing_is_left_after_kills_while_they_run(
    tmp_path: Path, tiny: Path
) -> None:
    choose = random.Random(_SEED)
    home = tmp_path / "home"
    moments: Counter[str] = Counter()
    began = time.monotonic()
    with all_gone(home):
        embedder = embedder_for(tiny, Manager(home))
        embedder.ensure()
        job_began = time.monotonic()
        undisturbed = embedder.embed_documents(_TEXTS)
        job_s = time.monotonic() - job_began
        for _ in range(_JOB_KILLS):
            embedder.ensure()
            job = background.run(lambda: embedder.embed_documents(_TEXTS), "job")
            moment = _kill_after(choose.uniform(0.1, 0.6) * job_s, home, choose, job)
            assert moment.endswith(_AWAITED), "the job had ended before the kill"
            moments[moment] += 1
            assert _least_cosine(job.result(_MOST_S), undisturbed) > 0.9995
        Manager(home).stop()
    _report(_JOB_KILLS, began, moments)


def _kill_after(seconds: float, home: Path, choose: random.Random, call: Future[Any]) -> str:
    """Kill a part of the server after so long.

    Returns:
        What the server was doing, and whether ``call`` had not ended yet.
    """
    time.sleep(seconds)
    doing = "; ".join(server.detail or server.state for server in Manager(home).status())
    name = choose.choice(_PARTS)
    there = leftovers.find([str(home)])
    is_awaited = not call.done()
    for process in there:
        with suppress(psutil.Error):
            if name == "all" or any(name in word for word in process.cmdline()):
                process.kill()
    return f"{doing or 'nothing'}{_AWAITED if is_awaited else ''}"


def _report(kills: int, began: float, moments: Counter[str]) -> None:
    minutes = (time.monotonic() - began) / 60
    print(f"\nkills of SGLang: {kills}, seed {_SEED}, {minutes:.1f} minutes; when: {dict(moments)}")


def _outcome(start: Future[Server]) -> str:
    try:
        start.result(_MOST_S)
    except StartError:
        return "StartError"
    return "server"


def _least_cosine(vectors: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    assert vectors.shape == expected.shape
    return float(np.sum(vectors * expected, axis=1).min())
