"""``emberd embed``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from emberd import durations
from emberd.bulk import inputs
from emberd.bulk.job import SAVE_EVERY_S
from emberd.cli import (
    destination,
    embed_data,
    embed_ray,
    formats,
    lines,
    options,
    output,
    waiting,
    words,
)
from emberd.cli.embed_data import BadRows
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
_COLUMN: Final = "text"
_EMBEDDING_COLUMN: Final = "embedding"


class Role(StrEnum):
    """What the texts are."""

    DOCUMENT = "document"
    QUERY = "query"


Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[INPUT]...",
        help="Parquet, JSON lines (.jsonl, .ndjson, also .gz), or a folder of either or of text "
        "files; else files with a text a line; - is stdin.",
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        "--column",
        metavar="NAME",
        help="The column or field with the texts. Else text.",
        show_default=False,
    ),
]
EmbeddingColumn = Annotated[
    str | None,
    typer.Option(
        "--embedding-column",
        metavar="NAME",
        help="The column or field for the vectors. Else embedding.",
        show_default=False,
    ),
]
BadRowsName = Annotated[
    BadRows | None,
    typer.Option(
        "--bad-rows",
        help="What becomes of rows that cannot be embedded. Else set-aside, into "
        "OUTPUT.rejects.jsonl.",
        show_default=False,
    ),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Begin anew where an earlier run could go on.")
]
SaveEvery = Annotated[
    str | None,
    typer.Option(
        "--save-every",
        metavar="DURATION",
        help="How often what was done is saved, the most that a kill can undo: 90, 90s, 5m. "
        f"Else {words.duration(SAVE_EVERY_S)}.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", metavar="N", help="Most texts in one request.", show_default=False
    ),
]
MaxConcurrency = Annotated[
    int | None,
    typer.Option(
        "--max-concurrency", metavar="N", help="Most requests in flight.", show_default=False
    ),
]
Ray = Annotated[
    bool,
    typer.Option("--ray", help="On a Ray cluster, into a folder; a server for each node or GPU."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="The cluster. Else the one that Ray finds, or this machine alone.",
        show_default=False,
    ),
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
        "--output",
        "-o",
        metavar="FILE|FOLDER",
        help="Else stdout, which is - too. Without an ending it is a folder, if the input is data.",
        show_default=False,
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
    column: Column = None,
    embedding_column: EmbeddingColumn = None,
    bad_rows: BadRowsName = None,
    restart: Restart = False,
    save_every: SaveEvery = None,
    batch_size: BatchSize = None,
    max_concurrency: MaxConcurrency = None,
    ray: Ray = False,
    ray_address: RayAddress = None,
    model: options.Model = None,
    engine: options.Engine = None,
    device: options.Device = None,
    revision: options.Revision = None,
) -> None:
    """Embed data sets (Parquet, JSON lines, folders), or texts: lines of files or stdin, --text.

    Of data, the output has all columns of the input, and the vectors. A run that was ended goes on
    where it was when the same command is given again. Rows that cannot be embedded are set aside,
    and the exit code is 6. npy has the vectors alone, OUTPUT.rows.npy the numbers of their rows.

    Of texts, every line is one and becomes a row, blank lines too, so that row n belongs to line n.
    jsonl is {"text": ..., "embedding": [...]}, one a line. npy is a float32 array (n, d).
    parquet has the columns text and embedding (list of float32).

    The output appears when it is whole; a run that is killed leaves what was there. Parquet, and
    data of any kind, needs emberd[parquet].
    """
    output_file = None if output_file == _STDOUT else output_file
    every = SAVE_EVERY_S if save_every is None else save_every
    save_every_s = durations.validate("save_every", every, zero=True)
    settings = options.settings(model=model, engine=engine, device=device, revision=revision)
    sizes = {"batch_size": batch_size, "max_concurrency": max_concurrency}
    embedder = _embedder(settings, dimensions, truncate=truncate, **sizes)
    if ray or ray_address or any(inputs.is_data(name) for name in files or ()):
        _refuse_texts(texts)
        wishes: dict[str, Any] = {
            "role": role,
            "bad_rows": bad_rows or BadRows.SET_ASIDE,
            "column": column or _COLUMN,
            "added": embedding_column or _EMBEDDING_COLUMN,
            "restart": restart,
        }
        ends = (files or (), output_file)
        if ray or ray_address:
            _refuse_beside_ray(format_name, save_every)
            code = embed_ray.embed(*ends, embedder.settings, address=ray_address, **wishes)
        else:
            wishes["save_every_s"] = save_every_s
            code = embed_data.embed(*ends, format_name, embedder, **wishes)
        raise typer.Exit(code)
    _refuse_data_options(column, embedding_column, bad_rows, save_every, restart=restart)
    chosen = formats.of(format_name, output_file)
    destination.check(output_file)
    if output_file is None and not chosen.is_text and sys.stdout.isatty():
        raise SettingError(f"--format {chosen} is not for a terminal. Give --output FILE.")
    sources = _sources(files, texts)
    with (
        destination.opened(output_file, whole=not chosen.is_text) as file,
        _progress(quiet=output_file is None and sys.stdout.isatty()) as advance,
    ):
        native = waiting.ensure(settings).endpoint.dimensions
        # The embedder's own: EMBERD_DIMENSIONS may have set them.
        with formats.writer(chosen, file, embedder.settings.dimensions or native) as writer:
            embed_all = embedder.embed_queries if role is Role.QUERY else embedder.embed_documents
            _write_all(lines.read(sources, texts or ()), embed_all, writer, advance)


def _refuse_texts(texts: list[str] | None) -> None:
    if texts:
        raise SettingError(
            "--text cannot be given beside Parquet, JSON lines or folders. Leave it out."
        )


def _refuse_beside_ray(format_name: Format | None, save_every: str | None) -> None:
    if save_every is not None or format_name not in (None, Format.PARQUET):
        raise SettingError(
            "--ray writes a folder of Parquet, piece by piece. Leave --format and --save-every out."
        )


def _refuse_data_options(*values: str | None, restart: bool) -> None:
    if restart or any(value is not None for value in values):
        raise SettingError(
            "--column, --embedding-column, --bad-rows, --restart and --save-every are for Parquet, "
            "JSON lines and folders. Leave them out: of lines, every one is a text."
        )


def _sources(files: list[str] | None, texts: list[str] | None) -> list[str]:
    if files or texts:
        lines.check(files or ())
        return files or []
    if sys.stdin.isatty():
        raise SettingError("There is nothing to embed. Give FILEs, --text TEXT, or lines on stdin.")
    return [lines.STDIN]


def _embedder(
    settings: Settings, dimensions: int | None, *, truncate: bool, **more: int | None
) -> Embedder:
    from emberd.embedder import Embedder

    return Embedder(
        settings.model,
        engine=settings.engine,
        device=settings.device,
        revision=settings.revision,
        dimensions=dimensions,
        truncate=truncate or None,  # a switch that is off says nothing: EMBERD_TRUNCATE may
        **more,  # type: ignore[arg-type]
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
