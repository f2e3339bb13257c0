from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from emberd.client.retry import Retries, RetryPolicy, retry_after_s
from emberd.client.wire import Outcome, Reply, TransportError

OK = Reply(200, b"")


def _run(
    *answers: Reply | TransportError, policy: RetryPolicy, step_s: float = 0
) -> tuple[Outcome, list[float]]:
    """Give the answers in turn, the last one for ever; return the outcome and the pauses."""
    ticks = itertools.count(0, step_s) if step_s else itertools.repeat(0.0)
    retries = Retries(policy, clock=lambda: next(ticks), jitter=lambda: 1.0)
    pauses: list[float] = []
    for answer in itertools.chain(answers, itertools.repeat(answers[-1])):
        step = retries.after(answer)
        if isinstance(step, Outcome):
            return step, pauses
        pauses.append(step)
    raise AssertionError("the answers never end")


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 413, 422])
def test_an_answer_that_would_come_again_is_not_asked_for_again(status: int) -> None:
    outcome, pauses = _run(Reply(status, b""), policy=RetryPolicy())
    assert (outcome.tries, pauses) == (1, [])


@pytest.mark.parametrize(
    "answer",
    [
        Reply(429, b""),
        Reply(502, b""),
        Reply(503, b""),
        Reply(504, b""),
        Reply(500, b""),
        TransportError("refused", ""),
        TransportError("broken", ""),
        TransportError("timeout", ""),
    ],
)
def test_what_may_pass_is_tried_again(answer: Reply | TransportError) -> None:
    outcome, pauses = _run(answer, OK, policy=RetryPolicy())
    assert outcome.answer is OK
    assert len(pauses) == 1


@pytest.mark.parametrize(
    ("answer", "tries"),
    [
        (TransportError("refused", ""), 5),
        (TransportError("broken", ""), 5),
        (TransportError("timeout", ""), 3),
        (Reply(500, b""), 2),
    ],
)
def test_tries_are_bounded_by_kind(answer: Reply | TransportError, tries: int) -> None:
    policy = RetryPolicy(connect_tries=5, timeout_tries=3, failure_tries=2)
    outcome, _ = _run(answer, policy=policy)
    assert (outcome.tries, outcome.answer) == (tries, answer)


def test_pauses_double_up_to_the_longest() -> None:
    policy = RetryPolicy(connect_tries=7, first_s=0.25, longest_s=3)
    _, pauses = _run(TransportError("refused", ""), policy=policy)
    assert pauses == [0.25, 0.5, 1, 2, 3, 3]


def test_jitter_takes_any_part_of_the_pause() -> None:
    policy = RetryPolicy(first_s=8)
    assert policy.pause(TransportError("refused", ""), 1, 0, jitter=0.0) == 0
    assert policy.pause(TransportError("refused", ""), 1, 0, jitter=0.5) == 4


def test_a_busy_server_is_asked_until_the_deadline() -> None:
    """One tick of the clock an answer: so many tries as there are seconds."""
    policy = RetryPolicy(busy_s=20, first_s=1, longest_s=1)
    outcome, _ = _run(Reply(503, b""), policy=policy, step_s=1)
    assert outcome.tries == 20


def test_a_very_long_wait_does_not_overflow() -> None:
    assert RetryPolicy(busy_s=1e9).pause(Reply(503, b""), 5000, 0, jitter=1) == 8


def test_retry_after_is_honoured_and_bounded() -> None:
    policy = RetryPolicy(longest_retry_after_s=30, busy_s=120)
    assert policy.pause(Reply(429, b"", "12"), 1, 0, jitter=0) == 12
    assert policy.pause(Reply(429, b"", "86400"), 1, 0, jitter=0) == 30
    assert policy.pause(Reply(429, b"", "30"), 1, 100, jitter=0) is None


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    assert 15 < retry_after_s(later) <= 20


@pytest.mark.parametrize("header", [None, "", "soon", "-5", "nan", "Mon, 99 Foo"])
def test_an_odd_retry_after_asks_for_nothing(header: str | None) -> None:
    assert retry_after_s(header) == 0


def test_each_kind_of_failure_has_tries_of_its_own() -> None:
    busy: list[Reply | TransportError] = [Reply(503, b"")] * 7
    others = (TransportError("broken", ""), TransportError("timeout", ""), Reply(500, b""))
    outcome, _ = _run(*busy, *others, OK, policy=RetryPolicy(connect_tries=2, timeout_tries=2))
    assert (outcome.answer, outcome.tries) == (OK, 11)


def test_a_break_in_the_middle_is_remembered_through_later_refusals() -> None:
    outcome, _ = _run(
        TransportError("broken", ""), TransportError("refused", ""), policy=RetryPolicy()
    )
    assert outcome.reached
    refused, _ = _run(TransportError("refused", ""), policy=RetryPolicy())
    assert not refused.reached


def test_where_a_server_can_be_brought_back_a_dead_address_is_given_up_soon() -> None:
    patient = RetryPolicy.usual(60, can_reconnect=False)
    quick = RetryPolicy.usual(60, can_reconnect=True)
    assert (quick.connect_tries, patient.connect_tries) == (2, 5)
    assert quick.busy_s == patient.busy_s == 60
