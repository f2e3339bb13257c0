"""``emberd embed`` of data sets: Parquet, JSON lines, or folders."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emberd.bulk import inputs, job
from emberd.bulk.feed import Embed
from emberd.bulk.job import Order, Progress, Summary
from emberd.bulk.outputs import Shape
from emberd.cli import destination, formats, output, waiting, words
from emberd.cli.codes import Code
from emberd.cli.formats import Format
from emberd.errors import SettingError, TextError

if TYPE_CHECKING:
    from emberd.client.vectors import Floats
    from emberd.embedder import Embedder


class BadRows(StrEnum):
    """What becomes of rows that cannot be embedded."""

    SET_ASIDE = "set-aside"
    FAIL = "fail"


def embed(
    names: Sequence[str],
    target: Path | None,
    format_name: Format | None,
    embedder: Embedder,
    *,
    role: str,
    bad_rows: BadRows,
    **wishes: Any,
) -> int:
    """Embed what ``names`` lead to into ``target``, and return the exit code.

    Args:
        names: Files and folders.
        target: A file or a folder; data never goes to stdout.
        format_name: The format that was asked for by name.
        embedder: What embeds.
        role: ``"document"`` or ``"query"``.
        bad_rows: What becomes of rows that cannot be embedded.
        **wishes: Fields of ``emberd.bulk.job.Order``.

    Raises:
        SettingError: A value cannot be used, or another run was begun there.
        EmberdError: The run ended early; what is done is kept.
    """
    found = inputs.find(names)
    target, shape = _destination(target, format_name)
    order = Order(
        found,
        target,
        shape,
        identity=embedder.identity,
        role=role,
        truncate=embedder.settings.truncate,
        fails_on_bad_row=bad_rows is BadRows.FAIL,
        **wishes,
    )
    _refuse_among(order, names)
    source = job.reader(order)
    began_s = time.monotonic()
    try:
        with _shown() as watch:
            summary = job.run(order, source, lambda: _connect(embedder, role), watch)
    except KeyboardInterrupt:
        output.note(job.GO_ON)
        raise
    _tell(order, summary, time.monotonic() - began_s)
    return Code.SOME_SET_ASIDE if summary.set_aside else 0


def _destination(target: Path | None, format_name: Format | None) -> tuple[Path, Shape]:
    if target is None:
        raise SettingError(
            "Parquet, JSON lines and folders are embedded into a file or a folder. Give --output "
            "FILE.parquet, FILE.jsonl, FILE.npy or FOLDER."
        )
    destination.check(target)
    target = target.resolve() if target.is_symlink() else target
    is_folder = target.is_dir() or (format_name is None and not target.suffix)
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise SettingError(f"{target} is neither a file nor a folder. Give another --output.")
    if is_folder and format_name not in (None, Format.PARQUET):
        raise SettingError(f"{target} is a folder, which holds Parquet alone. Give a file's name.")
    return target, Shape.FOLDER if is_folder else Shape(formats.of(format_name, target))


def _refuse_among(order: Order, names: Sequence[str]) -> None:
    """Refuse an output among the inputs: it would be read by the next run, or write over one."""
    files = {path.resolve() for path in order.inputs.files}
    folders = [Path(name).resolve() for name in names if Path(name).is_dir()]
    # What stands beside the output is written too, and what an earlier run set aside is deleted.
    beside = [order.rejects_path, *([] if order.shape.keeps_rows else [order.rows_path])]
    for path in (order.output, *beside):
        place = path.resolve()
        if place in files or any(place.is_relative_to(folder) for folder in folders):
            raise SettingError(
                f"{path} is among what is read, and would be written. Give another --output, "
                f"outside of the input."
            )


def _connect(embedder: Embedder, role: str) -> tuple[Embed, int]:
    native = waiting.ensure(embedder.settings).endpoint.dimensions
    iterate = embedder.iter_queries if role == "query" else embedder.iter_documents

    def embed_all(texts: Iterable[str]) -> Iterator[Floats | TextError]:
        return iterate(texts, set_aside=True)

    # The embedder's own: EMBERD_DIMENSIONS may have set them.
    return embed_all, embedder.settings.dimensions or native


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    if not sys.stderr.isatty():
        yield _nothing
        return
    from emberd.cli import bars

    with bars.bulk_progress(output.console(stderr=True)) as display:
        yield _Display(display)


def _nothing(progress: Progress) -> None:
    """Show nothing."""


class _Display:
    """A bar for each thing that is done, from the first that is told of it."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._tasks: dict[str, Any] = {}

    def __call__(self, progress: Progress) -> None:
        if progress.doing not in self._tasks:
            self._tasks[progress.doing] = self._display.add_task(progress.doing)
        self._display.update(
            self._tasks[progress.doing],
            completed=progress.done,
            total=progress.total,
            rows=progress.rows if progress.doing == "embedding" else 0,
            before=progress.before,
        )


def _tell(order: Order, summary: Summary, seconds: float) -> None:
    here = summary.embedded + summary.set_aside - summary.before
    rows = words.counted(summary.embedded, "row")
    speed = f"{here / seconds:.0f} rows/s" if seconds else "at once"
    before = f", {summary.before} of them done before" if summary.before else ""
    output.note(f"{order.output}: {rows}{before}; {seconds:.1f} s ({speed})")
    if summary.set_aside:
        output.note(
            f"{words.counted(summary.set_aside, 'row')} could not be embedded and "
            f"{'is' if summary.set_aside == 1 else 'are'} not in it: {order.rejects_path} tells why"
        )
    if order.inputs.left_out:
        output.note(
            f"{words.counted(order.inputs.left_out, 'file')} of another kind "
            f"{'was' if order.inputs.left_out == 1 else 'were'} not read"
        )
