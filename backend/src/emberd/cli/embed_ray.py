"""``emberd embed --ray``: files embedded on a Ray cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emberd.bulk import inputs, job
from emberd.cli import output, words
from emberd.cli.codes import Code
from emberd.cli.embed_data import BadRows
from emberd.errors import EmberdError, SettingError

if TYPE_CHECKING:
    from emberd.ray.jobs import Summary
    from emberd.settings import Settings

_NEEDED: Final = ("ray", "pyarrow")
_STATISTICS: Final = "RAY_USAGE_STATS_ENABLED"


def embed(
    names: Sequence[str],
    folder: Path | None,
    settings: Settings,
    *,
    address: str | None,
    role: str = "document",
    bad_rows: str = BadRows.SET_ASIDE,
    **wishes: Any,
) -> int:
    """Embed files into a folder of Parquet, say what became of them, and return the exit code.

    Args:
        names: Files or folders.
        folder: The output.
        settings: Of the embedder.
        address: The cluster's; None for the one that Ray finds, else one of this machine alone.
        role: ``"document"`` or ``"query"``.
        bad_rows: What becomes of rows that cannot be embedded.
        **wishes: Fields of ``emberd.ray.jobs.Order``.

    Raises:
        SettingError: A value cannot be used, or Ray is not installed.
        EmberdError: The job ended early; what is done is kept.
    """
    target = _checked(names, folder)
    from emberd.ray import jobs

    order = jobs.Order(
        inputs.find(names),
        target,
        settings,
        role=str(role),
        fails_on_bad_row=bad_rows == BadRows.FAIL,
        **wishes,
    )
    began_s = time.monotonic()
    try:
        with _connected(address):
            summary = jobs.run(order)
    except KeyboardInterrupt:
        output.note(job.GO_ON)
        raise
    _tell(target, summary, time.monotonic() - began_s)
    return Code.SOME_SET_ASIDE if summary.set_aside else 0


def _checked(names: Sequence[str], folder: Path | None) -> Path:
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise SettingError(
            f"--ray needs {missing[0]}, which is not installed. Run: pip install 'emberd[ray]'"
        )
    if not any(inputs.is_data(name) for name in names):
        raise SettingError("--ray embeds Parquet, JSON lines and folders. Name one of them.")
    if folder is None or (folder.suffix and not folder.is_dir()) or folder.is_file():
        raise SettingError("--ray writes a folder of Parquet. Give --output FOLDER.")
    if any(folder.resolve().is_relative_to(Path(name).resolve()) for name in names):
        raise SettingError(f"{folder} is among what is read. Give another --output.")
    return folder


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    # Ray sends statistics home unless told otherwise, and asks about it at its start.
    os.environ.setdefault(_STATISTICS, "0")
    import ray

    try:
        ray.init(address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        where = f"at {address}" if address else "of this machine"
        raise EmberdError(
            f"Ray's cluster {where} cannot be reached: {error}. Correct --ray-address, or leave it "
            f"out for a cluster of this machine alone."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _tell(folder: Path, summary: Summary, seconds: float) -> None:
    rows = words.counted(summary.rows, "row")
    pieces = words.counted(summary.pieces, "piece")
    before = summary.pieces - summary.fresh
    done = f", {before} of them done before" if before else ""
    output.note(f"{folder}: {rows} in {pieces}{done}; {seconds:.1f} s")
    if summary.set_aside:
        output.note(
            f"{words.counted(summary.set_aside, 'row')} could not be embedded and "
            f"{'is' if summary.set_aside == 1 else 'are'} not in it: {summary.set_aside_in} tells "
            f"why"
        )
