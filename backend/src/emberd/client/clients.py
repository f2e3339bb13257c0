"""The clients for threads and for tasks. What to send next is decided by their ``job``."""

from __future__ import annotations

import asyncio
import copy
import functools
import time
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import replace
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

from emberd.client import verify
from emberd.client.batches import Batch, TextWindow, awindows, windows
from emberd.client.coalesce import MergeKey, TaskMerger, ThreadMerger
from emberd.client.event_loops import LoopLocal, Steps, finish, in_slices, in_thread
from emberd.client.inputs import check_texts
from emberd.client.job import MOST_OPEN, Embedded, Job, Work
from emberd.client.lengths import EndpointFacts
from emberd.client.limits import LOOP_LIMITERS, PROCESS_LIMITER, CallSlots, Slot
from emberd.client.observed import Observation
from emberd.client.retry import Retries, RetryPolicy
from emberd.client.transport import AsyncTransport, Transport
from emberd.client.vectors import Floats, KnownVectors
from emberd.client.wire import Embeddings, Outcome, Reply, Request, TransportError
from emberd.counters import CANCELLED, COUNTERS, LOST
from emberd.endpoint import Endpoint
from emberd.errors import EmberdError
from emberd.prompts import Template
from emberd.settings import ServerSpec, Settings
from emberd.system import background
from emberd.system.bounded_http import bounded

R = TypeVar("R", Endpoint, Awaitable[Endpoint])
OnDone = Callable[[int], None]
"""Called with how many texts have their vector so far."""

_Done = tuple[Job, Work, Outcome | Embeddings]


def _ignore(endpoint: Endpoint) -> None:
    """Do nothing."""


def _fail(seen: Iterable[Observation], error: BaseException) -> None:
    """End the observation of open windows."""
    for each in seen:
        each.fail(error)


class _OpenJobs(deque[Job]):
    """The open jobs of one call, in the order of their texts."""

    @property
    def in_flight(self) -> int:
        """How many pieces of work, over all jobs, were taken and are not finished."""
        return sum([job.in_flight for job in self])

    def take(self) -> tuple[Job, Work] | None:
        """Return what to send now; None while nothing may be sent."""
        in_flight = self.in_flight
        if not self or in_flight >= min([job.most_in_flight for job in self]):
            return None
        jobs: Iterable[Job] = self
        for job in self:
            if job.is_bisecting:
                # A suspect batch is in flight by itself, in all jobs of the call.
                jobs = () if in_flight > job.in_flight else (job,)
                break
        for job in jobs:
            if (work := job.take()) is not None:
                return job, work
        return None


