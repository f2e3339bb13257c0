"""What a caller gets at the end of a start that it has joined."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberd.errors import StartError
from emberd.manager.manager import PendingStart, _outcome
from emberd.manager.state import Record, ServerSnapshot, State, Timing
from emberd.settings import ServerSpec
from emberd.system.log_rules import Diagnosis

SPEC = ServerSpec(model="test/model")
JOINED = PendingStart(Path("folder"), "start_id", started=False)


def _failed(*, was_ready: bool) -> ServerSnapshot:
    record = Record(
        State.FAILED,
        "start_id",
        SPEC,
        Timing(),
        since_s=0.0,
        failure=Diagnosis("It was killed."),
        was_ready=was_ready,
    )
    return ServerSnapshot(Path("folder"), record, alive=False)


def test_a_start_that_failed_is_every_waiters_error() -> None:
    with pytest.raises(StartError, match="It was killed"):
        _outcome(_failed(was_ready=False), JOINED, SPEC)


def test_a_server_that_was_ready_and_died_before_a_waiter_looked_is_asked_for_anew() -> None:
    assert _outcome(_failed(was_ready=True), JOINED, SPEC) is None
