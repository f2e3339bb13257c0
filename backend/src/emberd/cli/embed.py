"""``emberd embed``: data sets through a bulk job, texts through a stream."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from emberd import durations
from emberd.bulk.formats import require_pyarrow
from emberd.bulk.request import (
    SAVE_EVERY_S,
    BadRows,
    BulkRequest,
    OutputFormat,
    Role,
    find_inputs,
    is_data,
)
from emberd.cli import options, output, text_stream, up
from emberd.cli.output import ExitCode
from emberd.cli.text_stream import FileFormat
from emberd.errors import EmberdError, SettingError

if TYPE_CHECKING:
    from emberd.bulk.pipeline import BulkProgress, BulkSummary, Embed, Executor
    from emberd.embedder import Embedder
    from emberd.settings import Settings

_STDOUT: Final = Path("-")
_SHOWN: Final = 3
_RAY_STATISTICS: Final = "RAY_USAGE_STATS_ENABLED"

Files = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[INPUT]...",
        help="Parquet, JSON lines (.jsonl, .ndjson, also .gz), or a folder of these or of text "
        "files. Other files are read as one text per line. - reads stdin.",
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        "--column",
        metavar="NAME",
        help="Column or field of the texts. Default: text.",
        show_default=False,
    ),
]
EmbeddingColumn = Annotated[
    str | None,
    typer.Option(
        "--embedding-column",
        metavar="NAME",
        help="Column or field of the vectors. Default: embedding.",
        show_default=False,
    ),
]
BadRowsName = Annotated[
    BadRows | None,
    typer.Option(
        "--bad-rows",
        help="What happens to rows that cannot be embedded. Default: set-aside, which writes them "
        "to OUTPUT.rejects.jsonl.",
        show_default=False,
    ),
]
Restart = Annotated[
    bool, typer.Option("--restart", help="Start again instead of continuing an earlier run.")
]
SaveEvery = Annotated[
    str | None,
    typer.Option(
        "--save-every",
        metavar="DURATION",
        help="How often finished work is saved, which limits what a kill can lose: 90, 90s, 5m. "
        f"Default: {output.duration(SAVE_EVERY_S)}.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Maximum number of texts in a request.",
        show_default=False,
    ),
]
MaxConcurrency = Annotated[
    int | None,
    typer.Option(
        "--max-concurrency",
        metavar="N",
        help="Maximum number of requests in flight.",
        show_default=False,
    ),
]
Ray = Annotated[
    bool,
    typer.Option("--ray", help="Embed on a Ray cluster, with a server per GPU or node."),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray-address",
        metavar="HOST:PORT",
        help="Address of the cluster. Default: the one that Ray finds, else this machine.",
        show_default=False,
    ),
]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", "-t", metavar="TEXT", help="A text; may be repeated."),
]
As = Annotated[
    Role,
    typer.Option("--as", help="Role of the texts: queries get the query instruction of the model."),
]
Dimensions = Annotated[
    int | None,
    typer.Option(
        "--dimensions", metavar="N", help="Cut the vectors to this length.", show_default=False
    ),
]
FormatName = Annotated[
    FileFormat | None,
    typer.Option(
        "--format", help="Default: by the ending of --output, else jsonl.", show_default=False
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE|FOLDER",
        help="Default or -: stdout. For Parquet and JSON lines input, a name without an extension "
        "is a folder.",
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
    deterministic: options.Deterministic = False,
    revision: options.Revision = None,
    quantization: options.Quantization = None,
) -> None:
    """Embed data sets (Parquet, JSON lines, folders), or texts (lines of files or stdin, --text).

    For data, the output has all columns of the input and the vectors. After an interruption, the
    same command continues. Rows that cannot be embedded are written to OUTPUT.rejects.jsonl, and
    the exit code is 6. npy has only the vectors; OUTPUT.rows.npy has the numbers of their rows.

    For texts, each line is a text and becomes a row, blank lines too, so that row n is line n.
    jsonl is {"text": ..., "embedding": [...]} per line. npy is a float32 array (n, d). parquet has
    the columns text and embedding.

    The output appears when it is complete; if the command is interrupted, an existing file is not
    changed. Parquet, and data of any kind, needs emberd[parquet].
    """
    output_file = None if output_file == _STDOUT else output_file
    saves = None if save_every is None else durations.validate("save_every", save_every, zero=True)
    data_options = {
        "column": column,
        "embedding_column": embedding_column,
        "bad_rows": bad_rows,
        "restart": restart or None,
        "save_every_s": saves,
    }
    data_options = {name: value for name, value in data_options.items() if value is not None}
    settings = options.settings(
        model=model,
        engine=engine,
        device=device,
        deterministic=deterministic or None,
        revision=revision,
        quantization=quantization,
    )
    sizes = {"batch_size": batch_size, "max_concurrency": max_concurrency}
    embedder = embedder_with(settings, dimensions, truncate=truncate, **sizes)
    names = files or []
    uses_ray = ray or ray_address is not None
    if not uses_ray and not any(is_data(name) for name in names):
        if data_options:
            raise SettingError(
                "--column, --embedding-column, --bad-rows, --restart and --save-every are for "
                "Parquet, JSON lines and folders. Omit them: each line is a text."
            )
        arguments = (names, texts or (), output_file, format_name, embedder)
        text_stream.embed_texts(*arguments, role=role)
        return
    if texts:
        raise SettingError("--text cannot be combined with Parquet, JSON lines or folders.")
    if uses_ray:
        _check_ray(names, save_every)
    require_pyarrow()
    connected: AbstractContextManager[Any] = nullcontext()
    if uses_ray:
        from emberd.ray.executor import ray_executor

        executor, connected = ray_executor(embedder.settings), _ray_cluster(ray_address)
    else:
        executor = _local_executor(embedder, role)
    code = embed_data(
        names,
        output_file,
        format_name,
        embedder,
        executor=executor,
        connected=connected,
        role=role,
        **data_options,
    )
    raise typer.Exit(code)


def embed_data(
    names: Sequence[str],
    target: Path | None,
    format_name: FileFormat | None,
    embedder: Embedder,
    *,
    executor: Executor,
    connected: AbstractContextManager[Any],
    **parameters: Any,
) -> int:
    """Embed files and folders into ``target``, and return the exit code.

    Args:
        names: Files and folders.
        target: A file or a folder; data is never written to stdout.
        format_name: The format, if it was named.
        embedder: The embedder whose identity the vectors have.
        executor: What embeds the units.
        connected: Entered while the executor is used.
        **parameters: Fields of ``BulkRequest``.

    Raises:
        SettingError: An argument cannot be used, or another job was begun for this output.
        EmberdError: The run ended early; finished work is kept.
    """
    from emberd.bulk import pipeline, readers  # not at import: they need PyArrow

    request = BulkRequest(
        find_inputs(names),
        *_destination(target, format_name),
        identity=embedder.identity,
        truncate=embedder.settings.truncate,
        deterministic=embedder.settings.deterministic,
        **parameters,
    )
    _check_output(request, names)
    reader = readers.open_reader(request)
    begin_s = time.monotonic()
    try:
        with connected, _shown() as watch:
            summary = pipeline.run(request, reader, executor, watch)
    except KeyboardInterrupt:
        output.note(pipeline.RESUME_HINT)
        raise
    _report(request, summary, time.monotonic() - begin_s)
    return ExitCode.ROWS_REJECTED if summary.rejected else 0


def embedder_with(
    settings: Settings, dimensions: int | None, *, truncate: bool, **more: int | None
) -> Embedder:
    """Return an embedder with the settings of the command line.

    Args:
        settings: The settings of its server.
        dimensions: Length of the vectors; None for the default.
        truncate: Whether over-long texts are cut.
        **more: Other settings; None for the default.

    Raises:
        SettingError: A value cannot be used.
    """
    from emberd.embedder import Embedder

    return Embedder(
        settings.model,
        engine=settings.engine,
        device=settings.device,
        deterministic=settings.deterministic,
        revision=settings.revision,
        quantization=settings.quantization,
        dimensions=dimensions,
        truncate=truncate or None,  # without the option, EMBERD_TRUNCATE decides
        **more,  # type: ignore[arg-type]
    )


def _destination(target: Path | None, format_name: FileFormat | None) -> tuple[Path, OutputFormat]:
    if target is None:
        raise SettingError(
            "Parquet, JSON lines and folders are embedded into a file or a folder. Pass --output "
            "FILE.parquet, FILE.jsonl, FILE.npy or FOLDER."
        )
    text_stream.check_folder(target)
    target = target.resolve() if target.is_symlink() else target
    is_folder = target.is_dir() or (format_name is None and not target.suffix)
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise SettingError(f"{target} is neither a file nor a folder. Pass another --output.")
    if is_folder and format_name not in (None, FileFormat.PARQUET):
        raise SettingError(
            f"{target} is a folder, which can only contain Parquet. Pass the name of a file."
        )
    if is_folder:
        return target, OutputFormat.FOLDER
    return target, OutputFormat(text_stream.choose_format(format_name, target))


def _check_output(request: BulkRequest, names: Sequence[str]) -> None:
    """Refuse an output among the inputs: the next run would read it, or it overwrites one."""
    files = {path.resolve() for path in request.inputs.files}
    folders = [Path(name).resolve() for name in names if Path(name).is_dir()]
    # Files beside the output are written too, and those of an earlier run are deleted.
    is_npy = request.output_format is OutputFormat.NPY
    beside = [request.rejects_path, *([request.row_numbers_path] if is_npy else [])]
    for path in (request.output, *beside):
        place = path.resolve()
        if place in files or any(place.is_relative_to(folder) for folder in folders):
            raise SettingError(
                f"{path} is among the input, and would be written. Pass another --output, outside "
                f"of the input."
            )


# ---------------------------------------------------------------- executors


def _local_executor(embedder: Embedder, role: str) -> Executor:
    from emberd.bulk.pipeline import local_executor

    def connect() -> tuple[Embed, int]:
        native = up.ensure(embedder.settings).endpoint.dimensions
        iterate = embedder.iter_queries if role == Role.QUERY else embedder.iter_documents
        # EMBERD_DIMENSIONS may have set those of the embedder.
        return partial(iterate, set_aside=True), embedder.settings.dimensions or native

    return local_executor(connect)


def _check_ray(names: Sequence[str], save_every: str | None) -> None:
    if find_spec("ray") is None:
        raise SettingError(
            "--ray needs ray, which is not installed. Run: pip install 'emberd[ray]'"
        )
    if not any(is_data(name) for name in names):
        raise SettingError("--ray requires Parquet, JSON lines or a folder as input.")
    if save_every is not None:
        raise SettingError(
            "--save-every cannot be combined with --ray, which saves only complete units of work."
        )


@contextmanager
def _ray_cluster(address: str | None) -> Iterator[None]:
    # By default, Ray sends statistics, and asks about it when it starts.
    os.environ.setdefault(_RAY_STATISTICS, "0")
    import ray

    try:
        ray.init(address, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        where = f"at {address}" if address else "of this machine"
        raise EmberdError(
            f"The Ray cluster {where} cannot be reached: {error}. Correct --ray-address, or leave "
            f"it out for a cluster of this machine only."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


# ---------------------------------------------------------------- what the user sees


@contextmanager
def _shown() -> Iterator[Callable[[BulkProgress], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from emberd.cli import progress_bars

    tasks: dict[str, Any] = {}
    with progress_bars.bulk_progress(output.console(stderr=True)) as display:

        def watch(progress: BulkProgress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = display.add_task(progress.phase)
            display.update(
                tasks[progress.phase],
                completed=progress.done,
                total=progress.total,
                rows=progress.rows if progress.phase == "embedding" else 0,
                before=progress.before,
            )

        yield watch


def _report(request: BulkRequest, summary: BulkSummary, seconds: float) -> None:
    fresh = summary.embedded + summary.rejected - summary.before
    rows = output.pluralize(summary.embedded, "row")
    speed = f"{fresh / seconds:.0f} rows/s" if seconds else "at once"
    before = f", {summary.before} of them done before" if summary.before else ""
    output.note(f"{request.output}: {rows}{before}; {seconds:.1f} s ({speed})")
    if summary.rejected:
        are = "is" if summary.rejected == 1 else "are"
        output.note(
            f"{output.pluralize(summary.rejected, 'row')} could not be embedded and {are} not in "
            f"it: see {request.rejects_path}"
        )
    if skipped := request.inputs.skipped:
        were = "was" if skipped == 1 else "were"
        output.note(f"{output.pluralize(skipped, 'file')} of an unsupported type {were} skipped")
    if special := request.inputs.special:
        shown = ", ".join(map(str, special[:_SHOWN])) + ("" if len(special) <= _SHOWN else ", ...")
        output.note(f"not read, because only regular files are: {shown}")
