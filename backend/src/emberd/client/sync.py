"""The client for threads."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

from emberd.client import verify
from emberd.client.batches import Batch
from emberd.client.crew import Crew
from emberd.client.gate import ThreadGate
from emberd.client.job import Job, Work
from emberd.client.learnt import Learnt
from emberd.client.line import Line, Window, windows
from emberd.client.merging import Kind
from emberd.client.merging_threads import ThreadMerger
from emberd.client.protocol import Ask, Gone, Outcome, Reply, Trouble
from emberd.client.replies import Answer
from emberd.client.retry import Pause, RetryPolicy, exchange
from emberd.client.rows import Embedded
from emberd.client.slots import PROCESS_SLOTS, AbandonedError, Lease
from emberd.client.transport import Transport
from emberd.client.vectors import Floats, KnownVectors
from emberd.endpoint import Endpoint
from emberd.settings import ServerSpec, Settings


class Client:
    """Embeds texts through an endpoint, from any number of threads.

    Args:
        resolve: Returns where to send; asked once a call.
        settings: The caller's.
        heal: Takes an endpoint that went away and returns one to go on with, or raises; None
            when nothing can be brought back.
        restarts: Whether ``heal`` brings a server back. Otherwise it only verifies what listens
            at the address now, and is called when that is not what was verified before.
        on_use: Called with the endpoint after each answer; from threads of the client too.
        on_timeout: Called likewise when there was no answer in time.
        sdk_client: The user's own ``openai.OpenAI``, used in place of one of ours. Its sockets
            are the user's to look after, across a fork as well.
        policy: When a request is sent again; by default a short one where ``heal`` is given.
        memory: Asked for vectors before a server is.
    """

    def __init__(
        self,
        resolve: Callable[[], Endpoint],
        settings: Settings,
        *,
        heal: Callable[[Endpoint], Endpoint] | None = None,
        restarts: bool = True,
        on_use: Callable[[Endpoint], None] | None = None,
        on_timeout: Callable[[Endpoint], None] | None = None,
        sdk_client: Any = None,
        policy: RetryPolicy | None = None,
        memory: KnownVectors | None = None,
    ) -> None:
        self._resolve = resolve
        self._settings = settings
        self._heal = heal
        self._restarts = restarts and heal is not None
        self._on_use = on_use
        self._on_timeout = on_timeout
        self._memory = memory
        self._policy = policy or RetryPolicy.usual(settings.timeout, can_heal=self._restarts)
        self._learnt = Learnt()
        self._merger = ThreadMerger(can_heal=self._restarts)
        self._gate = ThreadGate()
        self._transport = Transport(settings.max_concurrency, settings.timeout, sdk_client)

    def using(self, settings: Settings) -> Client:
        """Return a client with other settings that shares the connections of this one."""
        twin = copy.copy(self)
        twin._settings = settings
        return twin

    def embed(
        self,
        texts: Iterable[str],
        template: str,
        on_done: Callable[[int], None] | None = None,
    ) -> Floats:
        """Return the vectors of ``texts``, ``(n, dimensions)``, float32, each of norm one.

        Args:
            texts: Any number of texts.
            template: Holds ``{text}``; each text is put into it.
            on_done: Called in this thread with how many texts have their vector so far.

        Raises:
            TextError: A text cannot be embedded; it is named.
            RequestError: The server refused, failed, or answered with something else than asked.
        """
        (embedded,) = self._run(iter([Window(texts, 0)]), template, on_done)
        return embedded.matrix

    def stream(
        self, texts: Iterable[str], template: str, *, set_aside: bool = False
    ) -> Generator[Embedded]:
        """Yield the vectors of ``texts`` in windows, and hold no more than a few of them.

        Args:
            texts: Any number of texts, taken as they are needed.
            template: Holds ``{text}``; each text is put into it.
            set_aside: A text that cannot be embedded gets its error instead of a vector.

        Raises:
            TextError: A text cannot be embedded; it is named.
            RequestError: As for ``embed``.
        """
        return self._run(windows(texts), template, set_aside=set_aside)

    def inspect(self, endpoint: Endpoint, spec: ServerSpec) -> Endpoint:
        """Return what answers at ``endpoint``, asked through this client's own connections.

        Raises:
            ServerMismatchError: It does not serve ``spec``.
            RequestError: It does not answer, or wants another key.
        """
        session = self._transport.session(endpoint)
        examination = verify.examination(
            endpoint.url, endpoint.api_key, spec, self._settings.timeout
        )
        answer: Reply | Trouble | None = None
        while True:
            try:
                ask = examination.send(answer)
            except StopIteration as stop:
                found: Endpoint = stop.value
                return found
            answer = session.send(ask)

    def close(self) -> None:
        """Close the connections; the next use opens them again."""
        self._transport.close()

    def _run(
        self,
        source: Iterator[Window],
        template: str,
        on_done: Callable[[int], None] | None = None,
        *,
        set_aside: bool = False,
    ) -> Generator[Embedded]:
        line = Line(self._settings.max_concurrency)
        lease = Lease(PROCESS_SLOTS, self._settings.max_concurrency)
        crew: Crew[tuple[Job, Work], Outcome | Answer] = Crew(
            lambda taken: self._perform(*taken, lease, crew)
        )
        try:
            with crew:
                while True:
                    while line.has_room and (window := next(source, None)) is not None:
                        line.append(self._job(window, template, set_aside=set_aside))
                    if (job := line.pop_done()) is not None:
                        if on_done is not None:
                            on_done(job.finished)
                        yield job.result()
                    elif line.is_empty:
                        return
                    else:
                        self._step(line, crew, on_done)
        finally:
            lease.abandon()
            self._gate.abandon(lease)

    def _job(self, window: Window, template: str, *, set_aside: bool) -> Job:
        job = Job(
            window.texts,
            template,
            self._settings,
            can_heal=self._heal is not None,
            learnt=self._learnt,
            memory=self._memory,
            offset=window.offset,
            set_aside=set_aside,
        )
        job.recall()
        if not job.done:
            job.attach(self._resolve())
        return job

    def _step(
        self,
        line: Line,
        crew: Crew[tuple[Job, Work], Outcome | Answer],
        on_done: Callable[[int], None] | None,
    ) -> None:
        for job in line.lost:
            if self._heal is not None:
                job.attach(self._heal(job.endpoint))
        while (taken := line.take()) is not None:
            crew.send(taken)
        (job, work), outcome = crew.receive()
        # Read here and not in the crew's threads: these would only wait for each other's turn to
        # run, and each of them would hold memory of its own for it.
        result = job.read(work, outcome)
        if isinstance(result, Gone) and not (self._restarts or result.changed):
            raise result.error
        job.settle(work, result)
        job.keep(work, result)
        if on_done is not None:
            on_done(job.finished)

    def _perform(
        self, job: Job, work: Work, lease: Lease, crew: Crew[tuple[Job, Work], Outcome | Answer]
    ) -> Outcome | Answer:
        ask = job.ask(work)
        exchange = functools.partial(self._exchange, job.endpoint, lease, crew.stopped)
        if isinstance(work, Batch) and not work.deaths:
            kind = Kind.of(job.endpoint, ask, self._settings.batch_size)
            with self._gate.together(lease):
                return self._merger.send(kind, ask, work.tokens, exchange)
        # The server may have died of it: whoever went with it would be under suspicion too.
        with self._gate.alone(lease) if isinstance(work, Batch) else nullcontext():
            outcome = exchange(lambda: ask)
        if outcome is None:
            raise AbandonedError
        return outcome

    def _exchange(
        self,
        endpoint: Endpoint,
        lease: Lease,
        stopped: threading.Event,
        depart: Callable[[], Ask | None],
        is_unwanted: Callable[[], bool] = lambda: False,
    ) -> Outcome | None:
        session = self._transport.session(endpoint)
        with lease.slot(is_unwanted) as held:
            if not held or (ask := depart()) is None:
                return None
            lease.look_again()  # those whose batches are on their way need no slot
            steps = exchange(ask, self._policy)
            next(steps)
            answer: Reply | Trouble | None = session.send(ask)
        while True:
            if answer is not None:
                self._report(answer, endpoint)
            try:
                step = steps.send(answer)
            except StopIteration as finished:
                outcome: Outcome = finished.value
                return outcome
            if isinstance(step, Pause):
                answer = None
                if stopped.wait(step.seconds):
                    raise AbandonedError
            else:
                with lease.slot():
                    answer = session.send(step)

    def _report(self, answer: Reply | Trouble, endpoint: Endpoint) -> None:
        if isinstance(answer, Reply):
            if self._on_use is not None:
                self._on_use(endpoint)
        elif answer.kind == "timeout" and self._on_timeout is not None:
            self._on_timeout(endpoint)
