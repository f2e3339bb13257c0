"""``emberd up --estimate``: the memory that a server would take on GPUs that need not be here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import typer

from emberd import engines
from emberd.cli import output
from emberd.cli.output import ExitCode
from emberd.engines import gpus
from emberd.engines.gpus import Gpu
from emberd.errors import SettingError, StartError
from emberd.settings import ServerSpec, StartOptions

_GIB: Final = 1 << 30
# Usual sizes in GB with generations. The plan for Hopper is calibrated on a measurement; all other
# GPUs have the same plan, but some can do less.
_HOPPER: Final = {"Hopper": (9, 0)}
_OTHER: Final = {"Ampere": (8, 0), "Ada, Blackwell": (8, 9)}
_USUAL: Final = (
    *((16.0, _OTHER), (24.0, _OTHER), (48.0, _OTHER), (80.0, _OTHER)),
    *((80.0, _HOPPER), (141.0, _HOPPER)),
)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(?:GB?)?", re.IGNORECASE)
_LARGEST_GB: Final = 4096
_PARTS: Final = {
    "weights": "weights_bytes",
    "KV cache": "kv_bytes",
    "activations": "activation_bytes",
    "overhead": "overhead_bytes",
    "total": "need_bytes",
}


def show(
    spec: ServerSpec, options: StartOptions, sizes: Sequence[str] | None, *, as_json: bool
) -> None:
    """Print what a server for ``spec`` would take on empty GPUs; the exit code is 1 if none fits.

    Args:
        spec: The server.
        options: How it would be started.
        sizes: Sizes of GPUs as typed; None for the usual ones.
        as_json: Whether to print JSON.

    Raises:
        NoEngineError: No server is started for ``spec`` on any GPU.
        SettingError: A size cannot be used, or nothing is known of the model's size.
    """
    if spec.device not in (None, "cuda"):
        raise SettingError(f"--estimate is for GPUs. Omit device={spec.device!r}.")
    engine = _engine(spec)
    cards = [
        card for kind in _kinds(sizes) for card in _cards_of_size(engine, spec, options, *kind)
    ]
    if as_json:
        wanted = {
            "model": spec.model,
            "quantization": spec.quantization,
            "context_tokens": spec.context_tokens,
            "engine": engine.name,
            "gpus": options.gpus,
        }
        output.write_json({**wanted, "cards": cards})
    else:
        for line in _lines(spec, engine.name, options, cards):
            output.write_line(line)
    if not any(card["fits"] for card in cards):
        raise typer.Exit(ExitCode.ERROR)


def _engine(spec: ServerSpec) -> engines.Engine:
    """Return the preferred engine for the model, whether or not it can run on this machine."""
    refusals = []
    for name in [spec.engine] if spec.engine else engines.NAMES:
        engine = engines.load(name)
        if (problem := engine.why_unsupported(spec)) is None:
            return engine
        refusals.append(f"{name}: {problem}")
    raise SettingError(f"No engine serves {spec.model}: {'; '.join(refusals)}.")


def _kinds(typed: Sequence[str] | None) -> Iterator[tuple[float, dict[str, tuple[int, int]]]]:
    """Yield the size of each GPU to plan for, with the generations that it may be of."""
    if not typed:
        yield from _USUAL
    for text in typed or ():
        found = _SIZE.fullmatch(text.strip())
        size = float(found[1]) if found else 0
        if not 0 < size <= _LARGEST_GB:
            raise SettingError(f"--memory {text!r} is not the size of a GPU. Give it as 24GB.")
        yield from [kind for kind in _USUAL if kind[0] == size] or [(size, _OTHER)]


def _cards_of_size(
    engine: engines.Engine,
    spec: ServerSpec,
    options: StartOptions,
    size: float,
    generations: dict[str, tuple[int, int]],
) -> Iterator[dict[str, Any]]:
    """Yield what is known of GPUs of a size: once, if it is the same for several generations."""
    found: dict[str | None, dict[str, Any]] = {
        name: _need(engine, spec, options, gpus.empty_card(size, capability))
        for name, capability in generations.items()
    }
    first, *others = found.values()
    if others and all(other == first for other in others):
        found = {None: first}
    for generation, need in found.items():
        yield {"memory_gb": size, "generation": generation, **need}


def _need(
    engine: engines.Engine, spec: ServerSpec, options: StartOptions, gpu: Gpu
) -> dict[str, Any]:
    card: dict[str, Any] = {"free_bytes": gpu.free_bytes}
    try:
        need = engine.estimate(spec, options, gpu)
    except StartError as error:
        return {**card, "fits": False, "problem": error.cause, "advice": error.advice}
    if need is None:
        raise SettingError(
            f"The memory that {spec.model} takes with the engine {engine.name} cannot be computed. "
            f"It can be for the engine sglang, with a model of emberd's catalog or a folder."
        )
    figures = {name: getattr(need, name) for name in _PARTS.values()}
    longest = need.longest_text_tokens
    return {
        **card,
        "fits": True,
        **figures,
        "longest_text_tokens": longest,
        "notes": list(need.notes),
    }


def _lines(
    spec: ServerSpec, engine: str, options: StartOptions, cards: Sequence[dict[str, Any]]
) -> Iterator[str]:
    precision = f" in {spec.quantization}" if spec.quantization else ""
    each = f" on each of {options.gpus} GPUs" if options.gpus > 1 else ""
    yield f"{spec.model}{precision} with {engine}: GiB{each}, upper bounds for an empty card"
    yield ""
    yield "  ".join(_cell(head, head) for head in ("card", *_PARTS, "longest text"))
    for card in cards:
        size = " ".join(filter(None, (f"{card['memory_gb']:g} GB", card["generation"])))
        if not card["fits"]:
            yield f"{_cell(size, 'card')}  cannot be used: {card['problem']}"
            continue
        parts = (_cell(f"{card[field] / _GIB:.1f}", name) for name, field in _PARTS.items())
        yield "  ".join((_cell(size, "card"), *parts, f"{card['longest_text_tokens']:,} tokens"))
    yield ""
    for note in dict.fromkeys(note for card in cards for note in card.get("notes", ())):
        yield f"Note: {note}"
    yield "Computed; how far it was measured: docs/gpu-memory.md. No server was started."


def _cell(text: str, head: str) -> str:
    return f"{text:<13}" if head == "card" else f"{text:>{len(head)}}"
