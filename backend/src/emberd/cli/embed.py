"""``emberd embed``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from emberd.cli import destination, formats, lines, options, output, waiting, words
from emberd.cli.formats import Format, Writer
from emberd.errors import SettingError, TextError

if TYPE_CHECKING:
    from emberd.client.vectors import Floats
    from emberd.embedder import Embedder
    from emberd.settings import Settings

# A window is as many texts as take about two seconds, within these bounds: small enough to see
# it move on a laptop, large enough that a GPU is not left waiting for the end of each window.
_WINDOW_S: Final = 2.0
_SMALLEST_WINDOW_TEXTS: Final = 256
_LARGEST_WINDOW_TEXTS: Final = 4096

_STDOUT: Final = Path("-")


class Role(StrEnum):
    """What the texts are."""

    DOCUMENT = "document"
    QUERY = "query"


Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="[FILE]...", help="Files with a text a line; - is stdin."),
]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", "-t", metavar="TEXT", help="A text; may be given more than once."),
]
As = Annotated[Role, typer.Option("--as", help="Queries get the model's query instruction.")]
Dimensions = Annotated[
    int | None,
    typer.Option("--dimensions", metavar="N", help="Cut the vectors.", show_default=False),
]
FormatName = Annotated[
    Format | None,
    typer.Option(
        "--format", help="Else by the ending of --output, else jsonl.", show_default=False
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Else stdout, which is - too.", show_default=False
    ),
]
Truncate = Annotated[
    bool,
    typer.Option(
        "--truncate",
        help="Cut over-long texts. Needs a server with a tokenizer route: SGLang has one, "
        "emberd/demo has not.",
    ),
]


def embed(
    files: Files = None,
    texts: Texts = None,
    role: As = Role.DOCUMENT,
    dimensions: Dimensions = None,
    format_name: FormatName = None,
    output_file: Output = None,
    truncate: Truncate = False,
    model: options.Model = None,
    engine: options.Engine = None,
    device: options.Device = None,
    revision: options.Revision = None,
) -> None:
    """Embed texts: lines of files or of stdin, or --text.

    Every line is a text and becomes a row, blank lines too, so that row n belongs to line n.

    jsonl is {"text": ..., "embedding": [...]}, one a line. npy is a float32 array (n, d).
    parquet has the columns text and embedding (list of float32) and needs emberd[parquet].

    The output file appears when it is whole; a run that is killed leaves what was there.
    """
    output_file = None if output_file == _STDOUT else output_file
    chosen = formats.of(format_name, output_file)
    destination.check(output_file)
    if output_file is None and not chosen.is_text and sys.stdout.isatty():
        raise SettingError(f"--format {chosen} is not for a terminal. Give --output FILE.")
    sources = _sources(files, texts)
    settings = options.settings(model=model, engine=engine, device=device, revision=revision)
    embedder = _embedder(settings, dimensions, truncate=truncate)
    with (
        destination.opened(output_file, whole=not chosen.is_text) as file,
        _progress(quiet=output_file is None and sys.stdout.isatty()) as advance,
    ):
        native = waiting.ensure(settings).endpoint.dimensions
        # The embedder's own: EMBERD_DIMENSIONS may have set them.
        with formats.writer(chosen, file, embedder.settings.dimensions or native) as writer:
            embed_all = embedder.embed_queries if role is Role.QUERY else embedder.embed_documents
            _write_all(lines.read(sources, texts or ()), embed_all, writer, advance)


def _sources(files: list[str] | None, texts: list[str] | None) -> list[str]:
    if files or texts:
        lines.check(files or ())
        return files or []
    if sys.stdin.isatty():
        raise SettingError("There is nothing to embed. Give FILEs, --text TEXT, or lines on stdin.")
    return [lines.STDIN]


def _embedder(settings: Settings, dimensions: int | None, *, truncate: bool) -> Embedder:
    from emberd.embedder import Embedder

    return Embedder(
        settings.model,
        engine=settings.engine,
        device=settings.device,
        revision=settings.revision,
        dimensions=dimensions,
        truncate=truncate or None,  # a switch that is off says nothing: EMBERD_TRUNCATE may
    )


def _write_all(
    source: Iterator[lines.Line],
    embed_all: Callable[[list[str]], Floats],
    writer: Writer,
    advance: Callable[[int], None],
) -> None:
    size = _SMALLEST_WINDOW_TEXTS
    while window := lines.window(source, size):
        began_s = time.monotonic()
        texts = [line.text for line in window]
        with _placed(window):
            vectors = embed_all(texts)
        size = _next_size(len(window), time.monotonic() - began_s)
        writer.write(texts, vectors)
        advance(len(window))


def _next_size(texts: int, seconds: float) -> int:
    wanted = int(texts * _WINDOW_S / seconds) if seconds else _LARGEST_WINDOW_TEXTS
    return min(_LARGEST_WINDOW_TEXTS, max(_SMALLEST_WINDOW_TEXTS, wanted))


@contextmanager
def _placed(window: list[lines.Line]) -> Iterator[None]:
    try:
        yield
    except TextError as error:
        # The index counts within the window, of which the user knows nothing.
        line = window[error.index]
        error.add_note(f"Text {error.index} is line {line.number} of {line.source}.")
        raise


def _progress(*, quiet: bool) -> AbstractContextManager[Callable[[int], None]]:
    return _summary() if quiet or not sys.stderr.isatty() else _bar()


@contextmanager
def _bar() -> Iterator[Callable[[int], None]]:
    from emberd.cli import bars

    with bars.progress(output.console(stderr=True)) as progress:
        task = progress.add_task("embedding", total=None)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _summary() -> Iterator[Callable[[int], None]]:
    counts: list[int] = []
    began_s = time.monotonic()
    yield counts.append
    seconds = time.monotonic() - began_s
    speed = f"{sum(counts) / seconds:.0f} texts/s"
    output.note(f"{words.counted(sum(counts), 'text')} in {seconds:.1f} s ({speed})")
