"""A server that goes away in the middle of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from embedding import KINDS, Kind, embed
from emberd.client.event_loops import finish
from emberd.client.job import MAX_RECOVERIES_WITHOUT_PROGRESS, Job
from emberd.client.wire import Embeddings, Outcome, TransportError
from emberd.endpoint import Endpoint
from emberd.errors import (
    PoisonTextError,
    ServerMismatchError,
    ServerStoppedError,
    ServerUnavailableError,
)
from emberd.probe import TEI
from emberd.settings import Settings
from fake_server import MODEL, QWEN, FakeServer, vectors_of

both = pytest.mark.parametrize("kind", KINDS)
TEXTS = [f"text {number}" for number in range(120)]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def _die_after(server: FakeServer, finished: int) -> Callable[[int], None]:
    def on_done(count: int) -> None:
        if count >= finished and server.deaths == 0:
            server.deaths += 1
            server.die()

    return on_done


@both
def test_a_job_survives_the_servers_death_and_repeats_only_what_had_no_answer(
    kind: Kind, server: FakeServer
) -> None:
    lost: list[Endpoint] = []
    first = server.endpoint

    def reconnect(endpoint: Endpoint) -> Endpoint:
        lost.append(endpoint)
        return server.revive()

    vectors = embed(
        kind,
        first,
        TEXTS,
        reconnect=reconnect,
        on_done=_die_after(server, 40),
        batch_size=4,
        max_concurrency=4,
    )
    assert (vectors == vectors_of(TEXTS)).all()
    assert lost == [first]
    repeated = sum(map(len, server.embedded)) - len(TEXTS)
    assert 0 <= repeated <= 4 * 4


@both
def test_the_text_that_kills_the_server_is_named(kind: Kind, server: FakeServer) -> None:
    server.deadly = "POISON"
    texts = [*TEXTS[:77], "this is the POISON", *TEXTS[77:]]
    with pytest.raises(PoisonTextError, match=r"text 77 \('this is the POISON'\)") as caught:
        embed(
            kind,
            server.endpoint,
            texts,
            reconnect=lambda _: server.revive(),
            batch_size=16,
            max_concurrency=4,
        )
    assert caught.value.index == 77
    assert "Omit this text" in str(caught.value)
    assert server.deaths <= 2 + 4 + 1, "two to be suspected, one a halving of 16 texts"


@both
def test_one_text_alone_is_named_after_its_second_death(kind: Kind, server: FakeServer) -> None:
    server.deadly = "POISON"
    with pytest.raises(PoisonTextError):
        embed(kind, server.endpoint, ["POISON"], reconnect=lambda _: server.revive())
    assert server.deaths == 2


@both
def test_a_server_that_cannot_stay_up_ends_the_job(kind: Kind, server: FakeServer) -> None:
    reconnects: list[Endpoint] = []

    def reconnect(endpoint: Endpoint) -> Endpoint:
        reconnects.append(endpoint)
        return endpoint

    server.die()
    with pytest.raises(ServerUnavailableError, match="lost 4 times in a row"):
        embed(kind, server.endpoint, TEXTS, reconnect=reconnect)
    assert len(reconnects) == MAX_RECOVERIES_WITHOUT_PROGRESS


@both
def test_what_reconnecting_raises_ends_the_job(kind: Kind, server: FakeServer) -> None:
    def reconnect(_: Endpoint) -> Endpoint:
        raise ServerStoppedError("stopped by hand")

    server.die()
    with pytest.raises(ServerStoppedError):
        embed(kind, server.endpoint, TEXTS, reconnect=reconnect)


@both
def test_a_successor_with_other_dimensions_is_refused(kind: Kind, server: FakeServer) -> None:
    server.die()

    def reconnect(_: Endpoint) -> Endpoint:
        server.dimensions = 8
        return server.revive()

    with pytest.raises(ServerMismatchError, match="8 dimensions, but the one before it gave 16"):
        embed(kind, server.endpoint, TEXTS, reconnect=reconnect)


@both
def test_without_reconnect_a_crash_is_an_error(kind: Kind, server: FakeServer) -> None:
    with pytest.raises(ServerUnavailableError, match="No response"):
        embed(kind, server.endpoint, TEXTS, on_done=_die_after(server, 40), batch_size=4)


@both
def test_a_crash_while_texts_are_counted_is_recovered(kind: Kind, server: FakeServer) -> None:
    texts = ["y" * 998, *TEXTS]
    server.die()
    vectors = embed(kind, server.endpoint, texts, reconnect=lambda _: server.revive())
    assert (vectors == vectors_of(texts)).all()


# ---- who is suspected: the job alone, without a network

ENDPOINT = Endpoint("http://127.0.0.1:9", MODEL, 16)
CRASHED = Outcome(TransportError("broken", "gone"), 1, 0.0, reached=True)
GONE = Outcome(TransportError("refused", "gone"), 1, 0.0)


def _job(count: int, **settings: int) -> Job:
    job = Job(
        TEXTS[:count], "{text}", Settings.resolve(model=MODEL, **settings), can_reconnect=True
    )
    finish(job.prepare())
    finish(job.attach(ENDPOINT))
    return job


def _take_all(job: Job) -> list[Any]:
    taken = []
    while (work := job.take()) is not None:
        taken.append(work)
    return taken


def test_nothing_is_sent_while_the_server_is_gone() -> None:
    job = _job(40, batch_size=4, max_concurrency=4)
    works = _take_all(job)
    finish(job.settle(works[0], CRASHED))
    assert job.take() is None
    assert not job.lost, "three requests are still in flight"
    for work in works[1:]:
        finish(job.settle(work, CRASHED))
    assert job.lost
    finish(job.attach(ENDPOINT))
    assert not job.lost
    assert len(_take_all(job)) == 4


def test_suspects_go_alone_and_innocent_batches_wait() -> None:
    job = _job(40, batch_size=4, max_concurrency=4)
    for _ in range(2):
        for work in _take_all(job):
            finish(job.settle(work, CRASHED))
        finish(job.attach(ENDPOINT))
    (alone,) = _take_all(job)
    assert len(alone.indices) == 2
    assert alone.exclusive


def test_the_last_suspect_too_is_alone() -> None:
    job = _job(8, batch_size=2, max_concurrency=2)
    for _ in range(2):
        for work in _take_all(job):
            finish(job.settle(work, CRASHED))
        finish(job.attach(ENDPOINT))
    sizes = []
    while not job.done:
        works = _take_all(job)
        sizes.append([len(work.indices) for work in works])
        for work in works:
            vectors = vectors_of(TEXTS[index] for index in work.indices)
            finish(job.settle(work, Embeddings([row.tobytes() for row in vectors], MODEL)))
    assert sizes == [[1], [1], [1], [1], [2, 2]]
    assert (finish(job.result()).matrix == vectors_of(TEXTS[:8])).all()


def test_a_batch_that_the_server_never_saw_is_no_suspect() -> None:
    job = _job(8, batch_size=4, max_concurrency=4)
    for _ in range(3):
        for work in _take_all(job):
            finish(job.settle(work, GONE))
        finish(job.attach(ENDPOINT))
    works = _take_all(job)
    assert [work.crash_count for work in works] == [0, 0]


@pytest.mark.parametrize("crashes", [1, 2])
def test_a_job_that_moves_to_a_server_with_other_limits_goes_on(crashes: int) -> None:
    """The other one takes no token ids, but the text that was sent as some has its vector."""
    texts = ["", *TEXTS]
    job = Job(texts, "{text}", Settings.resolve(model=QWEN), can_reconnect=True)
    finish(job.prepare())
    finish(job.attach(ENDPOINT))

    def settle(work: Any) -> None:
        vectors = vectors_of(texts[index] for index in work.indices)
        finish(job.settle(work, Embeddings([row.tobytes() for row in vectors], MODEL)))

    works = _take_all(job)
    settle(works.pop([work.indices for work in works].index((0,))))
    for crash in range(crashes):
        for work in works:
            finish(job.settle(work, CRASHED))
        is_last = crash == crashes - 1
        finish(job.attach(replace(ENDPOINT, server=TEI, most_texts=8) if is_last else ENDPOINT))
        works = _take_all(job)
    sizes = set()
    while works:
        sizes |= {len(work.indices) for work in works}
        for work in works:
            settle(work)
        works = _take_all(job)
    assert max(sizes) == 8
    assert job.done
    assert abs(finish(job.result()).matrix - vectors_of(texts)).max() < 1e-6


def test_attach_must_come_first() -> None:
    job = Job(["a"], "{text}", Settings.resolve(model=MODEL), can_reconnect=False)
    with pytest.raises(RuntimeError):
        _ = job.endpoint
