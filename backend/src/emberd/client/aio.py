"""The client for tasks."""

from __future__ import annotations

import asyncio
import copy
import functools
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from contextlib import aclosing
from typing import Any, Final

from emberd.client import verify
from emberd.client.batches import Batch
from emberd.client.coalesce import MergeKey, TaskMerger
from emberd.client.job import Embedded, Job, Work
from emberd.client.lengths import EndpointFacts
from emberd.client.limits import LOOP_LIMITERS, LoopLocal, Slot
from emberd.client.retry import Pause, RetryPolicy, exchange
from emberd.client.transport import AsyncTransport
from emberd.client.vectors import Floats, KnownVectors
from emberd.client.windows import JobWindow, TextWindow, awindows
from emberd.client.wire import Embeddings, Outcome, Reply, Request, ServerLost, TransportError
from emberd.endpoint import Endpoint
from emberd.settings import ServerSpec, Settings

_BEGINNING: Final[LoopLocal[asyncio.Lock]] = LoopLocal(asyncio.Lock)

_Tasks = dict[asyncio.Task[Outcome | Embeddings], tuple[Job, Work]]


class AsyncClient:
    """Embeds texts through an endpoint, from any event loop.

    Each loop has its own connections. Requests in flight are bounded for each loop, over all
    clients.

    Args:
        resolve: Returns where to send; called once a call.
        settings: The caller's.
        reconnect: Takes an endpoint that was lost and returns one to continue with, or raises;
            None if a lost server cannot be replaced.
        restarts: Whether ``reconnect`` brings a server back. Otherwise it only verifies what
            listens at the address now, and is called if that is not what was verified before.
        on_use: Called with the endpoint after each reply.
        on_timeout: Called likewise when there was no answer in time.
        sdk_client: The user's own ``openai.AsyncOpenAI``, used instead of one of ours.
        policy: When a request is sent again; by default fewer tries if a lost server is replaced.
        cache: Asked for vectors before a server is.
    """

    def __init__(
        self,
        resolve: Callable[[], Awaitable[Endpoint]],
        settings: Settings,
        *,
        reconnect: Callable[[Endpoint], Awaitable[Endpoint]] | None = None,
        restarts: bool = True,
        on_use: Callable[[Endpoint], None] | None = None,
        on_timeout: Callable[[Endpoint], None] | None = None,
        sdk_client: Any = None,
        policy: RetryPolicy | None = None,
        cache: KnownVectors | None = None,
    ) -> None:
        self._resolve = resolve
        self._settings = settings
        self._reconnect = reconnect
        self._restarts = restarts and reconnect is not None
        self._on_use = on_use
        self._on_timeout = on_timeout
        self._cache = cache
        self._policy = policy or RetryPolicy.usual(settings.timeout, can_reconnect=self._restarts)
        self._facts = EndpointFacts()
        self._mergers: LoopLocal[TaskMerger] = LoopLocal(
            functools.partial(TaskMerger, can_reconnect=self._restarts)
        )
        self._transport = AsyncTransport(settings.max_concurrency, settings.timeout, sdk_client)

    def using(self, settings: Settings) -> AsyncClient:
        """Return a client with other settings that shares the connections of this one."""
        twin = copy.copy(self)
        twin._settings = settings
        return twin

    async def embed(
        self,
        texts: Iterable[str],
        template: str,
        on_done: Callable[[int], None] | None = None,
    ) -> Floats:
        """Return the vectors of ``texts``, ``(n, dimensions)``, float32, each of norm one.

        Args:
            texts: Any number of texts.
            template: The template, with ``{text}`` in it.
            on_done: Called with how many texts have their vector so far.

        Raises:
            TextError: A text cannot be embedded; it has the index.
            RequestError: The server refused, failed, or gave a wrong answer.
        """
        run = self._run(_one(TextWindow(texts, 0)), template, on_done)
        async with aclosing(run):
            return (await anext(run)).matrix

    def stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        template: str,
        *,
        set_aside: bool = False,
    ) -> AsyncGenerator[Embedded]:
        """Yield the vectors of ``texts`` in windows, a few of which are in memory at a time.

        Args:
            texts: Any number of texts, taken as they are needed.
            template: The template, with ``{text}`` in it.
            set_aside: A text that cannot be embedded gets its error instead of a vector.

        Raises:
            TextError: A text cannot be embedded; it has the index.
            RequestError: As for ``embed``.
        """
        return self._run(awindows(texts), template, set_aside=set_aside)

    async def inspect(self, endpoint: Endpoint, spec: ServerSpec) -> Endpoint:
        """Verify the server at ``endpoint`` through this client's own connections.

        Raises:
            ServerMismatchError: It does not serve ``spec``.
            RequestError: It does not answer, or requires another key.
        """
        session = await self._transport.session(endpoint)
        steps = verify.steps(endpoint.url, endpoint.api_key, spec, self._settings.timeout)
        answer: Reply | TransportError | None = None
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as finished:
                found: Endpoint = finished.value
                return found
            answer = await session.send(request)

    async def close(self) -> None:
        """Close the connections of this loop; the next use opens them again."""
        await self._transport.close()

    async def _run(
        self,
        source: AsyncIterator[TextWindow],
        template: str,
        on_done: Callable[[int], None] | None = None,
        *,
        set_aside: bool = False,
    ) -> AsyncGenerator[Embedded]:
        jobs = JobWindow(self._settings.max_concurrency)
        tasks: _Tasks = {}
        try:
            while True:
                while not jobs.is_full and (window := await anext(source, None)) is not None:
                    jobs.append(await self._open(window, template, set_aside=set_aside))
                if (job := jobs.pop_done()) is not None:
                    if on_done is not None:
                        on_done(job.finished)
                    yield job.result()
                elif not jobs:
                    return
                else:
                    await self._step(jobs, tasks, on_done)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open(self, window: TextWindow, template: str, *, set_aside: bool) -> Job:
        await _turn()
        job = Job(
            window.texts,
            template,
            self._settings,
            can_reconnect=self._reconnect is not None,
            facts=self._facts,
            cache=self._cache,
            offset=window.offset,
            set_aside=set_aside,
        )
        if self._cache is not None:
            await asyncio.to_thread(job.read_cache)
        if not job.done:
            job.attach(await self._resolve())
        return job

    async def _step(
        self, jobs: JobWindow, tasks: _Tasks, on_done: Callable[[int], None] | None
    ) -> None:
        """Send what may be sent, and wait for at least one result."""
        for job in jobs.lost:
            if self._reconnect is not None:
                job.attach(await self._reconnect(job.endpoint))
        while (taken := jobs.take()) is not None:
            tasks[asyncio.create_task(self._perform(*taken))] = taken
        finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            job, work = tasks.pop(task)
            result = job.read(work, task.result())
            if isinstance(result, ServerLost) and not (self._restarts or result.changed):
                raise result.error
            job.settle(work, result)
            if self._cache is not None:
                await asyncio.to_thread(job.write_cache, work, result)
        if on_done is not None:
            on_done(job.finished)

    async def _perform(self, job: Job, work: Work) -> Outcome | Embeddings:
        request = job.request(work)
        exchange = functools.partial(self._exchange, job.endpoint)
        if isinstance(work, Batch) and not work.crash_count:
            key = MergeKey.of(job.endpoint, request, self._settings.batch_size)
            merger = self._mergers.get()
            return await merger.send(key, request, work.tokens, self._acquire, exchange)
        # The server may have crashed on it: batches that are in flight with it would be suspected
        # too.
        return await exchange(request, None, exclusive=isinstance(work, Batch))

    async def _exchange(
        self, endpoint: Endpoint, request: Request, slot: Slot | None, *, exclusive: bool = False
    ) -> Outcome:
        """Send a request, again if need be, in ``slot`` or in one of its own.

        The slot is held until the last try: between two tries of a request that may crash the
        server, no other request of this client may be in flight either.
        """
        steps = exchange(request, self._policy)
        answer: Reply | TransportError | None = None
        slot = slot or await self._acquire(exclusive=exclusive)
        try:
            while True:
                try:
                    step = steps.send(answer)
                except StopIteration as finished:
                    outcome: Outcome = finished.value
                    return outcome
                if isinstance(step, Pause):
                    answer = None
                    await asyncio.sleep(step.seconds)
                    continue
                # Looked up each time: between two tries the session may be closed.
                session = await self._transport.session(endpoint)
                answer = await session.send(step)
                if isinstance(answer, Reply):
                    if self._on_use is not None:
                        self._on_use(endpoint)
                elif answer.kind == "timeout" and self._on_timeout is not None:
                    self._on_timeout(endpoint)
        finally:
            slot.release()

    def _acquire(self, *, exclusive: bool = False) -> Awaitable[Slot]:
        limit = self._settings.max_concurrency
        return LOOP_LIMITERS.get().acquire(limit, self._mergers, exclusive=exclusive)


async def _turn() -> None:
    """Wait until no other call has begun in this turn of the loop.

    LlamaIndex makes hundreds of calls at once, and together they would delay all other tasks.
    """
    beginning = _BEGINNING.get()
    await beginning.acquire()
    asyncio.get_running_loop().call_soon(beginning.release)  # so it is free in the next turn


async def _one(window: TextWindow) -> AsyncGenerator[TextWindow]:
    yield window
