"""A bulk job: cut the input into units, read, embed, write parts, mark units, assemble the output.

An executor embeds the units: ``local_executor`` in this process, one unit after another, or
``emberd.ray.executor.ray_executor`` on a cluster. Everything else is the same for both, and so is
the output. A job that ends early is continued by the same request, with either executor.
"""

from __future__ import annotations

import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

from emberd.bulk import assembly, checkpoint, units
from emberd.bulk.checkpoint import Manifest
from emberd.bulk.parts import PartStore, PartWriter, place_parts
from emberd.bulk.request import BadRows, BulkRequest, OutputFormat
from emberd.bulk.units import CHUNK_ROWS, Chunk, Cursor, InputReader, Outcome, RowError
from emberd.errors import EmberdError, SettingError, TextError
from emberd.system import atomic_file, os_errors

RESUME_HINT: Final = "Finished work was kept: run the same command again to continue."
"""Advice when a run ends early."""

# From this many texts on, a call of ``Embed`` continues to the end of the input: what it reads
# ahead is not more than that.
_UNLIMITED_TEXTS: Final = 16_384
# The first texts may be short or cached, and say little about the speed of later ones.
_GROWTH: Final = 8
_MIN_S: Final = 1e-6

# Rows without a text wait for the next row that has one; at most this many.
_MAX_WAITING_ERRORS: Final = 65_536
# Rows with a text wait for its vector; at most about this many bytes of them.
_MAX_WAITING_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """Progress of a run.

    Attributes:
        phase: ``"embedding"`` or ``"assembling"``.
        done: How much of ``total`` is done, by earlier runs too.
        total: All of the work.
        rows: Number of rows that this run has embedded or rejected.
        before: How much of ``done`` earlier runs did.
    """

    phase: str
    done: int
    total: int
    rows: int
    before: int = 0


@dataclass(frozen=True, slots=True)
class BulkSummary:
    """Result of a job.

    Attributes:
        embedded: Number of rows in the output.
        rejected: Number of rows that could not be embedded.
        before: Number of rows, of both kinds, that earlier runs did.
    """

    embedded: int
    rejected: int
    before: int


Watch = Callable[[BulkProgress], None]

Embed = Callable[[Iterable[str]], Iterator[Any]]
"""Yields the vector of each text in order, or the ``TextError`` of one that cannot be embedded."""

Connect = Callable[[], tuple[Embed, int]]
"""Returns what embeds and the length of its vectors; called when there is something to embed."""

OnRows = Callable[[int, int], None]
"""Called with how many rows, and how much of the input, have been done since the last call."""


@os_errors.raised_as(EmberdError, RESUME_HINT)
def run(
    request: BulkRequest, reader: InputReader, executor: Executor, watch: Watch | None = None
) -> BulkSummary:
    """Do the job, or the rest of it.

    Args:
        request: The job.
        reader: The result of ``readers.open_reader``.
        executor: What embeds the units.
        watch: Called with the progress.

    Raises:
        SettingError: Another job was begun for this output, or the input changed.
        EmberdError: A row cannot be embedded and ``bad_rows`` is ``"fail"``; the disk is full; the
            server failed; or another run writes this output. Finished work is kept.
    """
    with checkpoint.work_folder(request.output) as folder:
        try:
            job = _Job(request, reader, folder, watch or (lambda _: None))
        except SettingError:
            if not checkpoint.has_manifest(folder):
                checkpoint.remove(folder)
            raise
        if not job.manifest.is_assembled:
            job.embed(executor)
            job.assemble()
        return job.publish()


