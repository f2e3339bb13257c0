"""``emberd bench``: how fast a server is for its user."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from emberd import durations
from emberd.cli import embed as embed_options
from emberd.cli import options, output, up
from emberd.errors import EmberdError

if TYPE_CHECKING:
    from emberd.benchmark import BulkRate, QueryLatency
    from emberd.embedder import Embedder
    from emberd.manager import Server

    Results = Sequence[QueryLatency | BulkRate | None]

_TOKENS: Final = (16, 256, 2_000)
_BATCH_SIZES: Final = (1, 16)  # and that of the settings
_DURATION_S: Final = 30.0
_THREE_DIGITS: Final = 100
_NO_SCORES: Final = (
    "`emberd bench` measures only embedding. Time emberd.Reranker with documents of your own."
)

Tokens = Annotated[
    list[int] | None,
    typer.Option(
        "--tokens",
        metavar="NUMBER",
        min=1,
        help="Length of the texts, cut to the context of the server; can be repeated. Default: "
        "16, 256 and 2,000.",
    ),
]
BatchSizes = Annotated[
    list[int] | None,
    typer.Option(
        "--batch-size",
        metavar="NUMBER",
        min=1,
        help="Maximum number of texts in a request; can be repeated. Default: 1, 16, and "
        "EMBERD_BATCH_SIZE, else 256.",
    ),
]
Duration = Annotated[
    str | None,
    typer.Option(
        "--duration",
        metavar="DURATION",
        help=f"About how long to measure: 90, 90s, 5m. Default: {output.duration(_DURATION_S)}.",
    ),
]


def bench(
    name: options.ModelName = None,
    tokens: Tokens = None,
    batch_sizes: BatchSizes = None,
    max_concurrency: embed_options.MaxConcurrency = None,
    duration: Duration = None,
    model: options.Model = None,
    engine: options.Engine = None,
    device: options.Device = None,
    deterministic: options.Deterministic = False,
    revision: options.Revision = None,
    quantization: options.Quantization = None,
    as_json: options.AsJson = False,
) -> None:
    """Measure how fast a server is: single queries, then documents in bulk.

    Uses the server that is found or started for the model. All texts are generated and new, so no
    cache answers, except for the instruction that all queries share. Other work of the server or of
    this machine lowers the figures.

    Ctrl-C prints what was measured so far.
    """
    from emberd import benchmark  # late, to keep the other subcommands fast

    seconds = _DURATION_S if duration is None else durations.validate("duration", duration)
    model = options.resolve_model(name, model)
    options.check_embeds(model, revision, _NO_SCORES)
    settings = options.settings(
        model=model,
        engine=engine,
        device=device,
        deterministic=deterministic or None,
        revision=revision,
        quantization=quantization,
    )
    embedder = embed_options.embedder_with(
        settings, None, truncate=False, max_concurrency=max_concurrency
    )
    sizes = batch_sizes or (*_BATCH_SIZES, embedder.settings.batch_size)
    server = up.ensure(embedder.settings)
    found: list[Any] = []
    begin_s, is_complete = time.monotonic(), False
    try:
        with output.ProgressLine() as line:
            steps = benchmark.run(
                embedder, tokens or _TOKENS, sizes, seconds, lambda doing: line.show(doing, doing)
            )
            for measured in steps:  # not extend(), which need not keep what came before an error
                found.append(measured)  # noqa: PERF402
        is_complete = True
    except EmberdError:
        if not as_json:  # the output is the error then
            _print(embedder, server, found)
        raise
    except KeyboardInterrupt:
        pass
    if as_json:
        about = {"complete": is_complete, "seconds": time.monotonic() - begin_s}
        output.write_json(_content(embedder, server, found) | about)
    else:
        _print(embedder, server, found)
    if not is_complete:
        raise KeyboardInterrupt


def _content(embedder: Embedder, server: Server, found: Results) -> dict[str, Any]:
    """Return the JSON form of the results."""
    from emberd import benchmark

    endpoint = server.endpoint
    queries, rates = _by_kind(found)
    return {
        "model": embedder.settings.model,
        "url": endpoint.url,
        "server": endpoint.server,
        "engine": server.engine,
        "dimensions": endpoint.dimensions,
        "context_tokens": endpoint.context_tokens,
        "max_concurrency": embedder.settings.max_concurrency,
        "queries": [
            {
                "tokens_per_text": each.tokens_per_text,
                "words_per_text": each.words_per_text,
                "queries": len(each.times_s),
                **{f"p{n}_ms": each.percentile_ms(n) for n in benchmark.PERCENTILES},
            }
            for each in queries
        ],
        "bulk": [
            {
                **asdict(each),
                "texts_per_s": each.texts_per_s,
                "tokens_per_s": each.tokens_per_s,
                "share_of_best": share,
            }
            for each, share in zip(rates, benchmark.shares(rates), strict=True)
        ],
        "skipped": found.count(None),
        "limits": list(benchmark.limits(rates, endpoint.server)),
    }


def _by_kind(found: Results) -> tuple[list[QueryLatency], list[BulkRate]]:
    from emberd.benchmark import BulkRate, QueryLatency

    queries = [each for each in found if isinstance(each, QueryLatency)]
    return queries, [each for each in found if isinstance(each, BulkRate)]


def _print(embedder: Embedder, server: Server, found: Results) -> None:
    from rich.table import Table
    from rich.text import Text

    from emberd import benchmark

    console, endpoint = output.console(), server.endpoint
    title = f"{embedder.settings.model} at {endpoint.url} ({endpoint.server})"
    console.print(Text(title), soft_wrap=True)
    for head, columns, rows in _tables(found, embedder.settings.max_concurrency):
        if rows:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            for column in columns:
                table.add_column(column, justify="right")
            for row in rows:
                table.add_row(*map(Text, row))
            console.print("", Text(head), "", table, sep="\n")
    lines = list(benchmark.limits(_by_kind(found)[1], endpoint.server))
    if skipped := found.count(None):
        lines.append(
            f"{output.pluralize(skipped, 'row')} not measured: a request would take longer than "
            f"the time for it. A longer --duration includes more of them."
        )
    for text in ["", *lines] if lines else []:
        console.print(Text(text), soft_wrap=True)


def _tables(found: Results, in_flight: int) -> Iterator[tuple[str, Sequence[str], list[list[str]]]]:
    """Yield the title, the columns and the rows of each table."""
    from emberd.benchmark import PERCENTILES, in_words, shares

    queries, rates = _by_kind(found)
    yield (
        "Single queries, one after another (the length includes the instruction)",
        ("length", "queries", *(f"p{percent} ms" for percent in PERCENTILES)),
        [
            [
                in_words(each),
                f"{len(each.times_s):,}",
                *(_number(each.percentile_ms(percent)) for percent in PERCENTILES),
            ]
            for each in queries
        ],
    )
    yield (
        f"Documents in bulk, at most {output.pluralize(in_flight, 'request')} in flight",
        ("length", "batch size", "texts", "texts/s", "tokens/s", "share of best"),
        [
            [
                in_words(each),
                f"{each.batch_size:,}",
                f"{each.texts:,}",
                _number(each.texts_per_s),
                _number(each.tokens_per_s),
                f"{share:.0%}",
            ]
            for each, share in zip(rates, shares(rates), strict=True)
        ],
    )


def _number(value: float | None) -> str:
    """Return a figure with three digits or more; a hyphen for one that is not known."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= _THREE_DIGITS else f"{value:.3g}"
