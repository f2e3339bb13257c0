"""One call of ``embed``, or one window of a stream: what to send next, and what each reply changes.

It sends nothing itself. The driver takes work while there is some, sends it, and settles each
outcome::

    finish(job.prepare())                # or await in_slices(...)
    finish(job.attach(endpoint))
    while not job.done:
        if job.lost:                     # the server is gone, and nothing is in flight
            finish(job.attach(reconnect(job.endpoint)))
        while (work := job.take()) is not None:
            send(job.request(work))
        finish(job.settle(*receive()))
        job.report()
    finish(job.result())

A stream has a job for each window; two are open at a time, so that the server is busy at the end
of a window too.

Texts that may be too long are counted first, so that the error for one comes before any other text
was embedded for nothing.

A batch that was in flight at two crashes of the server is bisected: its halves are sent one at a
time, with nothing else in flight, until the text that crashes the server is found.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

import numpy as np

from emberd.catalog import NOUN
from emberd.client import lengths, row_formats, tokenizer, usage, wire
from emberd.client.batches import Batch, make_batches, most_tokens
from emberd.client.event_loops import Steps
from emberd.client.inputs import (
    PreparedTexts,
    as_list,
    excerpt,
    in_template,
    most_bytes,
    prepare,
)
from emberd.client.lengths import EndpointFacts, Lengths, TokenCount
from emberd.client.vectors import Floats, KnownVectors, cut
from emberd.client.wire import Embeddings, Failure, Outcome, Request, ServerLost, TooLong
from emberd.endpoint import Endpoint
from emberd.errors import (
    PoisonTextError,
    RejectedError,
    RequestError,
    RequestTimeoutError,
    ServerMismatchError,
    ServerUnavailableError,
    SettingError,
    TextError,
    TextTooLongError,
)
from emberd.prompts import Frame, Template
from emberd.settings import Settings

Work = Batch | TokenCount
Result = Floats | list[int] | Failure

MAX_RECOVERIES_WITHOUT_PROGRESS: Final = 3
"""How often in a row a server may be lost without anything having been embedded in between."""

MOST_OPEN: Final = 2
"""How many jobs of one call are open at a time."""

_SUSPECT_CRASHES: Final = 2
_CPU_REQUESTS: Final = 2  # one is computed, the next one is there when it is done
_REFUSES: Final = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY})


@dataclass(frozen=True, slots=True)
class Embedded:
    """The result of a call, or of a window of a stream.

    Attributes:
        matrix: One row per text, ``(n, dimensions)`` float32; NaN for one that was set aside.
        set_aside: The error of each text that was set aside, by its place.
    """

    matrix: Floats
    set_aside: dict[int, TextError]

    def __iter__(self) -> Iterator[Floats | TextError]:
        for index, row in enumerate(self.matrix):
            yield self.set_aside.get(index, row)


class Job:
    """The state of one call, or of one window of a stream.

    Args:
        texts: What the caller gave.
        template: The template, with ``{text}`` in it.
        settings: The caller's.
        can_reconnect: Whether a lost server can be replaced.
        restarts: Whether replacing it starts a server. Otherwise what listens at its address now
            is verified, if that has changed.
        facts: What other jobs of the same client learned of its servers.
        cache: Asked for vectors before the server is; then native ones are requested.
        offset: How many texts of the caller precede these.
        on_done: Called with how many texts have their vector so far.
        set_aside: A text that cannot be embedded gets its error instead of a vector, and the
            others are embedded.
    """

    def __init__(
        self,
        texts: Iterable[str],
        template: Template,
        settings: Settings,
        *,
        can_reconnect: bool,
        restarts: bool = True,
        facts: EndpointFacts | None = None,
        cache: KnownVectors | None = None,
        offset: int = 0,
        on_done: Callable[[int], None] | None = None,
        set_aside: bool = False,
    ) -> None:
        self._wanted = settings.dimensions
        if cache is not None:
            settings = replace(settings, dimensions=None, server_dimensions=False)
        self._settings = settings
        self._model = settings.known
        self._can_reconnect = can_reconnect
        self._restarts = restarts
        self._facts = facts or EndpointFacts()
        self._cache = cache
        self._offset = offset
        self._noun = NOUN[settings.task]
        self._on_done = on_done or (lambda _: None)
        self._sets_aside = set_aside
        self._usage = usage.current()
        self._template = template
        self._texts = list(as_list(texts, self._noun))  # the caller may change the original
        self._errors: dict[int, TextError] = {}
        self._prepared = PreparedTexts([], [])
        self._matrix: Floats | None = None
        self.finished = 0  # texts that have their vector, or will have none
        self.cached = 0  # texts whose vector was in the cache
        self.tokens = 0  # that servers said they read
        self.server: Endpoint | None = None  # None as well if a cache has all vectors
        self._lost: ServerUnavailableError | ServerMismatchError | None = None
        self._recoveries_without_progress = 0
        self._in_flight: set[Work] = set()
        self._cut_by_server: set[Work] = set()
        self._suspects: deque[Batch] = deque()
        self._again: deque[Batch] = deque()
        self._fresh: Iterator[Batch] = iter(())

    @property
    def done(self) -> bool:
        """Whether all texts are finished."""
        return self.finished == len(self._texts)

    @property
    def in_flight(self) -> int:
        """How many pieces of work were taken and not settled."""
        return len(self._in_flight)

    @property
    def most_in_flight(self) -> int:
        """How many requests the server gets at a time."""
        most = self._settings.max_concurrency
        # More would only wait there, and time out if texts are long.
        return min(most, _CPU_REQUESTS) if self.server and self.server.on_cpu else most

    @property
    def is_bisecting(self) -> bool:
        """Whether texts are sent one batch at a time, to find the one that crashes the server."""
        return bool(self._suspects) or any(
            isinstance(work, Batch) and work.crash_count > 0 and work.exclusive
            for work in self._in_flight
        )

    @property
    def lost(self) -> bool:
        """Whether the server is gone and nothing is in flight: time to reconnect."""
        return self._lost is not None and not self._in_flight

    @property
    def endpoint(self) -> Endpoint:
        """Where the work is sent."""
        if self.server is None:
            raise RuntimeError("attach was not called")
        return self.server

    def prepare(self) -> Steps[None]:
        """Prepare the texts; called once, before anything else.

        Raises:
            TextError: A text cannot be sent.
        """
        self._prepared = yield from prepare(
            self._texts,
            self._template,
            self._model,
            offset=self._offset,
            noun=self._noun,
            on_error=self._errors.__setitem__ if self._sets_aside else None,
        )
        self.finished = len(self._errors)
        head = ""
        if isinstance(self._template, Frame):
            head = in_template("", Frame(self._template.before, ""), self._model)
        self._lengths = Lengths(
            self._prepared,
            self._model,
            self._facts,
            self._settings.truncate,
            self._offset,
            self._noun,
            head=head,
            head_bytes=most_bytes(head, self._model),
            given=self._texts,
        )

    def result(self) -> Steps[Embedded]:
        """Return one row per text, in the caller's order, once the job is done."""
        self._on_done(self.finished)  # all may have come from the cache
        matrix = self._matrix
        if matrix is None:
            width = self._wanted or self._model.dimensions or 0
            matrix = np.empty((len(self._texts), width), np.float32)
        aside = list(self._errors)
        if aside:
            matrix[aside] = 1  # so that they can be cut
        matrix = yield from cut(matrix, min(self._wanted or matrix.shape[1], matrix.shape[1]))
        if aside:
            matrix[aside] = np.nan
        return Embedded(matrix, self._errors)

    def read_cache(self) -> None:
        """Take the vectors that the cache has. May read a disk, or ask its own server."""
        if self._cache is None:
            return
        asked = [index for index, given in enumerate(self._prepared.inputs) if given is not None]
        known, vectors = self._cache.recall([self._templated(index) for index in asked])
        found = [index for index, is_known in zip(asked, known, strict=True) if is_known]
        self.cached = len(found)
        if not found:
            return
        self._check_dimensions(vectors.shape[1])
        self._matrix = np.empty((len(self._texts), vectors.shape[1]), np.float32)
        self._put(found, vectors)

    def write_cache(self, work: Work, result: Result) -> None:
        """Have the cache store vectors that just came. May write to a disk."""
        if self._cache is None or not isinstance(work, Batch) or isinstance(result, Failure | list):
            return
        # The vector of a text that was cut is not the vector of the text.
        places = [
            place
            for place, index in enumerate(work.indices)
            if index not in self._lengths.shortened
        ]
        texts = [self._templated(work.indices[place]) for place in places]
        self._cache.keep(texts, result[places])

    def attach(self, endpoint: Endpoint) -> Steps[None]:
        """Send to ``endpoint`` from now on.

        Raises:
            TextError: It cannot be sent one of the texts.
            SettingError: It gives shorter vectors than the caller wants.
            ServerMismatchError: It gives vectors of another length than the cache or the server
                before.
        """
        before, self.server = self.server, endpoint
        if before is not None and before.dimensions != endpoint.dimensions:
            raise ServerMismatchError(
                f"The server at {endpoint.url} gives {endpoint.dimensions} dimensions, "
                f"but the one before it gave {before.dimensions}. Embed all texts again with one "
                f"of them."
            )
        if before is None:
            self._check_dimensions(endpoint.dimensions)
            if self._matrix is None:
                width = self._settings.dimensions or endpoint.dimensions
                self._matrix = np.empty((len(self._texts), width), np.float32)
            elif (cached := self._matrix.shape[1]) != endpoint.dimensions:
                raise ServerMismatchError(
                    f"The cache has vectors of {cached} dimensions for this model, but "
                    f"{endpoint.model} at {endpoint.url} gives {endpoint.dimensions}. Check which "
                    f"of them is of another model, or use another cache."
                )
            yield from self._lengths.begin(endpoint)
            # Batches are made as they are taken, so not before the over-long texts are cut.
            self._fresh = make_batches(
                self._prepared,
                endpoint.batch_size(self._settings.batch_size),
                most_tokens(endpoint),
            )
        if before is not None and not lengths.takes_ids(endpoint):
            self._restore_texts()
        for problem in (yield from self._lengths.find_ids(endpoint)):
            self._skip(problem.index - self._offset, problem)
        if self._lost is not None:
            self._lost = None
            self._recoveries_without_progress += 1

    def take(self) -> Work | None:
        """Return what to send now; None while nothing may be sent."""
        if self._lost is not None or len(self._in_flight) >= self.most_in_flight:
            return None
        work = self._next()
        if work is not None:
            self._in_flight.add(work)
        return work

    def request(self, work: Work) -> Request:
        """Return the request for ``work``."""
        endpoint = self.endpoint
        if isinstance(work, TokenCount):
            text = self._lengths.text_of(work) or ""
            special = self._model.special_tokens
            return tokenizer.tokenize_request(
                endpoint.server, endpoint.model, text, special, adds=not endpoint.labels
            )
        inputs = [self._prepared.inputs[index] for index in work.indices]
        given = lengths.as_taken([i for i in inputs if i is not None], endpoint, self._model)
        dimensions = None
        if self._settings.server_dimensions and endpoint not in self._facts.uncut:
            dimensions = self._settings.dimensions
        (self._cut_by_server.discard if dimensions is None else self._cut_by_server.add)(work)
        return row_formats.request(endpoint, given, dimensions, self._tokens(work))

    def settle(self, work: Work, outcome: Outcome | Embeddings) -> Steps[Result]:
        """Record the outcome of ``work``, and return what it means.

        Raises:
            RequestError: The job cannot be done; what is in flight is not waited for.
        """
        result = yield from self._read(work, outcome)
        self._in_flight.remove(work)
        if isinstance(result, ServerLost):
            self._on_server_lost(work, result)
        elif isinstance(work, TokenCount):
            self._on_count(work.index, result)
        elif isinstance(result, TooLong):
            self._on_too_long(work, result)
        elif isinstance(result, RequestError):
            self._on_refusal(work, result)
        else:
            self._put(work.indices, result)  # type: ignore[arg-type]
            self._recoveries_without_progress = 0
        return result

    def report(self) -> None:
        """Report how many texts are finished, after their vectors were stored."""
        self._on_done(self.finished)

    def _read(self, work: Work, outcome: Outcome | Embeddings) -> Steps[Result]:
        endpoint = self.endpoint
        try:
            if isinstance(outcome, Outcome):
                body = wire.body_or_failure(outcome, endpoint.url, endpoint.task)
                if not isinstance(body, bytes):
                    return body
                if isinstance(work, TokenCount):
                    return tokenizer.read_whole(endpoint, body, self._model)
                count, tokens = len(work.indices), self._tokens(work)
                outcome = yield from row_formats.read(endpoint, body, count, tokens)
            if (failure := self._facts.check_model(endpoint, outcome.model)) is not None:
                return failure
            self._usage.tokens += outcome.tokens or 0
            self.tokens += outcome.tokens or 0
            return (
                yield from row_formats.decode(
                    endpoint,
                    outcome.vectors,
                    self._settings.dimensions,
                    cut_by_server=self._settings.server_dimensions,
                )
            )
        except RequestError as error:
            return error

    def _tokens(self, batch: Batch) -> int | None:
        counts_exactly = self.endpoint.counts_exactly
        return self._prepared.tokens(batch.indices, counts_exactly=counts_exactly)

    def _put(self, indices: Sequence[int], vectors: Floats) -> None:
        if self._matrix is None:
            raise RuntimeError("attach was not called")
        self._matrix[list(indices)] = vectors
        self.finished += len(indices)
        for index in indices:
            self._prepared.skip(index)  # another server may not take it as this one did

    def _templated(self, index: int) -> str:
        given = self._prepared.inputs[index]
        if isinstance(given, str):
            return given
        return in_template(self._texts[index], self._template, self._model)

    def _restore_texts(self) -> None:
        """Count the texts again that token ids replaced: this server takes none."""
        for index, given in enumerate(self._prepared.inputs):
            if isinstance(given, list):
                self._prepared.inputs[index] = self._templated(index)
                self._lengths.shortened.discard(index)
                self._lengths.to_count.append(TokenCount(index))

    def _check_dimensions(self, native: int) -> None:
        if self._wanted is not None and self._wanted > native:
            raise SettingError(
                f"dimensions={self._wanted} is more than the {native} that {self._model.name} has. "
                f"Ask for at most {native}."
            )

    def _next(self) -> Work | None:
        if any(isinstance(work, TokenCount) and work.is_first for work in self._in_flight):
            return None
        while self._lengths.to_count:
            count = self._lengths.to_count.popleft()
            if self._lengths.text_of(count) is not None:
                return count
        if any(isinstance(work, TokenCount) or work.exclusive for work in self._in_flight):
            return None
        if self._suspects:
            if self._in_flight:
                return None
            if (suspect := self._next_of(self._suspects)) is not None:
                return suspect
        batch = self._next_of(self._again)
        while batch is None and (fresh := next(self._fresh, None)) is not None:
            self._again.append(fresh)  # it was made for the first server
            batch = self._next_of(self._again)
        if batch is not None and len(self._texts) == 1:
            return replace(batch, exclusive=True)
        return batch

    def _next_of(self, batches: deque[Batch]) -> Batch | None:
        most = self.endpoint.batch_size(self._settings.batch_size)
        while batches:
            batch = batches.popleft()
            # Texts may have been set aside or cut in the meantime; a cut one is sent as ids. This
            # server may take fewer texts in a request than the one that the batch was made for.
            parts = [
                indices[start : start + most]
                for indices in (self._of_kind(batch, str), self._of_kind(batch, list))
                for start in range(0, len(indices), most)
            ]
            for part in reversed(parts):
                tokens = batch.tokens * len(part) // len(batch.indices)
                batches.appendleft(replace(batch, indices=part, tokens=tokens))
            if parts:
                return batches.popleft()
        return None

    def _of_kind(self, batch: Batch, kind: type) -> tuple[int, ...]:
        return tuple(i for i in batch.indices if isinstance(self._prepared.inputs[i], kind))

    def _skip(self, index: int, error: TextError) -> None:
        if not self._sets_aside:
            raise error
        self._prepared.skip(index)
        self._errors[index] = error
        self.finished += 1

    def _skip_refused(self, index: int, error: RejectedError) -> None:
        place = self._offset + index
        named = f"{self._noun.capitalize()} {place} ({excerpt(self._texts[index])})"
        self._skip(index, TextError(f"{named} was refused: {error}", index=place))

    def _skip_too_large(self, index: int) -> None:
        place, size = self._offset + index, len(self._texts[index])
        self._skip(
            index,
            TextTooLongError(
                f"{self._noun.capitalize()} {place} ({excerpt(self._texts[index])}) has {size} "
                f"characters, and the server refused a request with nothing else as too large "
                f"(status 413). Split it.",
                index=place,
                tokens=None,
                limit=None,
            ),
        )

    def _on_count(self, index: int, result: Result) -> None:
        indices = self._lengths.counted(index)
        try:
            for problem in self._lengths.record(self.endpoint, indices, result):
                self._skip(problem.index - self._offset, problem)
        except RejectedError as error:
            for equal in indices:
                if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                    self._skip_too_large(equal)
                elif error.status in _REFUSES and self._sets_aside:
                    self._skip_refused(equal, error)
                else:
                    raise

    def _on_refusal(self, batch: Batch, error: RequestError) -> None:
        if isinstance(error, RequestTimeoutError) and len(batch.indices) == 1:
            (index,) = batch.indices
            size = len(self._prepared.inputs[index] or "")
            unit = "characters" if isinstance(self._prepared.inputs[index], str) else "tokens"
            raise RequestTimeoutError(
                f"{error} The request was for {self._noun} {self._offset + index} of {size} {unit} "
                f"({excerpt(self._texts[index])}). If it is too much for the device, split it."
            ) from error
        if not isinstance(error, RejectedError):
            raise error
        if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(batch.indices) == 1:
            self._skip_too_large(batch.indices[0])
            return
        if error.status not in _REFUSES:
            raise error
        if batch in self._cut_by_server:
            # Native vectors are requested then, and cut here.
            self._facts.uncut.add(self.endpoint)
            self._again.append(batch)
        elif not self._sets_aside:
            raise error
        elif len(batch.indices) > 1:
            self._again.extendleft(batch.halves(exclusive=batch.exclusive))
        else:
            self._skip_refused(batch.indices[0], error)

    def _on_too_long(self, batch: Batch, refused: TooLong) -> None:
        try:
            again = self._lengths.count_again(self.endpoint, batch.indices, refused.limit)
        except TextError as error:
            self._skip(error.index - self._offset, error)
            again = True
        if again:
            self._again.appendleft(batch)
        elif len(batch.indices) == 1:
            (index,) = batch.indices
            tokens, limit = refused.tokens, refused.limit
            self._skip(index, self._lengths.error(self.endpoint, index, tokens, limit))
        else:
            # The server does not say which text it means. In front, so that the error comes soon.
            self._again.extendleft(batch.halves(exclusive=batch.exclusive))

    def _on_server_lost(self, work: Work, lost: ServerLost) -> None:
        if not self._can_reconnect or not (self._restarts or lost.changed):
            raise lost.error
        if self._recoveries_without_progress >= MAX_RECOVERIES_WITHOUT_PROGRESS:
            raise ServerUnavailableError(
                f"The server was lost {self._recoveries_without_progress + 1} times in a row "
                f"before it had returned a result: {lost.error} See its log: emberd logs."
            ) from lost.error
        self._lost = lost.error
        if isinstance(work, TokenCount):
            self._lengths.to_count.append(work)
        elif not lost.reached:
            # The server never saw these texts, so they did not crash it.
            is_suspect = work.exclusive and len(self._texts) > 1
            (self._suspects if is_suspect else self._again).append(work)
        else:
            self._on_crash(replace(work, crash_count=work.crash_count + 1))

    def _on_crash(self, batch: Batch) -> None:
        if batch.crash_count < _SUSPECT_CRASHES:
            self._again.append(batch)
        elif len(batch.indices) > 1:
            self._suspects.extend(batch.halves(exclusive=True))
            self._recoveries_without_progress = 0  # fewer texts are suspected: that is progress
        elif not batch.exclusive:
            self._suspects.append(replace(batch, exclusive=True))
        else:
            (index,) = batch.indices
            place = self._offset + index
            error = PoisonTextError(
                f"The server crashed {batch.crash_count} times while it processed "
                f"{self._noun} {place} ({excerpt(self._texts[index])}), the last time as the only "
                f"request. Omit this {self._noun}, and report it with the server's log (emberd "
                f"logs).",
                index=place,
            )
            self._skip(index, error)