class _Job:
    """A job and its work folder."""

    def __init__(
        self, request: BulkRequest, reader: InputReader, folder: Path, watch: Watch
    ) -> None:
        self._request = request
        self._reader = reader
        self._folder = folder
        self._staged = folder / checkpoint.STAGED
        self._watch = watch
        self._rows = 0
        self._store = PartStore(folder)
        self.manifest = self._start_or_continue()
        self._before = sum(parts[-1].stop for parts in self._store.parts().values() if parts)

    def embed(self, executor: Executor) -> None:
        """Embed the units that are not done."""
        all_units, done = self._reader.units, self._store.done()
        missing = [unit for unit in range(len(all_units)) if unit not in done]
        if missing:
            parts = self._store.parts()
            for part in chain.from_iterable(parts.values()):
                part.schema()  # a damaged one is reported now, and not after hours
            total = sum(unit.size for unit in all_units)
            before = sum(all_units[unit].size for unit in done)
            before += sum(parts[unit][-1].after().size for unit in missing if parts.get(unit))
            size_done = before

            def on_rows(rows: int, size: int) -> None:
                nonlocal size_done
                size_done += size
                self._rows += rows
                self._watch(BulkProgress("embedding", size_done, total, self._rows, before))

            task = UnitTask(self._request, self._reader, self._folder.absolute(), self.manifest.run)
            try:
                executor(task, missing, on_rows)
            except (EmberdError, KeyboardInterrupt) as error:
                error.add_note(RESUME_HINT)
                raise
            done = self._store.done()
        if len(done) < len(all_units):
            raise EmberdError(f"{len(done)} of {len(all_units)} units are done. {RESUME_HINT}")
        self.manifest.check_unchanged(self._request.inputs.stamps())
        self.manifest.rows = sum(each.rows for each in done.values())

    def assemble(self) -> None:
        """Write the output into the work folder."""
        request, staged = self._request, self._staged
        parts = place_parts(self._store, self._reader.units)
        if staged.exists():
            shutil.rmtree(staged)
        staged.mkdir()
        self.manifest.rejected = assembly.write_rejects(parts, staged / request.rejects_path.name)
        if not request.output_format.keeps_rows:
            assembly.write_row_numbers(parts, staged / request.row_numbers_path.name)

        def on_part(done: int) -> None:
            self._watch(BulkProgress("assembling", done, len(parts), self._rows))

        assembly.assemble(request, parts, staged / request.output.name, on_part)
        atomic_file.sync_folder(staged)
        self.manifest.is_assembled = True
        self.manifest.save(self._folder)

    def publish(self) -> BulkSummary:
        """Move the output to its place, its other files first, and delete the work folder."""
        request, rejected = self._request, self.manifest.rejected
        # If the output itself has been moved, an earlier run ended while it cleaned up.
        if (self._staged / request.output.name).exists():
            for path in (request.rejects_path, request.row_numbers_path, request.output):
                if (self._staged / path.name).exists():
                    atomic_file.move(self._staged / path.name, path)
                elif path == request.rejects_path and not rejected:
                    path.unlink(missing_ok=True)  # of an earlier output
        checkpoint.remove(self._folder)
        return BulkSummary(self.manifest.rows - rejected, rejected, self._before)

    def _start_or_continue(self) -> Manifest:
        """Return the manifest of the job in the work folder, or of a new one."""
        request, folder = self._request, self._folder
        parameters = {
            "identity": request.identity,
            "role": str(request.role),
            "column": request.column,
            "embedding column": request.embedding_column,
            "output": str(request.output_format),
            "truncate": request.truncate,
            "deterministic": request.deterministic,
            "units": [units.CUT_VERSION, units.UNIT_ROWS, units.UNIT_BYTES, units.UNIT_FILES],
        }
        wanted = Manifest(parameters, request.inputs.stamps())
        found = None if request.restart else checkpoint.load_manifest(folder)
        differences = found.differences(wanted) if found else []
        output = request.output
        if found and found.is_assembled and not (self._staged / output.name).exists():
            # The output was moved to its place; the user may have moved it since.
            if output.exists() and not differences:
                return found
            found = None
        is_folder = request.output_format is OutputFormat.FOLDER
        if is_folder and output.exists() and any(output.iterdir()):
            raise SettingError(
                f"The folder {output} exists and is not empty. Remove it, or pass another --output."
            )
        if found is None or not self._store.parts():
            if checkpoint.has_manifest(folder):
                # If this run is killed while it deletes, the job must not pass for a finished one.
                wanted.save(folder)
                checkpoint.clear(folder)
            wanted.save(folder)
            return wanted
        if differences:
            raise SettingError(
                f"{output} was started with different parameters: {'; '.join(differences)}. Run "
                f"the command with the original parameters to continue, or pass --restart to "
                f"discard the finished work."
            )
        found.run = wanted.run
        found.save(folder)
        return found


