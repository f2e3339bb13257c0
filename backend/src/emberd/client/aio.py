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
from emberd.client.gate import TaskGate
from emberd.client.job import Job, Work
from emberd.client.learnt import Learnt
from emberd.client.line import Line, Window, awindows
from emberd.client.loops import PerLoop
from emberd.client.merging import Kind
from emberd.client.merging_tasks import TaskMerger
from emberd.client.protocol import Ask, Gone, Outcome, Reply, Trouble
from emberd.client.replies import Answer
from emberd.client.retry import Pause, RetryPolicy, exchange
from emberd.client.rows import Embedded
from emberd.client.slots import loop_slots
from emberd.client.tokens import Counting
from emberd.client.transport import AsyncTransport
from emberd.client.vectors import Floats, KnownVectors
from emberd.endpoint import Endpoint
from emberd.settings import ServerSpec, Settings

_BEGINNING: Final[PerLoop[asyncio.Lock]] = PerLoop(asyncio.Lock)


class AsyncClient:
    """Embeds texts through an endpoint, from any event loop.

    Each loop has connections of its own. Requests in flight are bounded for each loop, over all
    its clients of the same ``max_concurrency``.

    Args:
        resolve: Returns where to send; asked once a call.
        settings: The caller's.
        heal: Takes an endpoint that went away and returns one to go on with, or raises; None
            when nothing can be brought back.
        restarts: Whether ``heal`` brings a server back. Otherwise it only verifies what listens
            at the address now, and is called when that is not what was verified before.
        on_use: Called with the endpoint after each answer.
        on_timeout: Called likewise when there was no answer in time.
        sdk_client: The user's own ``openai.AsyncOpenAI``, used in place of one of ours.
        policy: When a request is sent again; by default a short one where ``heal`` is given.
        memory: Asked for vectors before a server is.
    """

    def __init__(
        self,
        resolve: Callable[[], Awaitable[Endpoint]],
        settings: Settings,
        *,
        heal: Callable[[Endpoint], Awaitable[Endpoint]] | None = None,
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
        self._mergers: PerLoop[TaskMerger] = PerLoop(
            functools.partial(TaskMerger, can_heal=self._restarts)
        )
        self._gates: PerLoop[TaskGate] = PerLoop(TaskGate)
        self._policy = policy or RetryPolicy.usual(settings.timeout, can_heal=self._restarts)
        self._learnt = Learnt()
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
            template: Holds ``{text}``; each text is put into it.
            on_done: Called with how many texts have their vector so far.

        Raises:
            TextError: A text cannot be embedded; it is named.
            RequestError: The server refused, failed, or answered with something else than asked.
        """
        run = self._run(_only(Window(texts, 0)), template, on_done)
        async with aclosing(run):
            return (await anext(run)).matrix

    def stream(
        self,
        texts: Iterable[str] | AsyncIterable[str],
        template: str,
        *,
        set_aside: bool = False,
    ) -> AsyncGenerator[Embedded]:
        """Yield the vectors of ``texts`` in windows, and hold no more than a few of them.

        Args:
            texts: Any number of texts, taken as they are needed.
            template: Holds ``{text}``; each text is put into it.
            set_aside: A text that cannot be embedded gets its error instead of a vector.

        Raises:
            TextError: A text cannot be embedded; it is named.
            RequestError: As for ``embed``.
        """
        return self._run(awindows(texts), template, set_aside=set_aside)

    async def inspect(self, endpoint: Endpoint, spec: ServerSpec) -> Endpoint:
        """Return what answers at ``endpoint``, asked through this client's own connections.

        Raises:
            ServerMismatchError: It does not serve ``spec``.
            RequestError: It does not answer, or wants another key.
        """
        session = await self._transport.session(endpoint)
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
            answer = await session.send(ask)

    async def close(self) -> None:
        """Close the connections of this loop; the next use opens them again."""
        await self._transport.close()

    async def _run(
        self,
        source: AsyncIterator[Window],
        template: str,
        on_done: Callable[[int], None] | None = None,
        *,
        set_aside: bool = False,
    ) -> AsyncGenerator[Embedded]:
        line = Line(self._settings.max_concurrency)
        tasks: dict[asyncio.Task[Outcome | Answer], tuple[Job, Work]] = {}
        try:
            while True:
                while line.has_room and (window := await anext(source, None)) is not None:
                    line.append(await self._job(window, template, set_aside=set_aside))
                if (job := line.pop_done()) is not None:
                    if on_done is not None:
                        on_done(job.finished)
                    yield job.result()
                elif line.is_empty:
                    return
                else:
                    await self._step(line, tasks, on_done)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _job(self, window: Window, template: str, *, set_aside: bool) -> Job:
        await _turn()
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
        if self._memory is not None:
            await asyncio.to_thread(job.recall)
        if not job.done:
            job.attach(await self._resolve())
        return job

    async def _step(
        self,
        line: Line,
        tasks: dict[asyncio.Task[Outcome | Answer], tuple[Job, Work]],
        on_done: Callable[[int], None] | None,
    ) -> None:
        for job in line.lost:
            if self._heal is not None:
                job.attach(await self._heal(job.endpoint))
        while (taken := line.take()) is not None:
            tasks[asyncio.create_task(self._perform(*taken))] = taken
        finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in finished:
            job, work = tasks.pop(task)
            result = job.read(work, task.result())
            if isinstance(result, Gone) and not (self._restarts or result.changed):
                raise result.error
            job.settle(work, result)
            if self._memory is not None:
                await asyncio.to_thread(job.keep, work, result)
        if on_done is not None:
            on_done(job.finished)

    async def _perform(self, job: Job, work: Work) -> Outcome | Answer:
        ask = job.ask(work)
        if isinstance(work, Counting):
            return await self._together(job.endpoint, lambda: ask)
        if work.deaths:
            # The server may have died of it: whoever went with it would be under suspicion too.
            async with self._gates.get().alone():
                return await self._exchange(job.endpoint, lambda: ask)
        kind = Kind.of(job.endpoint, ask, self._settings.batch_size)
        return await self._mergers.get().send(kind, ask, work.tokens, self._together)

    async def _together(self, endpoint: Endpoint, depart: Callable[[], Ask]) -> Outcome:
        async with self._gates.get().together():
            return await self._exchange(endpoint, depart)

    async def _exchange(self, endpoint: Endpoint, depart: Callable[[], Ask]) -> Outcome:
        async with loop_slots(self._settings.max_concurrency):
            ask = depart()
            steps = exchange(ask, self._policy)
            next(steps)
            answer: Reply | Trouble | None = await self._send(endpoint, ask)
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as finished:
                outcome: Outcome = finished.value
                return outcome
            if isinstance(step, Pause):
                answer = None
                await asyncio.sleep(step.seconds)
            else:
                async with loop_slots(self._settings.max_concurrency):
                    answer = await self._send(endpoint, step)

    async def _send(self, endpoint: Endpoint, ask: Ask) -> Reply | Trouble:
        # Asked for each time: between two tries the one before may be closed.
        session = await self._transport.session(endpoint)
        answer = await session.send(ask)
        self._report(answer, endpoint)
        return answer

    def _report(self, answer: Reply | Trouble, endpoint: Endpoint) -> None:
        if isinstance(answer, Reply):
            if self._on_use is not None:
                self._on_use(endpoint)
        elif answer.kind == "timeout" and self._on_timeout is not None:
            self._on_timeout(endpoint)


async def _turn() -> None:
    """Wait until no other call has begun in this turn of the loop.

    LlamaIndex makes hundreds at once, and together they would hold up everybody else's tasks.
    """
    beginning = _BEGINNING.get()
    await beginning.acquire()
    asyncio.get_running_loop().call_soon(beginning.release)  # so it is free in the next turn


async def _only(window: Window) -> AsyncGenerator[Window]:
    yield window
