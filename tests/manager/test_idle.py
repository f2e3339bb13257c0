"""When a server counts as unused."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import pytest

from emberd.manager import idle, state
from emberd.probe import Activity


class Clock:
    """A clock that a test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def watched(folder: Path) -> tuple[idle.IdleMonitor, Clock]:
    idle.reset(folder, 60)
    clock = Clock()
    return idle.IdleMonitor(folder, clock), clock


def test_counters_that_stand_still_are_no_use(tmp_path: Path) -> None:
    idleness, clock = watched(tmp_path)
    idleness.observe(Activity(5, 50, 0))
    clock.now += 30
    idleness.observe(Activity(5, 50, 0))
    assert idleness.seconds() == 30


def test_a_request_that_only_the_server_has_seen_is_use(tmp_path: Path) -> None:
    idleness, clock = watched(tmp_path)
    idleness.observe(Activity(5, 50, 0))
    clock.now += 30
    idleness.observe(Activity(6, 60, 0))
    assert idleness.seconds() == 0


def test_one_long_request_in_flight_is_use_for_as_long_as_it_lasts(tmp_path: Path) -> None:
    idleness, clock = watched(tmp_path)
    for _ in range(10):
        clock.now += 1000
        idleness.observe(Activity(5, 50, 1))
        assert idleness.seconds() == 0


def test_a_touch_by_a_client_is_use(tmp_path: Path) -> None:
    idleness, clock = watched(tmp_path)
    clock.now += 30
    os.utime(tmp_path / "last-used", ns=(1, 1))
    idleness.observe(None)
    assert idleness.seconds() == 0


def test_the_time_since_the_last_use_is_that_of_the_monitor(tmp_path: Path) -> None:
    idleness, clock = watched(tmp_path)
    os.utime(tmp_path / "last-used", ns=(1, 1))
    idleness.observe(Activity(5, 50, 0))
    unused_s = idle.unused_s(tmp_path)
    assert unused_s is not None
    assert unused_s < 60  # the touch was noticed now, and counts from now on
    os.utime(tmp_path / "last-used", (0, time.time() - 500))
    idleness._touched_ns = (tmp_path / "last-used").stat().st_mtime_ns
    clock.now += 30
    idleness.observe(Activity(5, 50, 0))
    assert idleness.seconds() == 30
    assert (idle.unused_s(tmp_path) or 0) >= 500  # nothing used it
    idleness.observe(Activity(6, 60, 0))
    assert (idle.unused_s(tmp_path) or math.inf) < 60  # another client did


def test_a_lost_file_has_no_time_of_the_last_use(tmp_path: Path) -> None:
    idleness, _ = watched(tmp_path)
    (tmp_path / "last-used").unlink()
    idleness.observe(Activity(5, 50, 1))
    assert idle.unused_s(tmp_path) is None


def test_a_server_too_busy_to_show_its_counters_is_not_idle(tmp_path: Path) -> None:
    idleness, clock = watched(tmp_path)
    idleness.observe(Activity(5, 50, 0))
    clock.now += 30
    idleness.observe(None)
    assert idleness.seconds() == 0


def test_a_server_that_never_showed_counters_is_judged_by_its_clients(tmp_path: Path) -> None:
    idleness, clock = watched(tmp_path)
    clock.now += 30
    idleness.observe(None)
    assert idleness.seconds() == 30


def test_the_longest_idle_time_that_anybody_asked_for_counts(tmp_path: Path) -> None:
    idle.reset(tmp_path, 60)
    idle.request(tmp_path, 20)
    assert idle.requested_s(tmp_path) == 60
    idle.request(tmp_path, 600)
    assert idle.requested_s(tmp_path) == 600


def test_never_wins_over_any_time(tmp_path: Path) -> None:
    idle.reset(tmp_path, 60)
    idle.request(tmp_path, math.inf)
    idle.request(tmp_path, 90)
    assert idle.requested_s(tmp_path) == math.inf


@pytest.mark.parametrize("content", [None, "", "what\n"])
def test_a_file_that_is_gone_or_garbled_does_not_end_a_server_early(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "last-used").write_text(content)
    assert idle.requested_s(tmp_path) == 1800


def test_asking_for_less_writes_nothing(tmp_path: Path) -> None:
    idle.reset(tmp_path, 60)
    before = (tmp_path / "last-used").read_text()
    idle.request(tmp_path, 60)
    assert (tmp_path / "last-used").read_text() == before


def test_touches_come_at_most_once_a_second(tmp_path: Path) -> None:
    idle.reset(tmp_path, 60)
    idle.touch(str(tmp_path))
    os.utime(tmp_path / "last-used", ns=(1, 1))
    idle.touch(str(tmp_path))
    assert (tmp_path / "last-used").stat().st_mtime_ns == 1


@pytest.mark.parametrize(
    ("idle_timeout_s", "seconds", "most"),
    [(1800, 1800, 30), (math.inf, 1800, 30), (60, 60, 10), (1, 1, 10)],
)
def test_an_idle_server_is_asked_for_its_counters_seldom(
    tmp_path: Path, idle_timeout_s: float, seconds: float, most: int
) -> None:
    idleness, clock = watched(tmp_path)
    begin_s, readings = clock.now, 0
    while clock.now - begin_s < seconds:
        clock.now += min(state.Timing().tick_s, seconds / 100)
        if idleness.is_reading_due(idle_timeout_s, state.Timing().look_s):
            readings += 1
            idleness.observe(Activity(5, 50, 0))
    assert most / 2 <= readings <= most + 1


def test_the_counters_are_read_at_once_so_that_only_later_requests_are_use(tmp_path: Path) -> None:
    idleness, clock = watched(tmp_path)
    assert idleness.is_reading_due(1800, 60)
    idleness.observe(Activity(5, 50, 0))
    assert not idleness.is_reading_due(1800, 60)
    clock.now += 60
    idleness.observe(Activity(5, 50, 0))
    assert idleness.seconds() == 60


def test_use_of_which_only_the_server_knows_delays_its_end_by_a_tenth_at_most(
    tmp_path: Path,
) -> None:
    idleness, clock = watched(tmp_path)
    requests, used_at_s = 0, 0.0
    while idleness.seconds() < 60 or requests < 5:
        clock.now += 0.5
        if requests < 5 and clock.now - used_at_s > 7:
            requests, used_at_s = requests + 1, clock.now
        if idleness.is_reading_due(60, state.Timing().look_s):
            idleness.observe(Activity(requests, 10 * requests, 0))
    assert 60 <= clock.now - used_at_s <= 66.5


def test_the_time_that_is_left_is_not_known_without_the_last_use() -> None:
    assert idle.left_s(10.0, 4.0) == 6.0
    assert idle.left_s(10.0, 12.0) == 0.0
    assert idle.left_s(10.0, None) is None
    assert idle.left_s(None, 4.0) is None
