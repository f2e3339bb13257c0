"""What a piece of work becomes: a part of the output, written whole or not at all.

::

    <output>/part-00000-00000.parquet            the rows of a piece, with their vectors
    <output>/_emberd/set-aside/part-….jsonl      its rows that cannot be embedded, and why
    <output>/_emberd/done/part-….json            that it is done: written last, and counted by it

Readers of Parquet pass over what begins with a line. A piece that is done twice, by a worker that
was believed dead or by a second run, is written twice under the same names, and is there once.
"""

from __future__ import annotations

import json
import os
import pickle
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from emberd.bulk import arrow, durable
from emberd.errors import EmberdError, SettingError
from emberd.ray import reading
from emberd.ray.batches import EmbedBatches
from emberd.ray.reading import Refused, Rows
from emberd.ray.units import Unit

FAILURE: Final = "failure"
"""The column of what a piece failed by; empty where it is done."""

_PLACE: Final = ("file", "row", "byte")
_JOB: Final = "job"
_OWN: Final = "_emberd"
_UNFINISHED: Final = ".part-"


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a piece of work.

    Attributes:
        rows: Rows that were embedded.
        set_aside: Rows that could not be.
    """

    rows: int
    set_aside: int


@dataclass(frozen=True, slots=True)
class Output:
    """The folder that a job writes to.

    Attributes:
        folder: Its path.
    """

    folder: Path

    @property
    def own(self) -> Path:
        """The folder of what is not rows."""
        return self.folder / _OWN

    @property
    def set_aside(self) -> Path:
        """The folder of the rows that could not be embedded."""
        return self.own / "set-aside"

    def part(self, name: str) -> Path:
        """Return the file of a piece's rows."""
        return self.folder / f"{name}.parquet"

    def mark(self, name: str) -> Path:
        """Return the file that says that a piece is done."""
        return self.own / "done" / f"{name}.json"

    @property
    def lock(self) -> Path:
        """The file that a run locks for as long as it lives."""
        return self.own / "lock"

    def make(self) -> None:
        """Make the folders.

        Raises:
            SettingError: The folder holds something that is none of ours.
        """
        if self.folder.exists() and not self.own.exists() and any(self.folder.iterdir()):
            raise SettingError(
                f"{self.folder} is there already, and holds something else. Give another --output."
            )
        for folder in self._folders:
            folder.mkdir(parents=True, exist_ok=True)

    def done(self, name: str) -> Done | None:
        """Return what became of a piece; None while it is not done."""
        try:
            return Done(**json.loads(self.mark(name).read_text()))
        except FileNotFoundError:
            return None

    def asked(self) -> dict[str, Any] | None:
        """Return what was asked for when the folder was begun; None when it is new."""
        try:
            asked: dict[str, Any] = json.loads(self._asked.read_text())
        except FileNotFoundError:
            return None
        return asked

    def note(self, asked: dict[str, Any]) -> None:
        """Keep what is asked for, under a name that no job before has had."""
        with replacing(self._asked) as file:
            file.write(json.dumps({**asked, _JOB: uuid.uuid4().hex}, indent=1).encode())

    @property
    def job(self) -> str | None:
        """The name of the job that the folder belongs to; None before there is one."""
        return (self.asked() or {}).get(_JOB)

    def begin(self, *, anew: bool) -> None:
        """Remove what killed workers left half written, and if ``anew`` all that was done.

        The caller knows that no other run works here.
        """
        for folder in self._folders:
            for path in folder.glob(f"{_UNFINISHED}*"):
                path.unlink(missing_ok=True)
        if anew:
            if before := self.asked():
                self.note(before)  # from now on, workers that are late move nothing here
            # What says that a piece is done, first: killed in between, it is done again.
            for folder in reversed(self._folders):
                for path in folder.glob("part-*"):
                    path.unlink()
            self._asked.unlink(missing_ok=True)

    @property
    def _asked(self) -> Path:
        return self.own / "asked.json"

    @property
    def _folders(self) -> tuple[Path, ...]:
        return self.folder, self.set_aside, self.own / "done"