class _ClientBase(Generic[R]):
    """What both clients have in common.

    Args:
        resolve: Returns where to send; called once a call.
        settings: The caller's.
        reconnect: Takes an endpoint that was lost and returns one to continue with, or raises;
            None if a lost server cannot be replaced.
        restarts: Whether ``reconnect`` brings a server back. Otherwise it only verifies what
            listens at the address now, and is called if that is not what was verified before.
        on_use: Called with the endpoint after each reply; from threads of the client too.
        on_timeout: Called likewise when there was no answer in time.
        sdk_client: The user's own ``openai.OpenAI`` or ``AsyncOpenAI``, used instead of one of
            ours. Its sockets are the user's responsibility, across a fork too.
        policy: When a request is sent again; by default fewer tries if a lost server is replaced.
        cache: Asked for vectors before a server is.
    """

    def __init__(
        self,
        resolve: Callable[[], R],
        settings: Settings,
        *,
        reconnect: Callable[[Endpoint], R] | None = None,
        restarts: bool = True,
        on_use: Callable[[Endpoint], None] = _ignore,
        on_timeout: Callable[[Endpoint], None] = _ignore,
        sdk_client: Any = None,
        policy: RetryPolicy | None = None,
        cache: KnownVectors | None = None,
    ) -> None:
        self._resolve: Callable[[], R] = resolve
        self._settings = settings
        self._reconnect: Callable[[Endpoint], R] | None = reconnect
        self._restarts = restarts and reconnect is not None
        self._on_use = on_use
        self._on_timeout = on_timeout
        self._cache = cache
        self._policy = policy or RetryPolicy.usual(settings.timeout, can_reconnect=self._restarts)
        self._facts = EndpointFacts()
        self._labels = (settings.model, settings.task)
        self._on_send = functools.partial(COUNTERS.batches, self._labels)
        # Not earlier: an object that is never used would add series for good.
        COUNTERS.begin(*self._labels, caches=settings.cache is not None)
        self._set_up(sdk_client)

    def _set_up(self, sdk_client: Any) -> None:
        """Make what ``using`` shares between clients; no connection is opened."""
        raise NotImplementedError

    def _verification(self, endpoint: Endpoint, spec: ServerSpec) -> verify.Verification:
        settings = self._settings
        return verify.steps(endpoint.url, endpoint.api_key, spec, settings.batch_size)

    def using(self, settings: Settings) -> Self:
        """Return a client with other settings that shares the connections of this one."""
        twin = copy.copy(self)
        twin._settings = settings
        return twin

    def _jobs(
        self, template: Template, on_done: OnDone | None = None, *, set_aside: bool = False
    ) -> Callable[[TextWindow], Steps[Job]]:
        """Return what makes the prepared job of a window."""
        total = 0  # of all windows

        def begin(window: TextWindow) -> Steps[Job]:
            before = 0  # of this window

            def report(count: int) -> None:
                nonlocal total, before
                total, before = total + count - before, count
                if on_done is not None:
                    on_done(total)

            job = Job(
                window.texts,
                template,
                self._settings,
                can_reconnect=self._reconnect is not None,
                restarts=self._restarts,
                facts=self._facts,
                cache=self._cache,
                offset=window.offset,
                on_done=report,
                set_aside=set_aside,
            )
            yield from job.prepare()
            return job

        return begin

    def _retries(self, request: Request) -> Retries:
        policy = self._policy
        if request.is_long_text:
            # It takes as long the next time, and the server may still work on the first try.
            policy = replace(policy, timeout_tries=1)
        return Retries(policy)

    def _after(
        self, retries: Retries, endpoint: Endpoint, answer: Reply | TransportError
    ) -> float | Outcome:
        """Report an answer; return how long to wait before the next try, or the outcome."""
        if isinstance(answer, Reply):
            self._on_use(endpoint)
        elif answer.kind == "timeout":
            self._on_timeout(endpoint)
        step = retries.after(answer)
        outcome = str(answer.status) if isinstance(answer, Reply) else answer.kind
        COUNTERS.request(self._labels, outcome, is_retried=not isinstance(step, Outcome))
        return step

    def _unanswered(self, error: BaseException) -> None:
        """Count a request whose answer was not awaited, or cannot be used."""
        outcome = "invalid" if isinstance(error, EmberdError) else CANCELLED
        COUNTERS.request(self._labels, outcome, is_retried=False)

    def _windows(self) -> Observation:
        """Begin to observe a window of a stream."""
        return Observation(self._settings, is_whole=False)


# ---------------------------------------------------------------- threads