# ---------------------------------------------------------------- embedding units


@dataclass(frozen=True, slots=True)
class UnitTask:
    """Embeds units of a job; can be pickled, for workers.

    Attributes:
        request: The job.
        reader: Reader of the input.
        folder: The work folder, an absolute path.
        run: Id of the run; its workers write nothing when a later run has begun.
    """

    request: BulkRequest
    reader: InputReader
    folder: Path
    run: str

    def embed(
        self,
        missing: Sequence[int],
        embed: Embed,
        dimensions: int,
        save_every_s: float,
        on_rows: OnRows,
    ) -> None:
        """Embed what is missing of the units ``missing`` and mark them as done.

        Args:
            missing: Indices of the units.
            embed: What embeds.
            dimensions: Length of its vectors.
            save_every_s: How often to save a part.
            on_rows: Called after each chunk.

        Raises:
            SettingError: Parts of an earlier run have vectors of another length.
            EmberdError: A row cannot be embedded and must be, or the server failed. What is
                finished is saved.
        """
        store = PartStore(self.folder, partial(checkpoint.check_run, self.folder, self.run))
        parts = store.parts()
        first = next((found[0] for found in parts.values() if found), None)
        if first and (before := first.dimensions()) != dimensions:
            raise SettingError(
                f"{self.request.output} was started with vectors of {before} dimensions, but the "
                f"server returns {dimensions} now. Pass --restart to start again."
            )
        starts = {
            unit: (found[-1].stop, found[-1].after())
            if (found := parts.get(unit))
            else (0, Cursor())
            for unit in missing
        }
        chunks = chain.from_iterable(
            units.unit_chunks(self.reader, unit, starts[unit][1]) for unit in missing
        )
        size = 0
        empty = self.reader.empty()
        writer: PartWriter | None = None
        try:
            for chunk, outcomes in embed_chunks(chunks, embed, save_every_s):
                unit = chunk.unit
                if writer is None:
                    start, after = starts[unit]
                    writer = PartWriter(
                        store, self.request, empty, unit, start, after, dimensions, save_every_s
                    )
                    size = after.size
                if self.request.bad_rows == BadRows.FAIL:
                    self._refuse_bad_rows(chunk, outcomes)
                writer.add(chunk, outcomes)
                if chunk.is_last:
                    finished, writer = writer, None
                    finished.finish()
                elif writer.is_due:
                    writer.save()
                on_rows(len(outcomes), chunk.after.size - size)
                size = chunk.after.size
        except (EmberdError, KeyboardInterrupt):
            if writer is not None and writer.rows:
                writer.save()
            raise

    def _refuse_bad_rows(self, chunk: Chunk, outcomes: list[Outcome]) -> None:
        for index, outcome in enumerate(outcomes):
            if not isinstance(outcome, RowError):
                continue
            location = chunk.location(index)
            if "line" in location:
                first = self.reader.units[chunk.unit].slices[0]
                location["line"] += units.lines_before(first)
            place = ", ".join(f"{name} {value}" for name, value in location.items())
            raise EmberdError(
                f"A row cannot be embedded ({place}): {outcome.reason} Fix the row, or pass "
                f"--bad-rows {BadRows.SET_ASIDE} to continue without it."
            )


Executor = Callable[[UnitTask, Sequence[int], OnRows], None]
"""Embeds units: the parts of each are written, and it is marked as done.

It may raise ``EmberdError``: a unit could not be embedded, and what is finished is kept.
"""


