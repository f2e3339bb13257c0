"""When a running server counts as hung."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import waiting
from emberd.errors import EmberdError
from emberd.manager import health
from emberd.manager.health import HangMonitor
from emberd.probe import Activity
from emberd.system import background

STILL = Activity(1, 1, 0)


def failing(probes: list[int]) -> Callable[[], bool]:
    """A probe that counts and fails."""

    def probe() -> bool:
        probes.append(1)
        return False

    return probe


def test_server_that_was_not_reported_is_not_probed(tmp_path: Path) -> None:
    probes: list[int] = []
    watch = HangMonitor(tmp_path, failing(probes), 1, 0)
    assert not any(watch.is_hung(STILL) for _ in range(5))
    assert probes == []


def test_server_that_fails_every_probe_without_progress_is_hung(tmp_path: Path) -> None:
    probes: list[int] = []
    watch = HangMonitor(tmp_path, failing(probes), 3, 0)
    health.report_unresponsive(str(tmp_path))
    waiting.until(lambda: watch.is_hung(STILL))
    assert len(probes) == 3


def test_server_is_probed_later_if_no_thread_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise EmberdError("no thread can be started")

    probes: list[int] = []
    watch = HangMonitor(tmp_path, failing(probes), 1, 0)
    health.report_unresponsive(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(background, "run", refuse)
        assert not any(watch.is_hung(STILL) for _ in range(3))
    assert probes == []
    waiting.until(lambda: watch.is_hung(STILL))


def test_report_is_cleared_when_the_server_answers(tmp_path: Path) -> None:
    watch = HangMonitor(tmp_path, lambda: True, 1, 0)
    health.report_unresponsive(str(tmp_path))
    waiting.until(lambda: not watch.is_hung(STILL) and not (tmp_path / "suspect").exists())


def test_server_whose_counters_move_is_not_hung(tmp_path: Path) -> None:
    watch = HangMonitor(tmp_path, lambda: False, 1, 0)
    health.report_unresponsive(str(tmp_path))
    moving = (Activity(number, 0, 1) for number in range(10_000))
    waiting.until(lambda: not watch.is_hung(next(moving)) and not (tmp_path / "suspect").exists())


def test_server_that_refuses_at_once_gets_the_same_time(tmp_path: Path) -> None:
    watch = HangMonitor(tmp_path, lambda: False, 1, 3600)
    health.report_unresponsive(str(tmp_path))
    assert not any(watch.is_hung(STILL) for _ in range(100))