class Client(_ClientBase[Endpoint]):
    """Embeds texts through an endpoint, from any number of threads.

    Requests in flight are bounded over all clients of the process.
    """

    def _set_up(self, sdk_client: Any) -> None:
        settings = self._settings
        self._merger = ThreadMerger(can_reconnect=self._restarts, on_send=self._on_send)
        self._transport = Transport(settings.max_concurrency, settings.timeout, sdk_client)

    def embed(
        self, texts: Iterable[str], template: Template, on_done: OnDone | None = None
    ) -> Floats:
        """Return the vectors of ``texts``, ``(n, dimensions)``, float32, each of norm one.

        Args:
            texts: Any number of texts.
            template: The template, with ``{text}`` in it.
            on_done: Called in this thread with how many texts have their vector so far.

        Raises:
            TextError: A text cannot be embedded; it has the index.
            RequestError: The server refused, failed, or gave a wrong answer.
        """
        seen = Observation(self._settings, is_whole=True)
        source, job_of = iter([TextWindow(texts, 0)]), self._jobs(template, on_done)
        with seen.as_current():
            (embedded,) = self._run(source, job_of, lambda: seen)
        return embedded.matrix

    def stream(
        self,
        texts: Iterable[str],
        template: Template,
        *,
        set_aside: bool = False,
        on_done: OnDone | None = None,
    ) -> Generator[Embedded]:
        """Yield the vectors of ``texts`` in windows, a few of which are in memory at a time.

        Args:
            texts: Any number of texts, taken as they are needed.
            template: The template, with ``{text}`` in it.
            set_aside: A text that cannot be embedded gets its error instead of a vector.
            on_done: Called as by ``embed``; the windows of these texts may not be yielded yet.

        Raises:
            TextError: A text cannot be embedded; it has the index.
            RequestError: As for ``embed``.
        """
        check_texts(texts)
        job_of = self._jobs(template, on_done, set_aside=set_aside)
        return self._run(windows(texts), job_of, self._windows)

    def inspect(self, endpoint: Endpoint, spec: ServerSpec) -> Endpoint:
        """Verify the server at ``endpoint`` through this client's own connections.

        Raises:
            ServerMismatchError: It does not serve ``spec``.
            RequestError: It does not answer, or requires another key.
        """
        steps = self._verification(endpoint, spec)
        with bounded(self._settings.timeout):
            return verify.drive(steps, self._transport.session(endpoint).send)

    def close(self) -> None:
        """Close the connections; the next use opens them again."""
        self._transport.close()

    def _run(
        self,
        source: Iterator[TextWindow],
        job_of: Callable[[TextWindow], Steps[Job]],
        observe: Callable[[], Observation],
    ) -> Generator[Embedded]:
        jobs = _OpenJobs()
        seen: deque[Observation] = deque()
        slots = CallSlots(PROCESS_LIMITER, self._settings.max_concurrency, group=self._merger)
        finished: SimpleQueue[Future[_Done]] = SimpleQueue()
        try:
            while True:
                while len(jobs) < MOST_OPEN and (window := next(source, None)) is not None:
                    seen.append(observe())
                    job = finish(job_of(window))
                    if self._cache is not None:
                        job.read_cache()
                    if not job.done:
                        finish(job.attach(self._resolve()))
                    jobs.append(job)
                if jobs and jobs[0].done:
                    job = jobs.popleft()
                    embedded = finish(job.result())
                    seen.popleft().end(job, embedded)
                    yield embedded
                elif not jobs:
                    return
                else:
                    self._step(jobs, slots, finished)
        except BaseException as error:
            _fail(seen, error)
            raise
        finally:
            slots.abandon()

    def _step(
        self, jobs: _OpenJobs, slots: CallSlots, finished: SimpleQueue[Future[_Done]]
    ) -> None:
        """Send what may be sent, and wait for one result."""
        for job in jobs:
            if job.lost and self._reconnect is not None:
                COUNTERS.count(LOST, *self._labels)
                finish(job.attach(self._reconnect(job.endpoint)))
        taken = list(iter(jobs.take, None))
        if taken and jobs.in_flight == 1:
            job, work, outcome = self._perform(*taken[0], slots)
        else:
            # In daemon threads: a request that an error or Ctrl-C leaves behind delays neither the
            # caller nor the end of the process.
            for job, work in taken:
                call = functools.partial(self._perform, job, work, slots)
                background.run(call, "embed").add_done_callback(finished.put)
            job, work, outcome = finished.get().result()
        # Decoded here and not in the threads of the workers: these would only wait for each other's
        # turn to run, and each would hold its own memory for it.
        result = finish(job.settle(work, outcome))
        if self._cache is not None:
            job.write_cache(work, result)
        job.report()

    def _perform(self, job: Job, work: Work, slots: CallSlots) -> _Done:
        request = job.request(work)
        post = functools.partial(self._post, job.endpoint, slots)
        if isinstance(work, Batch) and not work.crash_count:
            key = MergeKey.of(job.endpoint, request, self._settings.batch_size)
            return job, work, self._merger.send(key, request, work.tokens, slots, post)
        # The server may have crashed on it: batches that are in flight with it would be suspected
        # too.
        return job, work, post(request, None, exclusive=isinstance(work, Batch))

    def _post(
        self,
        endpoint: Endpoint,
        slots: CallSlots,
        request: Request,
        slot: Slot | None,
        *,
        exclusive: bool = False,
    ) -> Outcome:
        """Send a request, again if need be, in ``slot`` or in its own.

        The slot is held until the last try: between two tries of a request that may crash the
        server, no other request of this client may be in flight either.
        """
        session = self._transport.session(endpoint)
        slot = slot or slots.acquire(exclusive=exclusive)
        try:
            retries = self._retries(request)
            while True:
                exchange = slots.begin(slot, self._settings.timeout)
                try:
                    answer = session.send(request, exchange)
                    slots.check()  # it may be the reason for the answer
                except BaseException as error:
                    self._unanswered(error)
                    raise
                step = self._after(retries, endpoint, answer)
                if isinstance(step, Outcome):
                    return step
                slots.sleep(step)
        finally:
            slot.release()


# ---------------------------------------------------------------- tasks


