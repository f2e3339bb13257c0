"""The client for threads."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from emberd.client import verify
from emberd.client.batches import Batch
from emberd.client.coalesce import MergeKey, ThreadMerger
from emberd.client.job import Embedded, Job, Work
from emberd.client.lengths import EndpointFacts
from emberd.client.limits import PROCESS_LIMITER, CallSlots, Slot, Workers
from emberd.client.retry import Pause, RetryPolicy, exchange
from emberd.client.transport import Transport
from emberd.client.vectors import Floats, KnownVectors
from emberd.client.windows import JobWindow, TextWindow, windows
from emberd.client.wire import Embeddings, Outcome, Reply, Request, ServerLost, TransportError
from emberd.endpoint import Endpoint
from emberd.settings import ServerSpec, Settings

_Results = Workers[tuple[Job, Work], Outcome | Embeddings]


class Client:
    """Embeds texts through an endpoint, from any number of threads.

    Args:
        resolve: Returns where to send; called once a call.
        settings: The caller's.
        reconnect: Takes an endpoint that was lost and returns one to continue with, or raises;
            None if a lost server cannot be replaced.
        restarts: Whether ``reconnect`` brings a server back. Otherwise it only verifies what
            listens at the address now, and is called if that is not what was verified before.
        on_use: Called with the endpoint after each reply; from threads of the client too.
        on_timeout: Called likewise when there was no answer in time.
        sdk_client: The user's own ``openai.OpenAI``, used instead of one of ours. Its sockets are
            the user's responsibility, across a fork too.
        policy: When a request is sent again; by default fewer tries if a lost server is replaced.
        cache: Asked for vectors before a server is.
    """

    def __init__(
        self,
        resolve: Callable[[], Endpoint],
        settings: Settings,
        *,
        reconnect: Callable[[Endpoint], Endpoint] | None = None,
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
        self._merger = ThreadMerger(can_reconnect=self._restarts)
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
            template: The template, with ``{text}`` in it.
            on_done: Called in this thread with how many texts have their vector so far.

        Raises:
            TextError: A text cannot be embedded; it has the index.
            RequestError: The server refused, failed, or gave a wrong answer.
        """
        (embedded,) = self._run(iter([TextWindow(texts, 0)]), template, on_done)
        return embedded.matrix

    def stream(
        self, texts: Iterable[str], template: str, *, set_aside: bool = False
    ) -> Generator[Embedded]:
        """Yield the vectors of ``texts`` in windows, a few of which are in memory at a time.

        Args:
            texts: Any number of texts, taken as they are needed.
            template: The template, with ``{text}`` in it.
            set_aside: A text that cannot be embedded gets its error instead of a vector.

        Raises:
            TextError: A text cannot be embedded; it has the index.
            RequestError: As for ``embed``.
        """
        return self._run(windows(texts), template, set_aside=set_aside)

    def inspect(self, endpoint: Endpoint, spec: ServerSpec) -> Endpoint:
        """Verify the server at ``endpoint`` through this client's own connections.

        Raises:
            ServerMismatchError: It does not serve ``spec``.
            RequestError: It does not answer, or requires another key.
        """
        session = self._transport.session(endpoint)
        steps = verify.steps(endpoint.url, endpoint.api_key, spec, self._settings.timeout)
        answer: Reply | TransportError | None = None
        while True:
            try:
                request = steps.send(answer)
            except StopIteration as finished:
                found: Endpoint = finished.value
                return found
            answer = session.send(request)

    def close(self) -> None:
        """Close the connections; the next use opens them again."""
        self._transport.close()

    def _run(
        self,
        source: Iterator[TextWindow],
        template: str,
        on_done: Callable[[int], None] | None = None,
        *,
        set_aside: bool = False,
    ) -> Generator[Embedded]:
        jobs = JobWindow(self._settings.max_concurrency)
        slots = CallSlots(PROCESS_LIMITER, self._settings.max_concurrency, group=self._merger)
        workers: _Results = Workers(lambda taken: self._perform(*taken, slots))
        try:
            while True:
                while not jobs.is_full and (window := next(source, None)) is not None:
                    jobs.append(self._open(window, template, set_aside=set_aside))
                if (job := jobs.pop_done()) is not None:
                    if on_done is not None:
                        on_done(job.finished)
                    yield job.result()
                elif not jobs:
                    return
                else:
                    self._step(jobs, workers, on_done)
        finally:
            slots.abandon()

    def _open(self, window: TextWindow, template: str, *, set_aside: bool) -> Job:
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
            job.read_cache()
        if not job.done:
            job.attach(self._resolve())
        return job

    def _step(
        self, jobs: JobWindow, workers: _Results, on_done: Callable[[int], None] | None
    ) -> None:
        """Send what may be sent, and wait for one result."""
        for job in jobs.lost:
            if self._reconnect is not None:
                job.attach(self._reconnect(job.endpoint))
        while (taken := jobs.take()) is not None:
            workers.submit(taken)
        (job, work), outcome = workers.receive()
        # Decoded here and not in the threads of the workers: these would only wait for each other's
        # turn to run, and each would hold memory of its own for it.
        result = job.read(work, outcome)
        if isinstance(result, ServerLost) and not (self._restarts or result.changed):
            raise result.error
        job.settle(work, result)
        if self._cache is not None:
            job.write_cache(work, result)
        if on_done is not None:
            on_done(job.finished)

    def _perform(self, job: Job, work: Work, slots: CallSlots) -> Outcome | Embeddings:
        request = job.request(work)
        exchange = functools.partial(self._exchange, job.endpoint, slots)
        if isinstance(work, Batch) and not work.crash_count:
            key = MergeKey.of(job.endpoint, request, self._settings.batch_size)
            return self._merger.send(key, request, work.tokens, slots, exchange)
        # The server may have crashed on it: batches that are in flight with it would be suspected
        # too.
        return exchange(request, None, exclusive=isinstance(work, Batch))

    def _exchange(
        self,
        endpoint: Endpoint,
        slots: CallSlots,
        request: Request,
        slot: Slot | None,
        *,
        exclusive: bool = False,
    ) -> Outcome:
        """Send a request, again if need be, in ``slot`` or in one of its own.

        The slot is held until the last try: between two tries of a request that may crash the
        server, no other request of this client may be in flight either.
        """
        session = self._transport.session(endpoint)
        steps = exchange(request, self._policy)
        answer: Reply | TransportError | None = None
        slot = slot or slots.acquire(exclusive=exclusive)
        try:
            while True:
                try:
                    step = steps.send(answer)
                except StopIteration as finished:
                    outcome: Outcome = finished.value
                    return outcome
                if isinstance(step, Pause):
                    answer = None
                    slots.sleep(step.seconds)
                    continue
                answer = session.send(step)
                if isinstance(answer, Reply):
                    if self._on_use is not None:
                        self._on_use(endpoint)
                elif answer.kind == "timeout" and self._on_timeout is not None:
                    self._on_timeout(endpoint)
        finally:
            slot.release()
