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

from emberd.client import protocol, refusals, replies, tokens, vectors
from emberd.client.batches import Batch, lay_out
from emberd.client.learnt import Learnt
from emberd.client.lengths import Lengths
from emberd.client.protocol import Ask, Failure, Gone, Outcome, TooLong
from emberd.client.replies import Answer
from emberd.client.rows import Embedded, Rows
from emberd.client.texts import Prepared, listed, prepare
from emberd.client.tokens import Counting
from emberd.client.vectors import Floats, KnownVectors
from emberd.endpoint import Endpoint
from emberd.errors import (
    RejectedError,
    RequestError,
    ServerMismatchError,
    ServerUnavailableError,
    SettingError,
    TextError,
)
from emberd.prompts import apply
from emberd.settings import Settings

Work = Batch | Counting
Result = Floats | list[int] | Failure

MAX_BARREN_HEALS: Final = 3
"""How often a server may vanish in a row without anything having been embedded in between."""

_SUSPECT_DEATHS: Final = 2
_REFUSES: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})


class Job:
    """The state of one call.

    Args:
        texts: What the caller gave.
        template: Holds ``{text}``.
        settings: The caller's.
        can_heal: Whether somebody can bring a server back that went away.
        learnt: What other jobs of the same client learnt of its servers.
        memory: Asked for vectors before the server is; then native ones are asked for.
        offset: How many texts of the caller's come before these.
        set_aside: A text that cannot be embedded gets an error of its own, and the others go on.

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
        memory: KnownVectors | None = None,
        offset: int = 0,
        set_aside: bool = False,
    ) -> None:
        self._wanted = settings.dimensions
        if memory is not None:
            settings = replace(settings, dimensions=None, server_dimensions=False)
        self._settings = settings
        self._model = settings.known
        self._can_heal = can_heal
        self._learnt = learnt or Learnt()
        self._memory = memory
        self._offset = offset
        self._sets_aside = set_aside
        self._template = template
        self._texts = list(listed(texts))  # the caller's own may change
        self._rows = Rows(len(self._texts))
        self._prepared: Prepared = prepare(
            self._texts,
            template,
            self._model,
            offset=offset,
            refuse=self._rows.leave_out if set_aside else None,
        )
        self._endpoint: Endpoint | None = None
        self._lost: ServerUnavailableError | ServerMismatchError | None = None
        self._barren_heals = 0
        self._lengths = Lengths(
            self._prepared, self._model, self._learnt, truncate=settings.truncate, offset=offset
        )
        self._in_flight: set[Work] = set()
        self._to_be_cut: set[Work] = set()
        self._suspects: deque[Batch] = deque()
        self._again: deque[Batch] = deque()
        self._fresh: Iterator[Batch] = iter(())

    @property
    def size(self) -> int:
        """How many texts there are."""
        return self._rows.size

    @property
    def finished(self) -> int:
        """How many of them have their vector, or will have none."""
        return self._rows.finished

    @property
    def done(self) -> bool:
        """Whether all of them have."""
        return self.finished == self.size

    @property
    def in_flight(self) -> int:
        """How many pieces of work were taken and not settled."""
        return len(self._in_flight)

    @property
    def hunts(self) -> bool:
        """Whether texts are tried one after another, to find the one that kills the server."""
        return bool(self._suspects) or any(
            isinstance(work, Batch) and work.deaths > 0 and work.alone for work in self._in_flight
        )

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

    def result(self) -> Embedded:
        """Return one row a text, in the caller's order, once the job is done."""
        width = self._rows.width or self._model.dimensions or 0
        return self._rows.result(self._wanted or width)

    def recall(self) -> None:
        """Take what the memory knows. It may read a disk, or ask a server of its own."""
        if self._memory is None:
            return
        asked = [index for index, given in enumerate(self._prepared.inputs) if given is not None]
        known, vectors = self._memory.recall([self._templated(index) for index in asked])
        found = [index for index, is_known in zip(asked, known, strict=True) if is_known]
        if not found:
            return
        self._check_dimensions(vectors.shape[1])
        self._rows.begin(vectors.shape[1])
        self._rows.put(found, vectors)
        for index in found:
            self._prepared.leave_out(index)

    def keep(self, work: Work, result: Result) -> None:
        """Have the memory keep vectors that just came. It may write to a disk."""
        if (
            self._memory is None
            or not isinstance(work, Batch)
            or isinstance(result, Failure | list)
        ):
            return
        # One of a text that was cut is not the vector of the text.
        places = [
            place
            for place, index in enumerate(work.indices)
            if index not in self._lengths.shortened
        ]
        texts = [self._templated(work.indices[place]) for place in places]
        self._memory.keep(texts, result[places])

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
            raise refusals.other_server(before, endpoint)
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
        given = (self._prepared.inputs[index] for index in work.indices)
        inputs = [one for one in given if one is not None]
        dimensions = self._server_dimensions
        (self._to_be_cut.discard if dimensions is None else self._to_be_cut.add)(work)
        return protocol.embed(self.endpoint.model, inputs, dimensions)

    def read(self, work: Work, outcome: Outcome | Answer) -> Result:
        """Return what ``outcome`` means for ``work``; changes nothing, and may run anywhere."""
        try:
            answer = self._answer(work, outcome)
            if not isinstance(answer, Answer):
                return answer
            if (swapped := self._learnt.swapped(self.endpoint, answer.model)) is not None:
                return swapped
            return vectors.decode(
                answer.vectors,
                self.endpoint.dimensions,
                self._settings.dimensions,
                cut_by_server=self._settings.server_dimensions,
            )
        except RequestError as error:
            return error

    def _answer(self, work: Work, outcome: Outcome | Answer) -> Answer | list[int] | Failure:
        if isinstance(outcome, Answer):
            return outcome
        body = protocol.judge(outcome, self.endpoint.url)
        if not isinstance(body, bytes):
            return body
        if isinstance(work, Counting):
            return tokens.ended(tokens.read(body), self._model)
        return replies.read(body, len(work.indices))

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
            self._refused(work, result)
        else:
            self._rows.put(work.indices, result)  # type: ignore[arg-type]
            self._barren_heals = 0

    @property
    def _server_dimensions(self) -> int | None:
        cuts = self._settings.server_dimensions and self.endpoint not in self._learnt.uncut
        return self._settings.dimensions if cuts else None

    def _templated(self, index: int) -> str:
        given = self._prepared.inputs[index]
        return given if isinstance(given, str) else apply(self._template, self._texts[index])

    def _check_dimensions(self, native: int) -> None:
        if self._wanted is not None and self._wanted > native:
            raise SettingError(
                f"dimensions={self._wanted} is more than the {native} that {self._model.name} has. "
                f"Ask for at most {native}."
            )

    def _begin(self, endpoint: Endpoint) -> None:
        self._check_dimensions(endpoint.dimensions)
        if self._rows.width is None:
            self._rows.begin(self._settings.dimensions or endpoint.dimensions)
        elif self._rows.width != endpoint.dimensions:
            raise refusals.other_cache(self._rows.width, endpoint)
        self._lengths.begin(endpoint)
        # Laid out as it is taken, so not before the over-long texts are cut.
        self._fresh = lay_out(self._prepared, self._settings.batch_size)

    def _next(self) -> Work | None:
        if self._lengths.to_count:
            return self._lengths.to_count.popleft()
        if any(isinstance(work, Counting) or work.alone for work in self._in_flight):
            return None
        if self._suspects:
            return self._suspects.popleft() if not self._in_flight else None
        batch = self._next_again() or next(self._fresh, None)
        if batch is not None and self.size == 1:
            return replace(batch, alone=True)
        return batch

    def _next_again(self) -> Batch | None:
        while self._again:
            batch = self._again.popleft()
            # Texts may have been set aside or cut meanwhile, and what was cut goes as ids.
            texts, ids = self._of_kind(batch, str), self._of_kind(batch, list)
            if texts and ids:
                self._again.appendleft(replace(batch, indices=ids))
            if texts or ids:
                return replace(batch, indices=texts or ids)
        return None

    def _of_kind(self, batch: Batch, kind: type) -> tuple[int, ...]:
        return tuple(i for i in batch.indices if isinstance(self._prepared.inputs[i], kind))

    def _leave_out(self, index: int, error: TextError) -> None:
        if not self._sets_aside:
            raise error
        self._prepared.leave_out(index)
        self._rows.leave_out(index, error)

    def _counted(self, index: int, result: Result) -> None:
        try:
            self._lengths.counted(self.endpoint, index, result)
        except TextError as error:
            self._leave_out(index, error)
        except RejectedError as error:
            if error.status not in _REFUSES or not self._sets_aside:
                raise
            self._leave_out(index, refusals.refused(self._offset + index, error))

    def _refused(self, batch: Batch, error: RequestError) -> None:
        if not isinstance(error, RejectedError) or error.status not in _REFUSES:
            raise error
        if batch in self._to_be_cut:
            # Native vectors are asked for then, and cut here.
            self._learnt.uncut.add(self.endpoint)
            self._again.append(batch)
        elif not self._sets_aside:
            raise error
        elif len(batch.indices) > 1:
            self._again.extendleft(batch.halves(alone=batch.alone))
        else:
            (index,) = batch.indices
            self._leave_out(index, refusals.refused(self._offset + index, error))

    def _divide(self, batch: Batch, refused: TooLong) -> None:
        try:
            again = self._lengths.counts_again(self.endpoint, batch.indices, refused.limit)
        except TextError as error:
            self._leave_out(error.index - self._offset, error)
            again = True
        if again:
            self._again.appendleft(batch)
        elif len(batch.indices) == 1:
            self._leave_out(batch.indices[0], self._lengths.error(batch.indices[0], refused))
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
            self._lengths.to_count.append(work)
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
            (index,) = batch.indices
            place = self._offset + index
            self._leave_out(index, refusals.poison(place, self._texts[index], batch.deaths))