class AsyncClient(_ClientBase[Awaitable[Endpoint]]):
    """Embeds texts through an endpoint, from any event loop.

    Requests in flight are bounded for each loop, over all clients.
    """

    def _set_up(self, sdk_client: Any) -> None:
        settings = self._settings
        self._mergers: LoopLocal[TaskMerger] = LoopLocal(
            functools.partial(TaskMerger, can_reconnect=self._restarts, on_send=self._on_send)
        )
        self._transport = AsyncTransport(settings.max_concurrency, settings.timeout, sdk_client)

    async def embed(
        self,
        texts: Iterable[str],
        template: Template,
        on_done: Callable[[int], None] | None = None,
    ) -> Floats:
        """Do as ``Client.embed``."""
        seen = Observation(self._settings, is_whole=True)
        source, job_of = _one(TextWindow(texts, 0)), self._jobs(template, on_done)
        run = self._run(source, job_of, lambda: seen)
        with seen.as_current():
            async with aclosing(run):
                return (await anext(run)).matrix

    def stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        template: Template,
        *,
        set_aside: bool = False,
        on_done: OnDone | None = None,
    ) -> AsyncGenerator[Embedded]:
        """Do as ``Client.stream``, also for texts from an asynchronous iterable."""
        if not isinstance(texts, AsyncIterable):
            check_texts(texts)
        job_of = self._jobs(template, on_done, set_aside=set_aside)
        return self._run(awindows(texts), job_of, self._windows)

    async def inspect(self, endpoint: Endpoint, spec: ServerSpec) -> Endpoint:
        """Do as ``Client.inspect``."""
        session = await self._transport.session(endpoint)
        steps = self._verification(endpoint, spec)
        end_s = time.monotonic() + self._settings.timeout
        answer: Reply | TransportError | None = None
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as finished:
                found: Endpoint = finished.value
                return found
            answer = await session.send(request, end_s - time.monotonic())

    async def close(self) -> None:
        """Do as ``Client.close``."""
        self._transport.close()

    async def _run(
        self,
        source: AsyncIterator[TextWindow],
        job_of: Callable[[TextWindow], Steps[Job]],
        observe: Callable[[], Observation],
    ) -> AsyncGenerator[Embedded]:
        jobs = _OpenJobs()
        seen: deque[Observation] = deque()
        tasks: set[asyncio.Task[_Done]] = set()
        try:
            while True:
                while len(jobs) < MOST_OPEN and (window := await anext(source, None)) is not None:
                    seen.append(observe())
                    job = await in_slices(job_of(window))
                    if self._cache is not None:
                        await in_thread(job.read_cache, "cache")
                    if not job.done:
                        await in_slices(job.attach(await self._resolve()))
                    jobs.append(job)
                if jobs and jobs[0].done:
                    job = jobs.popleft()
                    embedded = await in_slices(job.result())
                    seen.popleft().end(job, embedded)
                    yield embedded
                elif not jobs:
                    return
                else:
                    await self._step(jobs, tasks)
        except BaseException as error:
            _fail(seen, error)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _step(self, jobs: _OpenJobs, tasks: set[asyncio.Task[_Done]]) -> None:
        """Send what may be sent, and wait for at least one result."""
        for job in jobs:
            if job.lost and self._reconnect is not None:
                COUNTERS.count(LOST, *self._labels)
                await in_slices(job.attach(await self._reconnect(job.endpoint)))
        while (taken := jobs.take()) is not None:
            tasks.add(asyncio.create_task(self._perform(*taken)))
        finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            tasks.remove(task)
            job, work, outcome = task.result()
            result = await in_slices(job.settle(work, outcome))
            if self._cache is not None:
                write = functools.partial(job.write_cache, work, result)
                await in_thread(write, "cache")
            job.report()

    async def _perform(self, job: Job, work: Work) -> _Done:
        request = job.request(work)
        post = functools.partial(self._post, job.endpoint)
        if isinstance(work, Batch) and not work.crash_count:
            key = MergeKey.of(job.endpoint, request, self._settings.batch_size)
            merger = self._mergers.get()
            answer = await merger.send(key, request, work.tokens, self._acquire, post)
            return job, work, answer
        # As in ``Client``.
        return job, work, await post(request, None, exclusive=isinstance(work, Batch))

    async def _post(
        self, endpoint: Endpoint, request: Request, slot: Slot | None, *, exclusive: bool = False
    ) -> Outcome:
        """Do as ``Client._post``."""
        slot = slot or await self._acquire(exclusive=exclusive)
        try:
            retries = self._retries(request)
            while True:
                # Looked up each time: between two tries the session may be closed.
                session = await self._transport.session(endpoint)
                try:
                    answer = await session.send(request)
                except BaseException as error:
                    self._unanswered(error)
                    raise
                step = self._after(retries, endpoint, answer)
                if isinstance(step, Outcome):
                    return step
                await asyncio.sleep(step)
        finally:
            slot.release()

    def _acquire(self, *, exclusive: bool = False) -> Awaitable[Slot]:
        limit = self._settings.max_concurrency
        return LOOP_LIMITERS.get().acquire(limit, self._mergers, exclusive=exclusive)


async def _one(window: TextWindow) -> AsyncGenerator[TextWindow]:
    yield window
