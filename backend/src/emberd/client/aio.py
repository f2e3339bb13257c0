"""The client for tasks."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from emberd.client import verify
from emberd.client.job import Job, Result, Work
from emberd.client.learnt import Learnt
from emberd.client.loops import PerLoop
from emberd.client.protocol import Outcome, Reply, Trouble
from emberd.client.retry import Pause, RetryPolicy, exchange
from emberd.client.slots import loop_slots
from emberd.client.transport import AsyncTransport
from emberd.client.vectors import Floats
from emberd.settings import Endpoint, ServerSpec, Settings

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
        on_use: Called with the endpoint after each answer.
        on_timeout: Called likewise when there was no answer in time.
        sdk_client: The user's own ``openai.AsyncOpenAI``, used in place of one of ours.
        policy: When a request is sent again; by default a short one where ``heal`` is given.
    """

    def __init__(
        self,
        resolve: Callable[[], Awaitable[Endpoint]],
        settings: Settings,
        *,
        heal: Callable[[Endpoint], Awaitable[Endpoint]] | None = None,
        on_use: Callable[[Endpoint], None] | None = None,
        on_timeout: Callable[[Endpoint], None] | None = None,
        sdk_client: Any = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        self._resolve = resolve
        self._settings = settings
        self._heal = heal
        self._on_use = on_use
        self._on_timeout = on_timeout
        self._policy = policy or RetryPolicy.usual(settings.timeout, can_heal=heal is not None)
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
        await _turn()
        job = Job(
            texts,
            template,
            self._settings,
            can_heal=self._heal is not None,
            learnt=self._learnt,
        )
        if job.done:
            return job.result()
        job.attach(await self._resolve())
        tasks: dict[asyncio.Task[Result], Work] = {}
        try:
            await self._drive(job, tasks, on_done)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return job.result()

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

    async def _drive(
        self,
        job: Job,
        tasks: dict[asyncio.Task[Result], Work],
        on_done: Callable[[int], None] | None,
    ) -> None:
        while not job.done:
            if job.lost and self._heal is not None:
                job.attach(await self._heal(job.endpoint))
            while (work := job.take()) is not None:
                tasks[asyncio.create_task(self._perform(job, work))] = work
            finished, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                job.settle(tasks.pop(task), task.result())
            if on_done is not None:
                on_done(job.finished)

    async def _perform(self, job: Job, work: Work) -> Result:
        steps = exchange(job.ask(work), self._policy)
        answer: Reply | Trouble | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as finished:
                outcome: Outcome = finished.value
                return job.read(work, outcome)
            if isinstance(step, Pause):
                answer = None
                await asyncio.sleep(step.seconds)
            else:
                async with loop_slots(self._settings.max_concurrency):
                    # Asked for each time: between two tries the one before may be closed.
                    session = await self._transport.session(job.endpoint)
                    answer = await session.send(step)
                self._report(answer, job.endpoint)

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
