"""``emberd reindex``: a collection of a vector store with the vectors of another model."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emberd.cli import embed as embed_options
from emberd.cli import options, output, up
from emberd.stores.opening import open_store, shown

if TYPE_CHECKING:
    from emberd.stores.reindexing import ReindexSummary
    from emberd.stores.rows import RowStore

Location = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="Folder of Chroma, Qdrant or LanceDB; or its kind and a URL, such as "
        "qdrant:http://localhost:6333 (key: EMBERD_STORE_API_KEY).",
    ),
]
Collection = Annotated[
    str, typer.Argument(metavar="COLLECTION", help="Collection, table, or alias of a collection.")
]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="NAME",
        help="Name of the new collection. Default: COLLECTION and a hash of the new identity.",
        show_default=False,
    ),
]
TextField = Annotated[
    str | None,
    typer.Option(
        "--text-field",
        metavar="NAME",
        help="Field of the texts: of the metadata or payload, a column, or metadata.NAME. Default: "
        "where LangChain and LlamaIndex put them. It is stored with the new collection; later "
        "runs must name the same one.",
        show_default=False,
    ),
]
Update = Annotated[
    bool,
    typer.Option(
        "--update",
        help="Make a complete new collection equal to the old one: rows that only it has are "
        "removed, rows that differ are replaced. Discards what an application wrote to it.",
    ),
]
Switch = Annotated[
    bool,
    typer.Option(
        "--switch",
        help="Then make COLLECTION refer to the new one: an alias in Qdrant, a rename in Chroma. "
        "Refused if the new one was complete and differs.",
    ),
]


def reindex(
    location: Location,
    collection: Collection,
    to: To = None,
    text_field: TextField = None,
    update: Update = False,
    switch: Switch = False,
    dimensions: embed_options.Dimensions = None,
    truncate: embed_options.Truncate = False,
    batch_size: embed_options.BatchSize = None,
    max_concurrency: embed_options.MaxConcurrency = None,
    model: options.Model = None,
    engine: options.Engine = None,
    device: options.Device = None,
    deterministic: options.Deterministic = False,
    revision: options.Revision = None,
    quantization: options.Quantization = None,
    as_json: options.AsJson = False,
) -> None:
    """Embed a collection of a vector store again, with another model, instruction or dimensions.

    The new collection is made beside the old one, which is not changed. It has the identity of the
    new settings, and `guarded` refuses it until it is complete. After an interruption, the same
    command continues. Stop applications that write to COLLECTION before the run that completes the
    new one, or before --update --switch: what they write during its last pass is not copied.

    Instructions are set by EMBERD_QUERY_INSTRUCTION and EMBERD_DOCUMENT_INSTRUCTION.
    """
    from emberd.stores.guard import store_errors
    from emberd.stores.reindexing import RESUME_HINT
    from emberd.stores.reindexing import reindex as run

    settings = options.settings(
        model=model,
        engine=engine,
        device=device,
        deterministic=deterministic or None,
        revision=revision,
        quantization=quantization,
    )
    sizes = {"batch_size": batch_size, "max_concurrency": max_concurrency}
    embedder = embed_options.embedder_with(settings, dimensions, truncate=truncate, **sizes)
    with store_errors(f"The store {shown(location)}"):
        store = open_store(location)
    begin_s = time.monotonic()

    def connect() -> int:
        return up.ensure(embedder.settings).endpoint.dimensions

    try:
        with _shown() as watch:
            summary = run(
                store,
                collection,
                embedder,
                connect=connect,
                watch=watch,
                to=to,
                text_field=text_field,
                update=update,
                switch=switch,
            )
    except KeyboardInterrupt:
        output.note(RESUME_HINT)
        raise
    if as_json:
        output.write_json({"store": store.where, **asdict(summary)})
    _report(store, collection, summary, time.monotonic() - begin_s)


@contextmanager
def _shown() -> Iterator[Callable[[int, int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from emberd.cli import progress_bars

    with progress_bars.text_progress(output.console(stderr=True)) as display:
        task: Any = display.add_task("embedding", total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)


def _report(store: RowStore, old: str, summary: ReindexSummary, seconds: float) -> None:
    rows = output.pluralize(summary.rows, "row")
    removed = f", {summary.removed} removed" if summary.removed else ""
    output.note(
        f"{store.where}, {summary.collection}: {rows}, {summary.embedded} embedded now{removed}; "
        f"{seconds:.1f} s"
    )
    if summary.switched:
        output.note(f"{old} refers to it now: applications must open it again.")
    elif summary.collection == store.resolve(old):
        output.note(f"{old} has these vectors already; nothing was done.")
    else:
        output.note(
            f"To use it, {store.hint}: {summary.collection}. If {old} was written to during this "
            f"run, stop the writers and run the command again with --update first."
        )
