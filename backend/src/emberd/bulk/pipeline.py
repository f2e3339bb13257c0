"""A bulk job: cut the input into units, read, embed, write parts, mark units, assemble the output.

An executor embeds the units: ``LocalExecutor`` in this process, one unit after another, or
``emberd.ray.executor.RayExecutor`` on a cluster. Everything else is the same for both, and so is
the output. A job that ends early is continued by the same request, with either executor.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, Final

from emberd.bulk import assembly, checkpoint, readers
from emberd.bulk import units as work_units
from emberd.bulk.assembly import OutputFormat
from emberd.bulk.checkpoint import JobState, Manifest, RunCheck
from emberd.bulk.feed import Embed, embed_chunks
from emberd.bulk.input_files import InputKind, Inputs
from emberd.bulk.parts import PartStore, PartWriter, place_parts
from emberd.bulk.units import Cursor, InputReader
from emberd.errors import EmberdError, SettingError
from emberd.system import atomic_file

SAVE_EVERY_S: Final = 30.0
"""How often a local run saves a part: at most this much work is lost when it is killed."""

RESUME_HINT: Final = "Finished work was kept: run the same command again to continue."
"""Advice when a run ends early."""

_UNIT_START: Final = (0, Cursor())

NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk."""


class Role(StrEnum):
    """Role of the texts."""

    DOCUMENT = "document"
    QUERY = "query"


class BadRows(StrEnum):
    """What happens to rows that cannot be embedded."""

    SET_ASIDE = "set-aside"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """A bulk job, as requested.

    Attributes:
        inputs: The input files.
        output: File or folder to write.
        output_format: Its format.
        identity: What the vectors are made with; a run only continues a job with the same one.
        role: Role of the texts.
        column: Column or field of the texts.
        embedding_column: Column or field of the vectors.
        truncate: Whether over-long texts are cut; only compared when a run continues.
        restart: Delete what an earlier run did.
        bad_rows: What happens to rows that cannot be embedded.
        save_every_s: How often a local run saves a part.
    """

    inputs: Inputs
    output: Path
    output_format: OutputFormat
    identity: str
    role: str = Role.DOCUMENT
    column: str = "text"
    embedding_column: str = "embedding"
    truncate: bool = False
    restart: bool = False
    bad_rows: str = BadRows.SET_ASIDE
    save_every_s: float = SAVE_EVERY_S

    @property
    def is_jsonl(self) -> bool:
        """Whether rows are lines of JSON."""
        return self.inputs.kind is InputKind.JSONL

    @property
    def rejects_path(self) -> Path:
        """File of the rows that could not be embedded."""
        return self.output.with_name(self.output.name + ".rejects.jsonl")

    @property
    def row_numbers_path(self) -> Path:
        """File of the row numbers that belongs to an array, which has no other column."""
        return self.output.with_name(f"{self.output.name.removesuffix('.npy')}.rows.npy")


@dataclass(frozen=True, slots=True)
class BulkProgress:
    """Progress of a run.

    Attributes:
        phase: ``"embedding"`` or ``"assembling"``.
        done: How much of ``total`` is done, by earlier runs too.
        total: All of the work.
        measure: What ``done`` and ``total`` count.
        rows: Number of rows that this run has embedded or rejected.
        before: How much of ``done`` earlier runs did.
    """

    phase: str
    done: int
    total: int
    measure: str
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


Connect = Callable[[], tuple[Embed, int]]
"""Returns what embeds and the length of its vectors; called when there is something to embed."""

Watch = Callable[[BulkProgress], None]

OnRows = Callable[[int, int], None]
"""Called with how many rows, and how much of the input, have been done since the last call."""


def open_reader(request: BulkRequest) -> InputReader:
    """Return the reader of the input, which checks it.

    Raises:
        SettingError: A column does not exist or cannot be used.
        EmberdError: A file cannot be read.
    """
    return readers.open_inputs(
        request.inputs,
        request.column,
        request.embedding_column,
        keeps_rows=request.output_format.keeps_rows,
    )


