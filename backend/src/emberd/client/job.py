"""One call of ``embed``: what to send next, and what each answer changes. Sends nothing itself.

The driver takes work while there is some, sends it, and settles each result::

    while not job.done:
        if job.lost:                     # the server went away, and nothing is in flight
            job.attach(heal(job.endpoint))
        while (work := job.take()) is not None:
            send(work)
        job.settle(*receive())

Texts that might be too long are counted first, so that the error for one comes before any other
text was embedded for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from http import HTTPStatus
from typing import Final

import numpy as np

from emberd.client import protocol, replies, tokens, vectors
from emberd.client.batches import Batch, lay_out
from emberd.client.learnt import Learnt
from emberd.client.protocol import Ask, Failure, Gone, Outcome, TooLong
from emberd.client.texts import Prepared, excerpt, listed, prepare
from emberd.client.tokens import Counting
from emberd.client.vectors import Floats
from emberd.errors import (
    PoisonTextError,
    RejectedError,
    RequestError,
    ServerMismatchError,
    ServerUnavailableError,
    SettingError,
)
from emberd.settings import Endpoint, Settings

Work = Batch | Counting
Result = Floats | list[int] | Failure

MAX_BARREN_HEALS: Final = 3
"""How often a server may vanish in a row without anything having been embedded in between."""

_SUSPECT_DEATHS: Final = 2
_REFUSES_SETTING: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})


class Job:
    """The state of one call.

    Args:
        texts: What the caller gave.
        template: Holds ``{text}``.
        settings: The caller's.
        can_heal: Whether somebody can bring a server back that went away.
        learnt: What other jobs of the same client learnt of its servers.

    Raises:
        TextError: A text that cannot be sent; nothing has been sent then.
    """

    def __init__(
        self,
        texts: Iterable[str],
        template: str,
        settings: Settings,
        *,
        can_heal: bool,
        learnt: Learnt | None = None,
    ) -> None:
        self._settings = settings
        self._model = settings.known
        self._can_heal = can_heal
        self._learnt = learnt or Learnt()
        self._texts = list(listed(texts))  # the caller's own may change
        self._prepared: Prepared = prepare(self._texts, template, self._model)
        self._endpoint: Endpoint | None = None
        self._lost: ServerUnavailableError | ServerMismatchError | None = None
        self._barren_heals = 0
        self._can_count = True
        self._in_flight: set[Work] = set()
        self._to_be_cut: set[Work] = set()
        self._to_count: deque[Counting] = deque()
        self._suspects: deque[Batch] = deque()
        self._again: deque[Batch] = deque()
        self._fresh: Iterator[Batch] = iter(())
        self._finished = 0
        self._matrix: Floats = np.empty((0, self._settings.dimensions or 0), np.float32)

    @property
    def size(self) -> int:
        """How many texts there are."""
        return len(self._prepared.inputs)

    @property
    def finished(self) -> int:
        """How many of them have their vector."""
        return self._finished

    @property
    def done(self) -> bool:
        """Whether all of them have."""
        return self._finished == self.size

    @property
    def lost(self) -> bool:
        """Whether the server went away and nothing is in flight: time to heal."""
        return self._lost is not None and not self._in_flight

    @property
    def endpoint(self) -> Endpoint:
        """Where the work goes."""
        if self._endpoint is None:
            raise RuntimeError("attach was not called")
        return self._endpoint

    def result(self) -> Floats:
        """Return one row a text, in the caller's order, once the job is done."""
        if self.size == 0 and self._matrix.shape[1] == 0:
            return np.empty((0, self._model.dimensions or 0), np.float32)
        return self._matrix

    def attach(self, endpoint: Endpoint) -> None:
        """Send to ``endpoint`` from now on.

        Raises:
            SettingError: It gives shorter vectors than the caller wants.
            ServerMismatchError: It gives vectors of another length than the one before.
        """
        before, self._endpoint = self._endpoint, endpoint
        if before is None:
            self._begin(endpoint)
        elif before.dimensions != endpoint.dimensions:
            raise ServerMismatchError(
                f"The server at {endpoint.url} gives {endpoint.dimensions} dimensions, the one "
                f"before it gave {before.dimensions}. Embed all texts again with one of them."
            )
        if self._lost is not None:
            self._lost = None
            self._barren_heals += 1

    def take(self) -> Work | None:
        """Return what to send now; None while nothing may be sent."""
        if self._lost is not None or len(self._in_flight) >= self._settings.max_concurrency:
            return None
        work = self._next()
        if work is not None:
            self._in_flight.add(work)
        return work

    def ask(self, work: Work) -> Ask:
        """Return the request for ``work``."""
        if isinstance(work, Counting):
            text = str(self._prepared.inputs[work.index])
            return tokens.ask(self.endpoint.server, self.endpoint.model, text)
        inputs = [self._prepared.inputs[index] for index in work.indices]
        dimensions = self._server_dimensions
        (self._to_be_cut.discard if dimensions is None else self._to_be_cut.add)(work)
        return protocol.embed(self.endpoint.model, inputs, dimensions)

    def read(self, work: Work, outcome: Outcome) -> Result:
        """Return what ``outcome`` means for ``work``; changes nothing, and may run anywhere."""
        body = protocol.judge(outcome, self.endpoint.url)
        if not isinstance(body, bytes):
            return body
        try:
            if isinstance(work, Counting):
                return tokens.ended(tokens.read(body), self._model)
            embedded = replies.read(body, len(work.indices))
            if (swapped := self._swapped(embedded.model)) is not None:
                return swapped
            return vectors.decode(
                embedded.vectors,
                self.endpoint.dimensions,
                self._settings.dimensions,
                cut_by_server=self._settings.server_dimensions,
            )
        except RequestError as error:
            return error

    def settle(self, work: Work, result: Result) -> None:
        """Take note of the result of ``work``.

        Raises:
            RequestError: The job cannot be done; what is in flight is not waited for.
        """
        self._in_flight.remove(work)
        if isinstance(result, Gone):
            self._server_went(work, result)
        elif isinstance(work, Counting):
            self._counted(work.index, result)
        elif isinstance(result, TooLong):
            self._divide(work, result)
        elif isinstance(result, RequestError):
            self._ask_uncut(work, result)
        else:
            self._matrix[list(work.indices)] = result
            self._finished += len(work.indices)
            self._barren_heals = 0

    @property
    def _server_dimensions(self) -> int | None:
        cuts = self._settings.server_dimensions and self.endpoint not in self._learnt.uncut
        return self._settings.dimensions if cuts else None

    @property
    def _limit_tokens(self) -> int | None:
        stated = tokens.limit_tokens(self.endpoint, self._model)
        return self._learnt.limits.get(self.endpoint, stated)

    def _swapped(self, model: str | None) -> Gone | None:
        """Return what it means that a reply names ``model``, when it is not what one named before.

        A server of somebody else's may be swapped for one of another model under its address,
        which nothing else tells where both have the same dimensions.
        """
        first = self._learnt.named.setdefault(self.endpoint, model) if model is not None else model
        if first == model:
            return None
        error = ServerMismatchError(
            f"{self.endpoint.url} gave vectors of {first} before and gives those of {model} now: "
            f"another server has taken its place. Serve {first} there again, or make a new "
            f"embedder and embed all texts again."
        )
        return Gone(error, reached=False)

    def _begin(self, endpoint: Endpoint) -> None:
        wanted = self._settings.dimensions or endpoint.dimensions
        if wanted > endpoint.dimensions:
            raise SettingError(
                f"dimensions={wanted} is more than the {endpoint.dimensions} that "
                f"{endpoint.model} has. Ask for at most {endpoint.dimensions}."
            )
        self._matrix = np.empty((self.size, wanted), np.float32)
        self._to_count.extend(
            Counting(index)
            for index in self._prepared.to_count(self._limit_tokens)
            if isinstance(self._prepared.inputs[index], str)
        )
        # Laid out as it is taken, so not before the over-long texts are cut.
        self._fresh = lay_out(self._prepared, self._settings.batch_size)

    def _next(self) -> Work | None:
        if self._to_count:
            return self._to_count.popleft()
        if any(isinstance(work, Counting) or work.alone for work in self._in_flight):
            return None
        if self._suspects:
            return self._suspects.popleft() if not self._in_flight else None
        if self._again:
            return self._again.popleft()
        batch = next(self._fresh, None)
        if batch is not None and self.size == 1:
            return replace(batch, alone=True)
        return batch

    def _counted(self, index: int, result: Result) -> None:
        limit = self._limit_tokens
        if isinstance(result, RejectedError) and result.status in protocol.NO_ROUTE:
            self._can_count = False
            self._to_count.clear()  # the server itself will refuse what is too long
        elif isinstance(result, RequestError):
            raise result
        elif isinstance(result, list) and limit is not None and len(result) > limit:
            if not self._settings.truncate:
                raise tokens.too_long(index, len(result), limit)
            self._prepared.inputs[index] = tokens.cut(index, result, limit, self._model)

    def _ask_uncut(self, batch: Batch, error: RequestError) -> None:
        """Ask for native vectors, which are cut here, where the server refuses to cut them."""
        refused = isinstance(error, RejectedError) and error.status in _REFUSES_SETTING
        if not (refused and batch in self._to_be_cut):
            raise error
        self._learnt.uncut.add(self.endpoint)
        self._again.append(batch)

    def _learns(self, limit: int | None) -> bool:
        """Return whether ``limit`` is less than what was known; from now on it counts."""
        known = self._limit_tokens
        if limit is None or (known is not None and limit >= known):
            return False
        self._learnt.limits[self.endpoint] = limit
        return True

    def _count_again(self, batch: Batch, limit: int) -> None:
        doubtful = set(self._prepared.to_count(limit)) & set(batch.indices)
        for index in sorted(doubtful):
            cut = self._prepared.inputs[index]
            if isinstance(cut, str):
                self._to_count.append(Counting(index))
            elif len(cut) > limit:  # to what the server had stated
                self._prepared.inputs[index] = tokens.cut(index, cut, limit, self._model)
        self._again.appendleft(batch)

    def _divide(self, batch: Batch, refused: TooLong) -> None:
        if self._learns(refused.limit) and self._can_count and refused.limit is not None:
            # A router states no context, and a server short of memory takes less than its own.
            self._count_again(batch, refused.limit)
        elif len(batch.indices) == 1:
            raise tokens.too_long(
                batch.indices[0],
                refused.tokens,
                refused.limit,
                truncate=self._settings.truncate,
                can_cut=self._can_count,
            )
        else:
            # The server does not say which text it means. In front, so that the error comes soon.
            self._again.extendleft(batch.halves(alone=batch.alone))

    def _server_went(self, work: Work, gone: Gone) -> None:
        if not self._can_heal:
            raise gone.error
        if self._barren_heals >= MAX_BARREN_HEALS:
            raise ServerUnavailableError(
                f"The server vanished {self._barren_heals + 1} times in a row before it had "
                f"embedded anything: {gone.error} Its log tells why: emberd logs."
            ) from gone.error
        self._lost = gone.error
        if isinstance(work, Counting):
            self._to_count.append(work)
        elif not gone.reached:
            # It never saw these texts, so it did not die of them.
            (self._suspects if work.alone and self.size > 1 else self._again).append(work)
        else:
            self._died_with(replace(work, deaths=work.deaths + 1))

    def _died_with(self, batch: Batch) -> None:
        if batch.deaths < _SUSPECT_DEATHS:
            self._again.append(batch)
        elif len(batch.indices) > 1:
            self._suspects.extend(batch.halves(alone=True))
            self._barren_heals = 0  # fewer texts are under suspicion: that is progress
        elif not batch.alone:
            self._suspects.append(replace(batch, alone=True))
        else:
            index = batch.indices[0]
            raise PoisonTextError(
                f"The server died {batch.deaths} times while it embedded text {index} "
                f"({excerpt(self._texts[index])}), the last time with nothing else in "
                f"flight. Leave this text out, and report it with the server's log (emberd logs).",
                index=index,
            )
