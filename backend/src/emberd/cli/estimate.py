"""``emberd up --estimate``: the memory that servers would take on GPUs that need not be here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    starts: Sequence[tuple[ServerSpec, StartOptions]], sizes: Sequence[str] | None, *, as_json: bool
) -> None:
    """Print what servers would take on empty GPUs; the exit code is 1 if they fit on none.

    Args:
        starts: The servers, with the options of their starts. Several share one GPU.
        sizes: Sizes of GPUs as typed; None for the usual ones.
        as_json: Whether to print JSON.

    Raises:
        NoEngineError: No server is started for a model on any GPU.
        SettingError: A size cannot be used, or nothing is known of a model's size.
    """
    servers = []
    for spec, options in starts:
        if spec.device not in (None, "cuda"):
            raise SettingError(f"--estimate is for GPUs. Omit device={spec.device!r}.")
        servers.append(_Estimated(spec, options, _engine(spec)))
    cards = [card for kind in _kinds(sizes) for card in _cards_of_size(servers, *kind)]
    if as_json:
        output.write_json(_as_content(servers, cards))
    else:
        for line in _lines(servers, cards):
            output.write_line(line)
    if not any(card["fits"] for card in cards):
        raise typer.Exit(ExitCode.ERROR)


@dataclass(frozen=True, slots=True)
class _Estimated:
    """One of the servers of an estimate."""

    spec: ServerSpec
    options: StartOptions
    engine: engines.Engine


def _as_content(servers: Sequence[_Estimated], cards: list[dict[str, Any]]) -> dict[str, Any]:
    wanted = [
        {
            "model": each.spec.model,
            "quantization": each.spec.quantization,
            "context_tokens": each.spec.context_tokens,
            "engine": each.engine.name,
            "gpus": each.options.gpus,
        }
        for each in servers
    ]
    if len(servers) > 1:
        return {"servers": wanted, "cards": cards}
    # Of one server, its figures are those of the card.
    return {**wanted[0], "cards": [_flat(card) for card in cards]}


def _flat(card: dict[str, Any]) -> dict[str, Any]:
    return {**{key: card[key] for key in card if key != "servers"}, **card.get("servers", [{}])[0]}


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
    servers: Sequence[_Estimated], size: float, generations: dict[str, tuple[int, int]]
) -> Iterator[dict[str, Any]]:
    """Yield what is known of GPUs of a size: once, if it is the same for several generations."""
    found: dict[str | None, dict[str, Any]] = {
        name: _card(servers, gpus.empty_card(size, capability))
        for name, capability in generations.items()
    }
    first, *others = found.values()
    if others and all(other == first for other in others):
        found = {None: first}
    for generation, need in found.items():
        yield {"memory_gb": size, "generation": generation, **need}


def _card(servers: Sequence[_Estimated], gpu: Gpu) -> dict[str, Any]:
    card: dict[str, Any] = {"free_bytes": gpu.free_bytes}
    try:
        needs = [_need(each, gpu) for each in servers]
    except StartError as error:
        return {**card, "fits": False, "problem": error.cause, "advice": error.advice}
    return {
        **card,
        "fits": True,
        "need_bytes": sum(need["need_bytes"] for need in needs),
        "servers": needs,
    }


def _need(server: _Estimated, gpu: Gpu) -> dict[str, Any]:
    need = server.engine.estimate(server.spec, server.options, [gpu] * server.options.gpus)
    if need is None:
        raise SettingError(
            f"The memory that {server.spec.model} takes with the engine {server.engine.name} "
            f"cannot be computed. It can be for the engine sglang, with a model of emberd's "
            f"catalog or a folder."
        )
    return {
        "model": server.spec.model,
        **{name: getattr(need, name) for name in _PARTS.values()},
        "longest_text_tokens": need.longest_text_tokens,
        "notes": list(need.notes),
    }


def _lines(servers: Sequence[_Estimated], cards: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = ", ".join(
        f"{each.spec.model}{f' in {each.spec.quantization}' if each.spec.quantization else ''}"
        for each in servers
    )
    options, is_one = servers[0].options, len(servers) == 1
    engine = ", ".join(dict.fromkeys(each.engine.name for each in servers))
    each_gpu = f" on each of {options.gpus} GPUs" if options.gpus > 1 else ""
    beside = "" if is_one else ", together on one card"
    yield f"{names} with {engine}: GiB{each_gpu}, upper bounds for an empty card{beside}"
    yield ""
    width = 0 if is_one else max(len(each.spec.model) for each in servers)
    head = [_cell("card", "card"), *([] if is_one else ["model".ljust(width)]), *_PARTS]
    yield "  ".join((*head, "longest text"))
    for card in cards:
        size = " ".join(filter(None, (f"{card['memory_gb']:g} GB", card["generation"])))
        if not card["fits"]:
            yield f"{_cell(size, 'card')}  cannot be used: {card['problem']}"
            continue
        for need in card["servers"]:
            model = [] if is_one else [need["model"].ljust(width)]
            parts = (_cell(f"{need[field] / _GIB:.1f}", name) for name, field in _PARTS.items())
            longest = f"{need['longest_text_tokens']:,} tokens"
            yield "  ".join((_cell(size, "card"), *model, *parts, longest))
        if not is_one:
            total = f"{card['need_bytes'] / _GIB:.1f}"
            columns = (_cell("", name) for name in list(_PARTS)[:-1])
            label = "together".ljust(width)
            yield "  ".join((_cell(size, "card"), label, *columns, _cell(total, "total")))
    yield ""
    notes = (note for card in cards for need in card.get("servers", ()) for note in need["notes"])
    for note in dict.fromkeys(notes):
        yield f"Note: {note}"
    yield "Computed; how far it was measured: docs/gpu-memory.md. No server was started."


def _cell(text: str, head: str) -> str:
    return f"{text:<13}" if head == "card" else f"{text:>{len(head)}}"
