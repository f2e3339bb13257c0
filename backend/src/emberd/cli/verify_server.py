"""``emberd verify``: compare a server's vectors with those of transformers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from emberd import probe
from emberd.catalog import DEMO_MODEL
from emberd.cli import options, output, up
from emberd.cli.output import ExitCode
from emberd.errors import InstructionError, RequestError, SettingError
from emberd.settings import Settings

if TYPE_CHECKING:
    from emberd.embedder import Embedder
    from emberd.endpoint import Endpoint
    from emberd.fidelity import Compared, Comparison, Outcome, ReferenceVectors
    from emberd.prompts import Role

# The reference computes it on a processor, twice.
_LONGEST_TOKENS: Final = 2_048
_SHOWN_CHARS: Final = 40
_NO_VECTORS: Final = (
    "`emberd verify` compares vectors. The scores of a server are checked before its first use: "
    "`emberd up {model}` shows what that found."
)
_SHOWN_TEXTS: Final = 10
_COLUMNS: Final = ("kind", "texts", "lowest cosine", "bfloat16", "text")

BaseUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--base-url",
        metavar="URL",
        help="A server to compare; can be repeated. Default: EMBERD_BASE_URL, else a server that "
        "is found or started.",
    ),
]
Pooling = Annotated[
    str | None,
    typer.Option(
        "--pooling",
        metavar="NAME",
        help="lasttoken, cls or mean, for a model whose files do not say how it pools.",
    ),
]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens",
        metavar="NUMBER",
        min=64,
        help="Length of the longest text, if the model takes as much.",
    ),
]


def verify(
    name: options.ModelName = None,
    model: options.Model = None,
    base_urls: BaseUrls = None,
    engine: options.Engine = None,
    device: options.Device = None,
    revision: options.Revision = None,
    pooling: Pooling = None,
    max_tokens: MaxTokens = _LONGEST_TOKENS,
    as_json: options.AsJson = False,
) -> None:
    """Compare a server's vectors with those of Hugging Face transformers.

    Embeds some forty texts of several kinds, each in a separate request and all in one, and
    computes their vectors from the same weights on this machine. Needs the weights (a folder, or
    the hub's cache), an engine with transformers, and memory for the weights in float32.

    A vector may be twice as far from float32 as transformers in bfloat16 is. The exit code is 1 if
    one is farther. A text that is refused has no vector, and is listed.
    """
    # Imported late, to keep the other subcommands fast.
    from emberd import fidelity

    if pooling is not None and pooling not in fidelity.POOLINGS:
        known = ", ".join(fidelity.POOLINGS)
        raise SettingError(f"--pooling {pooling!r} is not known. Known are: {known}.")
    wishes = {"engine": engine, "device": device}
    wishes["model"], wishes["revision"] = options.resolve_model(name, model), revision
    options.check_embeds(wishes["model"], revision, _NO_VECTORS)
    chosen = {key: wishes[key] for key in ("engine", "device") if wishes[key] is not None}
    if base_urls and chosen:
        raise SettingError(
            f"{options.as_typed(chosen)} cannot be combined with --base-url, with which no server "
            f"is started. Omit one of them."
        )
    urls: Sequence[str | None] = base_urls or (None,)
    targets = [_settings({**wishes, "base_url": url}) for url in urls]
    # What needs no server comes first; the weights may be downloaded by a server that starts.
    if targets[0].model == DEMO_MODEL or targets[0].base_url is not None:
        fidelity.find_checkpoint(targets[0], pooling)
    interpreter = fidelity.find_interpreter()
    endpoints = [up.ensure(settings).endpoint for settings in targets]
    checkpoint = fidelity.find_checkpoint(targets[0], pooling)
    fidelity.check_memory(checkpoint)
    with output.ProgressLine() as line:
        reference = fidelity.compute(
            checkpoint,
            interpreter,
            targets[0],
            max_tokens,
            lambda doing: line.show(doing, topic=doing.partition(":")[0]),
        )
        found = []
        for settings, endpoint in zip(targets, endpoints, strict=True):
            line.show(f"embedding {len(reference.samples)} texts at {endpoint.url}", endpoint.url)
            embed = partial(_embed, _embedder(settings))
            found.append(fidelity.compare(embed, reference, _number_format(endpoint)))
    if as_json:
        servers = [_content(*pair) for pair in zip(endpoints, found, strict=True)]
        about = {"model": targets[0].model, "folder": str(checkpoint.folder)}
        about |= {"pooling": checkpoint.pooling}
        libraries = {**reference.versions, "python": interpreter.python}
        output.write_json({**about, "reference": libraries, "servers": servers})
    else:
        _print(targets[0].model, reference, zip(endpoints, found, strict=True))
    if not all(each.is_good for each in found):
        raise typer.Exit(ExitCode.ERROR)


def _settings(given: dict[str, Any]) -> Settings:
    try:
        settings = options.settings(**given)
        _ = settings.query_template, settings.document_template  # their files may be missing
    except InstructionError:
        # How a server computes is the same with and without a prompt.
        settings = options.settings(embeds=False, **given)
        output.note(f"note: the prompts of {settings.model} are not known, so none are used")
    return settings


def _embedder(settings: Settings) -> Embedder:
    from emberd.embedder import Embedder

    # What the environment may set, and what would hide the server's own vectors.
    return Embedder(
        settings.model,
        query_instruction=settings.query_instruction,
        document_instruction=settings.document_instruction,
        base_url=settings.base_url,
        engine=settings.engine,
        device=settings.device,
        revision=settings.revision,
    ).replace(cache=None, truncate=False)


def _embed(embedder: Embedder, texts: Sequence[str], role: Role) -> list[Outcome]:
    iterate = embedder.iter_queries if role == "query" else embedder.iter_documents
    try:
        return list(iterate(texts, set_aside=True))
    except RequestError as error:
        return [error] * len(texts)


def _number_format(endpoint: Endpoint) -> str | None:
    """Return the number format that a server says it computes in."""
    reply = probe.get(endpoint.url, probe.SERVER_INFO, endpoint.api_key, listener=endpoint.listener)
    told = reply.json() if reply is not None else None
    return told.get("dtype") if isinstance(told, dict) else None


# ---------------------------------------------------------------- output


def _content(endpoint: Endpoint, found: Comparison) -> dict[str, Any]:
    """Return the JSON form of a comparison."""
    return {
        "url": endpoint.url,
        "server": endpoint.server,
        "ok": found.is_good,
        "floor": found.floor,
        "bound": found.bound,
        "texts": [
            {
                **asdict(each.sample),
                "tokens": each.tokens,
                "bfloat16": each.rounded,
                "alone": each.alone,
                "together": each.together,
                "error": options.to_cli_names(each.error),
                "refused": each.is_refused,
                "unanswered": each.is_unanswered,
                "ok": each.is_good,
            }
            for each in found.texts
        ],
    }


def _print(
    model: str, reference: ReferenceVectors, compared: Iterator[tuple[Endpoint, Comparison]]
) -> None:
    from rich.table import Table
    from rich.text import Text

    console = output.console()
    for endpoint, found in compared:
        console.print(Text(f"{model} at {endpoint.url} ({endpoint.server})"), soft_wrap=True)
        console.print()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in _COLUMNS:
            table.add_column(column, justify="right" if column in _COLUMNS[1:4] else "left")
        for row in _rows(found.texts):
            table.add_row(*map(Text, row))
        console.print(table)
        console.print()
        for text in _verdict(reference, found):
            console.print(Text(text), soft_wrap=True)


def _rows(texts: Sequence[Compared]) -> Iterator[tuple[str, ...]]:
    """Yield the cells of a row for each kind."""
    for kind, group in groupby(texts, key=lambda each: each.sample.kind):
        members = list(group)
        with_vector = [each for each in members if each.lowest is not None]
        # A text that fails comes first, whatever its cosine; NaN is the lowest of all.
        worst = min(with_vector, key=_rank, default=None)
        rounded = min(each.rounded for each in members)
        lowest = f"{worst.lowest:.6f}" if worst is not None else "-"
        shown = _shown(worst.sample.text) if worst is not None else "refused"
        yield kind, str(len(members)), lowest, f"{rounded:.6f}", shown


def _rank(compared: Compared) -> tuple[bool, float]:
    lowest = compared.lowest
    is_number = lowest is not None and lowest == lowest  # noqa: PLR0124 - NaN is not itself
    return is_number, lowest if lowest is not None and is_number else 0.0


def _verdict(reference: ReferenceVectors, found: Comparison) -> Iterator[str]:
    refused = [each for each in found.texts if each.is_refused]
    unanswered = [each for each in found.texts if each.is_unanswered]
    wrong = [
        each for each in found.texts if not (each.is_good or each.is_refused or each.is_unanswered)
    ]
    for what, texts in (("refused", refused), ("no answer", unanswered), ("wrong", wrong)):
        for each in texts[:_SHOWN_TEXTS]:
            facts = each.error and options.to_cli_names(each.error)
            if each.lowest is not None:
                alone, together = map(_number, (each.alone, each.together))
                facts = f"alone {alone}, together {together}. {facts}".strip()
            yield f"{what}: {each.sample.kind} {_shown(each.sample.text)}: {facts}"
        if len(texts) > _SHOWN_TEXTS:
            yield f"{what}: {len(texts) - _SHOWN_TEXTS} more"
    allowed = f"the reference in float32 within 1 - cosine = {found.bound:.1e}"
    basis = f"twice what transformers in bfloat16 is off by, {found.floor:.1e}, plus 1e-04"
    if found.floor == 0:
        basis = "the server computes in float32"
    longest = max(reference.tokens)
    count = output.pluralize(len(found.texts), "text")
    if unanswered and not wrong:
        yield f"INCOMPLETE: the server did not answer for {len(unanswered)} of {count}."
        yield "Next: see the log of the server, and run the command again."
        return
    if wrong or not found.is_good:
        yield f"WRONG: {len(wrong)} of {count} are not that of {allowed} ({basis})."
        yield "Next: docs/other-servers.md says what each kind of text can show."
        return
    rest = f", and {len(refused)} were refused" if refused else ""
    yield (
        f"OK: the vectors of {len(found.texts) - len(refused)} of {count}, up to {longest:,} "
        f"tokens long, are those of {allowed} ({basis}){rest}."
    )


def _number(cosine: float | None) -> str:
    return "none" if cosine is None else f"{cosine:.6f}"


def _shown(text: str) -> str:
    short = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
    return repr(short)