def run(
    request: BulkRequest, reader: InputReader, executor: Executor, watch: Watch | None = None
) -> BulkSummary:
    """Do the job, or the rest of it.

    Args:
        request: The job.
        reader: The result of ``open_reader``.
        executor: What embeds the units.
        watch: Called with the progress.

    Raises:
        SettingError: Another job was begun for this output, or the input changed.
        EmberdError: A row cannot be embedded and ``bad_rows`` is ``"fail"``; the disk is full; the
            server failed; or another run writes this output. Finished work is kept.
    """
    with disk_errors(request.output), checkpoint.work_folder(request.output) as folder:
        try:
            job = _Job(request, reader, folder, watch or _ignore)
        except SettingError:
            if not checkpoint.has_manifest(folder):
                checkpoint.remove(folder)
            raise
        if job.manifest.state is not JobState.ASSEMBLED:
            job.embed(executor)
            job.assemble()
        return job.publish()


def _ignore(progress: BulkProgress) -> None:
    """Do nothing."""


@contextmanager
def disk_errors(output: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that says what to do.

    Raises:
        EmberdError: The disk of ``output`` is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise EmberdError(
            f"{output} could not be written: {error.strerror}. Finished work was kept: free some "
            f"space, and run the same command again to continue."
        ) from error


class _Job:
    """A job and its work folder."""

    def __init__(
        self, request: BulkRequest, reader: InputReader, folder: Path, watch: Watch
    ) -> None:
        self._request = request
        self._reader = reader
        self._folder = folder
        self._watch = watch
        self._rows = 0
        self.manifest = self._start_or_continue()
        self._store = PartStore(folder)
        self._before = sum(parts[-1].stop for parts in self._store.parts().values() if parts)

    def embed(self, executor: Executor) -> None:
        """Embed the units that are not done."""
        units, done = self._reader.units, self._store.done()
        missing = [unit for unit in range(len(units)) if unit not in done]
        if missing:
            parts = self._store.parts()
            for part in chain.from_iterable(parts.values()):
                part.schema()  # a damaged one is reported now, and not after hours
            before = sum(units[unit].size for unit in done)
            before += sum(parts[unit][-1].after().size for unit in missing if parts.get(unit))
            task = UnitTask(self._request, self._reader, self._folder.absolute(), self.manifest.run)
            try:
                executor(task, missing, self._progress(before))
            except (EmberdError, KeyboardInterrupt) as error:
                error.add_note(RESUME_HINT)
                raise
            done = self._store.done()
        if len(done) < len(units):
            raise EmberdError(f"{len(done)} of {len(units)} units are done. {RESUME_HINT}")
        self.manifest.check_unchanged(self._request.inputs.stamps())
        self.manifest.rows = sum(each.rows for each in done.values())
        self.manifest.save(self._folder, JobState.EMBEDDED)

    def assemble(self) -> None:
        """Write the output into the work folder."""
        request, staged = self._request, self._staged
        parts = place_parts(self._store, len(self._reader.units), self._is_continued)
        checkpoint.delete(staged)
        staged.mkdir()
        self.manifest.rejected = assembly.write_rejects(parts, staged / request.rejects_path.name)
        if not request.output_format.keeps_rows:
            assembly.write_row_numbers(parts, staged / request.row_numbers_path.name)

        def on_part(done: int) -> None:
            self._watch(BulkProgress("assembling", done, len(parts), "parts", self._rows))

        assembly.assemble(
            request.output_format,
            parts,
            staged / request.output.name,
            is_jsonl=request.is_jsonl,
            column=request.column,
            on_part=on_part,
        )
        atomic_file.sync_folder(staged)
        self.manifest.save(self._folder, JobState.ASSEMBLED)

    def publish(self) -> BulkSummary:
        """Move the output to its place, its other files first, and delete the work folder."""
        request = self._request
        # If the output itself has been moved, an earlier run ended while it cleaned up.
        if (self._staged / request.output.name).exists():
            for path in (request.rejects_path, request.row_numbers_path, request.output):
                self._publish_file(path)
        checkpoint.remove(self._folder)
        rows, rejected = self.manifest.rows, self.manifest.rejected
        return BulkSummary(rows - rejected, rejected, self._before)

    def _publish_file(self, path: Path) -> None:
        staged = self._staged / path.name
        if staged.exists():
            atomic_file.move(staged, path)
        elif path == self._request.rejects_path and not self.manifest.rejected:
            path.unlink(missing_ok=True)  # of an earlier output

    @property
    def _staged(self) -> Path:
        return self._folder / checkpoint.STAGED

    def _progress(self, before: int) -> OnRows:
        total, done = sum(unit.size for unit in self._reader.units), before

        def on_rows(rows: int, size: int) -> None:
            nonlocal done
            done += size
            self._rows += rows
            measure = self._reader.measure
            self._watch(BulkProgress("embedding", done, total, measure, self._rows, before))

        return on_rows

    def _is_continued(self, unit: int) -> bool:
        return self._reader.units[unit].slices[0].start > 0

    def _start_or_continue(self) -> Manifest:
        """Return the manifest of the job in the work folder, or of a new one."""
        wanted = Manifest(self._parameters(), self._request.inputs.stamps())
        found = None if self._request.restart else checkpoint.load_manifest(self._folder)
        if found is not None and self._is_published(found):
            if self._request.output.exists() and not found.differences(wanted):
                return found
            found = None
        self._check_folder_is_empty()
        if found is None or not PartStore(self._folder).parts():
            self._start(wanted)
            return wanted
        if differences := found.differences(wanted):
            raise SettingError(
                f"{self._request.output} was begun with other parameters: "
                f"{'; '.join(differences)}. Run the command with those to continue, or pass "
                f"--restart to start again and lose what was done."
            )
        found.run = wanted.run
        found.save(self._folder, found.state)
        return found

    def _parameters(self) -> dict[str, Any]:
        request = self._request
        return {
            "identity": request.identity,
            "role": str(request.role),
            "column": request.column,
            "embedding column": request.embedding_column,
            "output": str(request.output_format),
            "truncate": request.truncate,
            "units": work_units.unit_rule(),
        }

    def _is_published(self, found: Manifest) -> bool:
        """Return whether the output was moved to its place; the user may have moved it since."""
        staged = self._staged / self._request.output.name
        return found.state is JobState.ASSEMBLED and not staged.exists()

    def _check_folder_is_empty(self) -> None:
        output = self._request.output
        is_folder = self._request.output_format is OutputFormat.FOLDER
        if is_folder and output.exists() and any(output.iterdir()):
            raise SettingError(
                f"The folder {output} exists and is not empty. Remove it, or pass another --output."
            )

    def _start(self, wanted: Manifest) -> None:
        if checkpoint.has_manifest(self._folder):
            # If this run is killed while it deletes, the job must not pass for a finished one.
            wanted.save(self._folder, JobState.STARTED)
            checkpoint.clear(self._folder)
        wanted.save(self._folder, JobState.STARTED)


# ---------------------------------------------------------------- embedding units


@dataclass(frozen=True, slots=True)
class UnitTask:
    """Embeds units of a job; can be pickled, for workers.

    Attributes:
        request: The job.
        reader: Reader of the input.
        folder: The work folder, an absolute path.
        run: Id of the run.
    """

    request: BulkRequest
    reader: InputReader
    folder: Path
    run: str

    def store(self) -> PartStore:
        """Return the parts of the job; nothing is written when a later run has begun."""
        return PartStore(self.folder, RunCheck(self.folder, self.run))

    def embed(
        self,
        units: Sequence[int],
        embed: Embed,
        dimensions: int,
        save_every_s: float,
        on_rows: OnRows,
    ) -> None:
        """Embed what is missing of ``units`` and mark them as done.

        Args:
            units: Indices of the units.
            embed: What embeds.
            dimensions: Length of its vectors.
            save_every_s: How often to save a part.
            on_rows: Called after each chunk.

        Raises:
            SettingError: Parts of an earlier run have vectors of another length.
            EmberdError: A row cannot be embedded and must be, or the server failed. What is
                finished is saved.
        """
        parts = self.store().parts()
        first = next((found[0] for found in parts.values() if found), None)
        self._check_dimensions(first.dimensions() if first else dimensions, dimensions)
        starts = {
            unit: (found[-1].stop, found[-1].after()) if (found := parts.get(unit)) else _UNIT_START
            for unit in units
        }
        chunks = chain.from_iterable(
            work_units.unit_chunks(self.reader, unit, starts[unit][1]) for unit in units
        )
        size = 0
        writer: PartWriter | None = None
        try:
            for chunk, outcomes in embed_chunks(chunks, embed, save_every_s):
                if writer is None:
                    writer = self._writer(chunk.unit, *starts[chunk.unit], dimensions, save_every_s)
                    size = writer.after.size
                writer.add(chunk, outcomes)
                if chunk.is_last:
                    finished, writer = writer, None
                    finished.finish()
                elif writer.is_due:
                    writer.save()
                size_now = self.reader.units[chunk.unit].size if chunk.is_last else chunk.after.size
                on_rows(len(outcomes), size_now - size)
                size = size_now
        except (EmberdError, KeyboardInterrupt):
            if writer is not None and not writer.is_empty:
                writer.save()
            raise

    def _writer(
        self, unit: int, start: int, after: Cursor, dimensions: int, save_every_s: float
    ) -> PartWriter:
        request = self.request

        def on_reject(location: Mapping[str, Any], reason: str) -> None:
            if request.bad_rows == BadRows.FAIL:
                raise self._row_error(unit, location, reason)

        return PartWriter(
            self.store(),
            unit,
            start,
            after,
            self.reader.empty() if request.output_format.keeps_rows else None,
            request.embedding_column,
            dimensions,
            request.identity,
            is_jsonl=request.is_jsonl,
            save_every_s=save_every_s,
            on_reject=on_reject,
        )

    def _row_error(self, unit: int, location: Mapping[str, Any], reason: str) -> EmberdError:
        location = dict(location)
        if "line" in location:
            location["line"] += work_units.lines_before(self.reader.units[unit].slices[0])
        place = ", ".join(f"{name} {value}" for name, value in location.items())
        return EmberdError(
            f"A row cannot be embedded ({place}): {reason} Fix the row, or pass --bad-rows "
            f"{BadRows.SET_ASIDE} to continue without it."
        )

    def _check_dimensions(self, before: int, now: int) -> None:
        if before != now:
            raise SettingError(
                f"{self.request.output} was begun with vectors of {before} dimensions, and the "
                f"server returns {now} now. Pass --restart to start again."
            )


Executor = Callable[[UnitTask, Sequence[int], OnRows], None]
"""Embeds units: the parts of each are written, and it is marked as done.

It may raise ``EmberdError``: a unit could not be embedded, and what is finished is kept.
"""


@dataclass(frozen=True, slots=True)
class LocalExecutor:
    """Embeds units in this process, one after another.

    Attributes:
        connect: Returns what embeds.
    """

    connect: Connect

    def __call__(self, task: UnitTask, units: Sequence[int], on_rows: OnRows) -> None:
        """Embed ``units``; raises as ``UnitTask.embed``."""
        embed, dimensions = self.connect()
        on_rows(0, 0)  # the time until here is not the time of the first rows
        task.embed(units, embed, dimensions, task.request.save_every_s, on_rows)