def local_executor(connect: Connect) -> Executor:
    """Return an executor that embeds units in this process, one after another."""

    def embed_units(task: UnitTask, units: Sequence[int], on_rows: OnRows) -> None:
        embed, dimensions = connect()
        on_rows(0, 0)  # the time until here is not the time of the first rows
        task.embed(units, embed, dimensions, task.request.save_every_s, on_rows)

    return embed_units


# ---------------------------------------------------------------- chunks through what embeds


def embed_chunks(
    chunks: Iterable[Chunk], embed: Embed, save_every_s: float
) -> Iterator[tuple[Chunk, list[Outcome]]]:
    """Yield each chunk with the outcomes of its rows, in order.

    ``embed`` reads texts ahead, and their chunks wait for the vectors. It is called several times
    if it would otherwise read more than a slow server embeds in ``save_every_s`` seconds.
    """
    waiting = _WaitingChunks(iter(chunks))
    limit: float = CHUNK_ROWS if math.isfinite(save_every_s) else math.inf
    while not waiting.is_exhausted:
        begin_s = time.monotonic()
        with closing(embed(waiting.take_texts(limit))) as outcomes:  # type: ignore[type-var]
            yield from waiting.drain(outcomes)
        # The next call may read what can be saved in time, or all.
        seconds = max(time.monotonic() - begin_s, _MIN_S)
        wanted = save_every_s * waiting.taken / seconds
        if wanted >= _UNLIMITED_TEXTS and limit >= _UNLIMITED_TEXTS / _GROWTH:
            limit = math.inf
        else:
            limit = min(limit * _GROWTH, max(CHUNK_ROWS, wanted))


class _WaitingChunks:
    """Chunks whose texts were read and whose outcomes are not complete."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self.is_exhausted = False
        self.taken = 0
        self._chunks = chunks
        self._waiting: deque[Chunk] = deque()
        self._outcomes: list[Outcome] = []
        # Two counters: texts may be read in another thread than the one that receives vectors.
        self._bytes_taken = self._bytes_returned = 0

    def take_texts(self, limit: float) -> Iterator[str]:
        """Yield the texts of the next chunks, about ``limit``.

        Fewer if many rows have no text, or if the waiting rows are large.
        """
        errors = self.taken = 0
        for chunk in self._chunks:
            self._waiting.append(chunk)
            texts = [text for text in chunk.texts if not isinstance(text, RowError)]
            errors += len(chunk.texts) - len(texts)
            self.taken += len(texts)
            self._bytes_taken += chunk.rows.nbytes
            yield from texts
            waiting_bytes = self._bytes_taken - self._bytes_returned
            if (
                errors >= _MAX_WAITING_ERRORS
                or self.taken >= limit
                or waiting_bytes >= _MAX_WAITING_BYTES
            ):
                return
        self.is_exhausted = True

    def drain(self, outcomes: Iterator[Outcome]) -> Iterator[tuple[Chunk, list[Outcome]]]:
        """Yield the chunks that ``outcomes`` completes."""
        for outcome in outcomes:
            yield from self._complete()
            is_error = isinstance(outcome, TextError)
            self._outcomes.append(units.text_row_error(outcome) if is_error else outcome)
            yield from self._complete()
        yield from self._complete()
        if self._waiting:
            raise RuntimeError("fewer vectors were returned than there were texts")

    def _complete(self) -> Iterator[tuple[Chunk, list[Outcome]]]:
        while self._waiting:
            chunk, outcomes = self._waiting[0], self._outcomes
            while len(outcomes) < len(chunk.texts):
                text = chunk.texts[len(outcomes)]
                if not isinstance(text, RowError):
                    return
                outcomes.append(text)
            self._waiting.popleft()
            self._outcomes = []
            self._bytes_returned += chunk.rows.nbytes
            yield chunk, outcomes