class Writer:
    """Embeds and writes pieces of work: what an actor of a job does.

    Args:
        folder: The output.
        column: The column of texts.
        output: The column of vectors.
        job: The name of the job; when the folder belongs to another one, nothing is written.
        identity: What the vectors are made with; each part says it.
        batch_rows: Most rows that are embedded at once.
        fails_on_bad_row: Fail by a row that cannot be embedded, and set none aside.
        **given: What ``EmbedBatches`` takes.
    """

    def __init__(
        self,
        folder: str,
        column: str,
        output: str,
        *,
        job: str | None,
        identity: str,
        batch_rows: int,
        fails_on_bad_row: bool,
        **given: Any,
    ) -> None:
        self._output = Output(Path(folder))
        self._column = column
        self._added = output
        self._job = job
        self._identity = identity
        self._batch_rows = batch_rows
        self._fails = fails_on_bad_row
        self._embed = EmbedBatches(column, output=output, bad_rows="set-aside", **given)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do the piece that ``row`` holds.

        An error is returned, pickled: of one that is raised, Ray keeps the text alone, and puts it
        among pages of its own.
        """
        try:
            self._do(Unit(**{**row, "paths": tuple(row["paths"])}))
        except (EmberdError, OSError) as error:
            return {FAILURE: pickle.dumps(error)}
        return {FAILURE: b""}

    def _do(self, unit: Unit) -> None:
        read = reading.read(unit, self._column, self._added, self._batch_rows)
        done = self._write(unit, read)
        with replacing(self._output.mark(unit.name), self._still_ours) as file:
            file.write(json.dumps(asdict(done)).encode())

    def _write(self, unit: Unit, read: Iterable[Rows | Refused]) -> Done:
        aside: list[dict[str, Any]] = []
        rows = 0
        with _Part(self._output.part(unit.name), self._identity, self._still_ours) as part:
            for each in read:
                for good, bad in self._embedded(each):
                    aside += bad
                    self._refuse(aside)
                    if good is not None:
                        part.write(good)
                        rows += good.num_rows
        self._set_aside(unit, aside)
        return Done(rows, len(aside))

    def _embedded(self, read: Rows | Refused) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        if isinstance(read, Refused):
            yield None, [{**read.place, "reason": read.reason, "text": read.text}]
            return
        for table, places in _portions(read, self._batch_rows):
            yield _split(*self._embed.added_to(table), places, self._column)

    def _still_ours(self) -> None:
        """Refuse to go on for a job that another one has taken the folder from."""
        if self._output.job != self._job:
            raise EmberdError(
                f"{self._output.folder} was begun anew by another run, which does all pieces "
                f"itself. Wait for it, or give another --output."
            )

    def _refuse(self, aside: list[dict[str, Any]]) -> None:
        if aside and self._fails:
            place = ", ".join(
                f"{k} {aside[0][k]}" for k in ("file", "row", "byte") if k in aside[0]
            )
            raise EmberdError(
                f"{place}: {aside[0]['reason']} Mend the row, or give --bad-rows set-aside."
            )

    def _set_aside(self, unit: Unit, aside: list[dict[str, Any]]) -> None:
        path = self._output.set_aside / f"{unit.name}.jsonl"
        self._still_ours()
        if not aside:
            path.unlink(missing_ok=True)
            return
        with replacing(path, self._still_ours) as file:
            for row in aside:
                file.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")


class _Part:
    """A file of Parquet, with the columns of the first table; without a table there is none."""

    def __init__(self, path: Path, identity: str, check: Callable[[], None]) -> None:
        self._path = path
        self._identity = identity
        self._check = check
        self._open = ExitStack()
        self._writer: Any = None

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._open.__exit__(*raised)

    def write(self, table: Any) -> None:
        from pyarrow import parquet

        if self._writer is None:
            metadata = {**(table.schema.metadata or {}), arrow.IDENTITY_KEY: self._identity}
            schema = table.schema.with_metadata(metadata)
            file = self._open.enter_context(replacing(self._path, self._check))
            self._writer = self._open.enter_context(parquet.ParquetWriter(file, schema))
        self._writer.write_table(table)


@contextmanager
def replacing(path: Path, check: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of ``path`` when all of it is on the disk.

    Args:
        path: That place.
        check: Called right before; where it raises, what was there stays.
    """
    # Of a name that no other has: a worker that was believed dead may be writing the same piece.
    fresh = path.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check()
        durable.move(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _portions(read: Rows, rows: int) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    # One of no rows counts: a piece without rows has columns all the same.
    for first in range(0, max(1, read.table.num_rows), rows):
        yield read.table.slice(first, rows), read.places[first : first + rows]


def _split(
    table: Any, reasons: Mapping[int, str], places: list[dict[str, Any]], column: str
) -> tuple[Any, list[dict[str, Any]]]:
    import pyarrow

    texts = table[column]
    bad = [
        {**places[row], "reason": reason, "text": _shown(texts[row])}
        for row, reason in sorted(reasons.items())
    ]
    good = pyarrow.array([row not in reasons for row in range(table.num_rows)], pyarrow.bool_())
    return table.filter(good), bad


def _shown(text: Any) -> Any:
    try:
        return text.as_py()
    except UnicodeDecodeError:
        return text.as_buffer().to_pybytes().decode(errors="replace")
