"""One bulk run: begun or gone on with, to its end, with nothing lost and nothing doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emberd.bulk import durable, feed, folders, manifest, outputs, parts
from emberd.bulk.feed import Embed
from emberd.bulk.gathering import Gathering
from emberd.bulk.inputs import Inputs, Kind
from emberd.bulk.json_rows import JsonRows
from emberd.bulk.manifest import Manifest
from emberd.bulk.outputs import Shape
from emberd.bulk.parquet_rows import ParquetRows
from emberd.bulk.rows import Cursor, Reader
from emberd.bulk.text_rows import TextRows
from emberd.errors import EmberdError, SettingError

SAVE_EVERY_S: Final = 30.0
"""How often what was done is saved: the most work that a kill can undo."""

GO_ON: Final = "What was done is kept: run the same command again to go on."
"""What to tell whoever sees a run end early."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done.

    Attributes:
        inputs: What is read.
        output: The file or folder that is written.
        shape: What it is.
        identity: What the vectors are made with; a run goes on with the same one alone.
        role: What the texts are: document or query.
        column: The column or field of the texts.
        added: The column or field of the vectors.
        truncate: Whether over-long texts are cut; here it is only remembered.
        restart: Forget what an earlier run has done.
        fails_on_bad_row: Stop at the first row that cannot be embedded, and set none aside.
        save_every_s: How often what was done is saved.
    """

    inputs: Inputs
    output: Path
    shape: Shape
    identity: str
    role: str
    column: str
    added: str
    truncate: bool = False
    restart: bool = False
    fails_on_bad_row: bool = False
    save_every_s: float = SAVE_EVERY_S

    @property
    def of_lines(self) -> bool:
        """Whether the rows are lines of JSON."""
        return self.inputs.kind is Kind.JSONL

    @property
    def rejects_path(self) -> Path:
        """Where the rows are that were set aside."""
        return self.output.with_name(self.output.name + ".rejects.jsonl")

    @property
    def rows_path(self) -> Path:
        """Where the numbers of the rows are, beside an array that has no other column."""
        return self.output.with_name(f"{self.output.name.removesuffix('.npy')}.rows.npy")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        doing: ``"embedding"`` or ``"assembling"``.
        done: How much of ``total``, earlier runs included.
        total: All there is.
        unit: What both count.
        rows: How many rows this run has embedded or set aside.
        before: How much an earlier run had done, in the same unit.
    """

    doing: str
    done: int
    total: int
    unit: str
    rows: int
    before: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of it.

    Attributes:
        embedded: Rows in the output.
        set_aside: Rows that are not, and stand among the rejects.
        before: How many of both an earlier run had done.
    """

    embedded: int
    set_aside: int
    before: int


Connect = Callable[[], tuple[Embed, int]]
"""Returns what embeds and the length of its vectors; called when there is something to embed."""

Watch = Callable[[Progress], None]


def reader(order: Order) -> Reader:
    """Return what reads the input of ``order``, which is checked by it.

    Raises:
        SettingError: A column is not there, or cannot be used.
        EmberdError: A file cannot be read.
    """
    files, kind = order.inputs.files, order.inputs.kind
    whole = order.shape.keeps_rows
    if kind is Kind.PARQUET:
        return ParquetRows(files, order.column, order.added, whole=whole)
    if kind is Kind.JSONL:
        return JsonRows(files, order.column, order.added if whole else None)
    return TextRows(files, order.added)


def run(order: Order, source: Reader, connect: Connect, watch: Watch) -> Summary:
    """Do what is ordered, or what is left of it.

    Args:
        order: What to do.
        source: What ``reader`` returned for it.
        connect: Called when there is something to embed.
        watch: Told how far it is.

    Raises:
        SettingError: Something else was begun, or the input changed meanwhile.
        EmberdError: A row cannot be embedded and must be, the disk is full, the server failed, or
            another run works on this output. What was done is kept.
    """
    with durable.room_for(order.output), folders.held(order.output) as folder:
        try:
            work = _Work(order, source, folder, watch)
        except SettingError:
            if not manifest.exists(folder):
                folders.removed(folder)
            raise
        if work.manifest.state != manifest.ASSEMBLED:
            work.embed(connect)
            work.assemble()
        return work.publish()


class _Work:
    """What is in the folder of parts, and what is still to be done."""

    def __init__(self, order: Order, source: Reader, folder: Path, watch: Watch) -> None:
        self._order = order
        self._source = source
        self._folder = folder
        self._watch = watch
        self._rows = 0
        self.manifest = self._begun()
        self._parts = parts.found(folder)
        self._before = self._parts[-1].stop if self._parts else 0

    def embed(self, connect: Connect) -> None:
        """Embed the rows that are in no part yet."""
        if self.manifest.state == manifest.EMBEDDED and self._before == self.manifest.rows:
            return
        start = self._parts[-1].after if self._parts else Cursor()
        chunks = self._source.chunks(start)
        embed, dimensions = connect()
        self._refuse_other_length(dimensions)
        gathering = self._gathering(dimensions)
        self._tell_rows(start, start)
        with self._kept(gathering):
            for chunk, outcomes in feed.embedded(chunks, embed, self._order.save_every_s):
                gathering.add(chunk, outcomes)
                self._rows += len(outcomes)
                if gathering.is_due:
                    self._save(gathering)
                self._tell_rows(start, chunk.after)
        if not gathering.is_empty or not self._parts:
            self._save(gathering)
        manifest.unchanged(self.manifest.inputs, self._order.inputs.stamps())
        self.manifest.rows = self._parts[-1].stop
        self.manifest.save(self._folder, manifest.EMBEDDED)

    def assemble(self) -> None:
        """Put the output together beside its place."""
        staged = self._staged
        folders.cleared(staged)
        staged.mkdir()
        set_aside = outputs.rejects(self._parts, staged / self._order.rejects_path.name)
        if not self._order.shape.keeps_rows:
            outputs.row_numbers(self._parts, staged / self._order.rows_path.name)
        outputs.assemble(
            self._order.shape,
            self._parts,
            staged / self._order.output.name,
            of_lines=self._order.of_lines,
            column=self._order.column,
            on_part=self._tell_part,
        )
        durable.sync(staged)
        self.manifest.set_aside = set_aside
        self.manifest.save(self._folder, manifest.ASSEMBLED)

    def publish(self) -> Summary:
        """Put the output in its place, what belongs to it first, and take the parts away."""
        order = self._order
        # Where the output itself has moved, a run before this one was ended while it cleared up.
        if (self._staged / order.output.name).exists():
            for path in (order.rejects_path, order.rows_path, order.output):
                self._place(path)
        folders.removed(self._folder)
        rows, set_aside = self.manifest.rows, self.manifest.set_aside
        return Summary(rows - set_aside, set_aside, self._before)

    def _refuse_other_length(self, dimensions: int) -> None:
        before = self._parts[0].dimensions if self._parts else dimensions
        if before != dimensions:
            raise SettingError(
                f"{self._order.output} was begun with vectors of {before} dimensions, and the "
                f"server gives {dimensions} now. Give --restart to begin anew."
            )

    def _place(self, path: Path) -> None:
        staged = self._staged / path.name
        if staged.exists():
            durable.move(staged, path)
        elif path == self._order.rejects_path and not self.manifest.set_aside:
            path.unlink(missing_ok=True)  # of an earlier output

    @property
    def _staged(self) -> Path:
        return self._folder / folders.STAGED

    def _begun(self) -> Manifest:
        """Return the manifest of what was begun, or that of a new beginning."""
        wanted = Manifest(self._asked(), self._order.inputs.stamps())
        begun = None if self._order.restart else manifest.load(self._folder)
        if begun is not None and self._is_placed(begun):
            if self._order.output.exists() and not begun.differences(wanted):
                return begun
            begun = None
        self._refuse_full_folder()
        if begun is None or not parts.found(self._folder):
            self._begin(wanted)
            return wanted
        if told := begun.differences(wanted):
            raise SettingError(
                f"{self._order.output} was begun otherwise: {'; '.join(told)}. Run the command as "
                f"it was to go on, or give --restart to begin anew and lose what was done."
            )
        return begun

    def _asked(self) -> dict[str, Any]:
        order = self._order
        return {
            "identity": order.identity,
            "role": order.role,
            "column": order.column,
            "embedding column": order.added,
            "output": str(order.shape),
            "truncate": order.truncate,
        }

    def _is_placed(self, begun: Manifest) -> bool:
        """Return whether the output was put in its place; it may have been moved on since."""
        staged = self._staged / self._order.output.name
        return begun.state == manifest.ASSEMBLED and not staged.exists()

    def _refuse_full_folder(self) -> None:
        output = self._order.output
        if self._order.shape is Shape.FOLDER and output.exists() and any(output.iterdir()):
            raise SettingError(
                f"The folder {output} is there already, and holds something. Remove it, or give "
                f"another --output."
            )

    def _begin(self, wanted: Manifest) -> None:
        if manifest.exists(self._folder):
            # Killed while it deletes, it must not pass for finished.
            wanted.save(self._folder, manifest.BEGUN)
            folders.emptied(self._folder)
        wanted.save(self._folder, manifest.BEGUN)

    def _gathering(self, dimensions: int) -> Gathering:
        order = self._order
        return Gathering(
            self._source.empty() if order.shape.keeps_rows else None,
            order.added,
            dimensions,
            of_lines=order.of_lines,
            start=self._before,
            identity=order.identity,
            save_every_s=order.save_every_s,
            fails_on_bad_row=order.fails_on_bad_row,
        )

    def _save(self, gathering: Gathering) -> None:
        part = gathering.commit(self._folder)
        self._parts.append(part)

    @contextmanager
    def _kept(self, gathering: Gathering) -> Iterator[None]:
        try:
            yield
        except (EmberdError, KeyboardInterrupt) as error:
            if not gathering.is_empty:
                self._save(gathering)
            error.add_note(GO_ON)
            raise

    def _tell_rows(self, start: Cursor, after: Cursor) -> None:
        total, unit = self._source.total, self._source.unit
        self._watch(Progress("embedding", after.units, total, unit, self._rows, start.units))

    def _tell_part(self, done: int) -> None:
        self._watch(Progress("assembling", done, len(self._parts), "parts", self._rows))
