"""``emberd search``: the passages of a folder that answer a question."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from emberd.cli import embed as embed_options
from emberd.cli import options, output, up
from emberd.errors import SettingError

if TYPE_CHECKING:
    from emberd.folder_search import Hit, SearchProgress

_TOP: Final = 5
_SHOWN_LINES: Final = 3
_SHOWN_CHARACTERS: Final = 100
_SHOW_EVERY_S: Final = 0.2
_SPEED_OF_LAST_S: Final = 60.0
_LEAST_ESTIMATED_S: Final = 3.0
_CACHE: Final = "sqlite"

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder of text files.")]
Question = Annotated[str, typer.Argument(metavar="QUESTION", help="What is searched for.")]
Top = Annotated[
    int, typer.Option("--top", "-n", metavar="N", min=1, help="How many passages to print.")
]

Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="GLOB",
        help="Leave out files and folders of this name (*.min.js), or of this path from FOLDER on "
        "if it contains a slash (docs/old). Can be repeated.",
    ),
]


def search(
    folder: Folder,
    question: Question,
    top: Top = _TOP,
    exclude: Exclude = None,
    dimensions: embed_options.Dimensions = None,
    model: options.Model = None,
    engine: options.Engine = None,
    device: options.Device = None,
    revision: options.Revision = None,
    quantization: options.Quantization = None,
    as_json: options.AsJson = False,
) -> None:
    """Print the passages of a folder's text files that answer a question best.

    The first search embeds the whole folder. Later ones embed only what changed, because vectors
    are kept in the cache (EMBERD_CACHE, else the file in EMBERD_HOME). Each passage is printed with
    its file, the number of its first line, and its score (cosine).

    Hidden files, symbolic links, binary files and files of more than 4 MB are not searched. HTML is
    searched as its text. An interrupted search keeps what it has embedded.
    """
    from emberd import folder_search

    if not folder.is_dir():
        raise SettingError(f"{folder} is not a folder. Pass the folder to search.")
    if not question.strip():
        raise SettingError("The question is blank. Pass what to search for.")
    settings = options.settings(
        model=model, engine=engine, device=device, revision=revision, quantization=quantization
    )
    embedder = embed_options.embedder_with(settings, dimensions, truncate=False)
    if embedder.settings.cache is None:
        embedder = embedder.replace(cache=_CACHE)
    begin_s = time.monotonic()
    up.ensure(embedder.settings)
    with output.ProgressLine() as line:
        shown_s, estimate = 0.0, _Estimate()

        def show(progress: SearchProgress) -> None:
            nonlocal shown_s
            if time.monotonic() - shown_s >= _SHOW_EVERY_S:
                shown_s = time.monotonic()
                taken = output.duration(shown_s - begin_s)
                left = estimate.after(shown_s, progress)
                line.show(f"{_counts(progress)} in {taken}{left}", "search")

        hits, progress = folder_search.search(
            embedder, folder, question, top, show, exclude=exclude or ()
        )
    _summarize(progress, time.monotonic() - begin_s)
    if as_json:
        found = [
            {
                "path": str(hit.passage.path),
                "line": hit.passage.line,
                "score": hit.score,
                "text": hit.passage.text,
            }
            for hit in hits
        ]
        output.write_json({"question": question, "hits": found})
    else:
        for hit in hits:
            _print(hit)


class _Estimate:
    """Estimates the time left by the speed of the last minute.

    The speed since the start would be misleading: an interrupted search continues with what is in
    the cache, which takes hardly any time.
    """

    def __init__(self) -> None:
        """Begin without a reading."""
        self._readings: deque[tuple[float, int]] = deque()

    def after(self, now_s: float, progress: SearchProgress) -> str:
        """Return the part that is done and the time left, in words.

        Args:
            now_s: The time of the progress, on the monotonic clock.
            progress: How far the search is.
        """
        readings, left = self._readings, progress.all_bytes - progress.done_bytes
        readings.append((now_s, progress.done_bytes))
        while now_s - readings[1 if len(readings) > 1 else 0][0] > _SPEED_OF_LAST_S:
            readings.popleft()
        first_s, first_bytes = readings[0]
        if not left:
            return ""
        part = f"; {progress.done_bytes / progress.all_bytes:.0%}"
        done = progress.done_bytes - first_bytes
        if done <= 0 or now_s - first_s < _LEAST_ESTIMATED_S:
            return part
        return f"{part}, about {output.duration(left * (now_s - first_s) / done)} left"


def _counts(progress: SearchProgress) -> str:
    files = output.pluralize(progress.files, "file")
    return f"{files}, {output.pluralize(progress.passages, 'passage')}"


def _summarize(progress: SearchProgress, seconds: float) -> None:
    output.note(f"{_counts(progress)}, {progress.embedded} of them embedded now; {seconds:.1f} s")
    if progress.rejected:
        output.note(
            f"{output.pluralize(progress.rejected, 'passage')} could not be embedded. The first: "
            f"{progress.first_rejection}"
        )
    if skipped := len(progress.skipped):
        output.note(
            f"{output.pluralize(skipped, 'file')} not searched (binary, too large or unreadable)"
        )


def _print(hit: Hit) -> None:
    passage = hit.passage
    output.write_line(f"{output.printable(str(passage.path))}:{passage.line}  {hit.score:.3f}")
    lines = [line.strip() for line in passage.text.splitlines() if line.strip()]
    for line in lines[:_SHOWN_LINES]:
        shown = line if len(line) <= _SHOWN_CHARACTERS else f"{line[: _SHOWN_CHARACTERS - 1]}…"
        output.write_line(f"    {output.printable(shown)}")
