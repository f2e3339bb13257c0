"""All pieces of a job, of which each run does those that are missing."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from emberd.bulk.inputs import Inputs
from emberd.bulk.job import GO_ON
from emberd.errors import EmberdError, SettingError
from emberd.ray import pools, reading, units
from emberd.ray.datasets import BATCH_ROWS, travelling
from emberd.ray.parts import FAILURE, Done, Output, Writer
from emberd.ray.units import Unit
from emberd.settings import Settings

# A block costs Ray some milliseconds; more than so many gain no evenness.
_MOST_BLOCKS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done.

    Attributes:
        inputs: The files to read; each node must see them.
        output: The folder of Parquet to write; each node must see it too.
        settings: Of the embedder. Its key stays here: nodes have their own, or none.
        column: The column of texts; what whole files become.
        added: The column of vectors.
        role: ``"document"`` or ``"query"``.
        fails_on_bad_row: Stop at a row that cannot be embedded, and set none aside.
        restart: Forget what an earlier run has done.
    """

    inputs: Inputs
    output: Path
    settings: Settings
    column: str = "text"
    added: str = "embedding"
    role: str = "document"
    fails_on_bad_row: bool = False
    restart: bool = False

    def asked(self) -> dict[str, Any]:
        """Return what must not differ when a run goes on."""
        return {
            "pieces": units.rule(),
            "inputs": self.inputs.stamps(),
            "column": self.column,
            "embedding column": self.added,
            "role": self.role,
            "truncate": self.settings.truncate,
            "identity": self.identity,
        }

    @property
    def identity(self) -> str:
        """What the vectors are made with."""
        from emberd.embedder import Embedder

        return Embedder().replace(**travelling(self.settings)).identity

    def for_writers(self) -> dict[str, Any]:
        """Return the keywords of ``Writer``."""
        return {
            "folder": str(self.output),
            "job": Output(self.output).job,
            "identity": self.identity,
            "column": self.column,
            "output": self.added,
            "role": self.role,
            "fails_on_bad_row": self.fails_on_bad_row,
            "batch_rows": BATCH_ROWS,
            **travelling(self.settings),
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run found and did.

    Attributes:
        rows: Rows that are embedded, those of earlier runs included.
        set_aside: Rows that could not be.
        set_aside_in: The folder where those are, one JSON object a line.
        fresh: Pieces that this run did.
        pieces: All pieces.
    """

    rows: int
    set_aside: int
    set_aside_in: Path
    fresh: int
    pieces: int


def run(order: Order) -> Summary:
    """Embed files into a folder of Parquet, on the cluster that Ray is connected to.

    A run that was killed is gone on with by the same order: what became of a piece is written
    whole, and not done again.

    Raises:
        SettingError: A value cannot be used, or the folder is of another job.
        EmberdError: Another run writes to the folder, or the job ended early; what is done is kept.
    """
    files = tuple(path.resolve() for path in order.inputs.files)
    order = replace(order, inputs=replace(order.inputs, files=files), output=order.output.resolve())
    reading.check_columns(order.inputs, order.column, order.added)
    there = Output(order.output)
    there.make()
    with _alone(there):
        there.begin(anew=order.restart)
        _agree(there, order.asked())
        pieces = units.cut(order.inputs)
        missing = [unit for unit in pieces if there.done(unit.name) is None]
        if missing:
            _do(missing, order)
        return _summary(there, pieces, len(missing))


def _do(missing: Sequence[Unit], order: Order) -> None:
    import ray

    blocks = min(len(missing), _MOST_BLOCKS)
    dataset = ray.data.from_items([asdict(unit) for unit in missing], override_num_blocks=blocks)
    write: Any = Writer  # Ray takes classes too, and its types say functions
    done = dataset.map(
        write,
        fn_constructor_kwargs=order.for_writers(),
        **pools.arguments(order.settings, most=len(missing)),
    )
    for row in done.iter_rows():
        if failure := row[FAILURE]:
            error: Exception = pickle.loads(failure)  # noqa: S301 - from our own workers
            error.add_note(GO_ON)
            raise error


def _agree(there: Output, asked: dict[str, Any]) -> None:
    """Note what was asked for; where that is noted already, check that it is the same.

    Raises:
        SettingError: It is not; what differs is named.
    """
    if (before := there.asked()) is None:
        there.note(asked)
    elif differing := [name for name, value in asked.items() if before.get(name) != value]:
        name = differing[0]
        raise SettingError(
            f"{there.folder} was begun with other {name}: {_told(name, before, asked)}. Give "
            f"another --output, or --restart to begin anew and lose what was done."
        )


def _told(name: str, before: dict[str, Any], asked: dict[str, Any]) -> str:
    if name != "inputs":
        return f"{before.get(name)!r}, and now {asked[name]!r}"
    was, now = before[name], asked[name]
    odd = sorted({stamp["path"] for stamp in (*was, *now) if stamp not in was or stamp not in now})
    return f"{odd[0] if odd else 'their order'} is new, gone or changed"


@contextmanager
def _alone(there: Output) -> Iterator[None]:
    from filelock import FileLock, Timeout

    # Like the manager's: a soft lock would outlive a killed run.
    lock = FileLock(there.lock, fallback_to_soft=False, preserve_lock_file=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise EmberdError(
            f"Another run writes to {there.folder}. Wait for it, or give another --output."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _summary(there: Output, pieces: Sequence[Unit], fresh: int) -> Summary:
    done = [found for unit in pieces if (found := there.done(unit.name))]
    if len(done) != len(pieces):
        raise EmberdError(f"Of {len(pieces)} pieces {len(done)} are done. {GO_ON}")
    return Summary(
        rows=_sum(done, "rows"),
        set_aside=_sum(done, "set_aside"),
        set_aside_in=there.set_aside,
        fresh=fresh,
        pieces=len(pieces),
    )


def _sum(done: Sequence[Done], name: str) -> int:
    return sum(getattr(each, name) for each in done)
