"""Which GPUs SGLang can run on, and what is particular to each generation.

* Which models are given to SGLang, and what a user should know about the others.

* Which options an installed SGLang knows, read from its source without importing it.

Importing it takes seconds and needs torch; and an option that a version does not know ends its
start with exit code 2.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emberd import catalog, checkpoints, pipeline
from emberd.catalog import Model
from emberd.engines.gpus import VISIBLE, Gpu, Survey, freest

MIN_CAPABILITY: Final = (8, 0)
"""Below it the kernels that SGLang ships have no code, whatever its own check says."""

NEEDS_CUDA: Final = (13, 0)
"""What the torch that SGLang 0.5.23 pins is built for; drivers from 580 on run it."""

_NEEDS_DRIVER: Final = 580
_MIG: Final = "MIG-"


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of GPUs.

    Attributes:
        name: NVIDIA's name for it.
        capability: The lowest compute capability that belongs to it.
        attention: The kernels that SGLang chooses there by itself.
        why: Why emberd leaves that choice alone, and what it keeps off.
    """

    name: str
    capability: tuple[int, int]
    attention: str
    why: str


GENERATIONS: Final = (
    Generation(
        "Blackwell (consumer)",
        (12, 0),
        "flashinfer or triton",
        "SGLang's own choice for compute capability 12; the datacentre kernels do not run there",
    ),
    Generation(
        "Blackwell",
        (10, 0),
        "trtllm_mha",
        "SGLang's own choice; it raises the page size, of which the figures are multiples",
    ),
    Generation(
        "Hopper",
        (9, 0),
        "fa3",
        "SGLang's own choice; the path without a KV cache, for which prefill in chunks must be "
        "off, is not taken: it gave NaN for short texts up to 0.5.12 and is unproven here",
    ),
    Generation("Ada", (8, 9), "flashinfer, else triton", "SGLang's own choice"),
    Generation("Ampere", (8, 0), "flashinfer, else triton", "SGLang's own choice"),
)
"""The newest first. Read in srt/arg_groups/model_override_base.py; none has been tried."""


def generation(capability: tuple[int, int]) -> Generation | None:
    """Return the generation of a compute capability; None for one that is too old."""
    return next((known for known in GENERATIONS if capability >= known.capability), None)


def unsuitable(seen: Survey, count: int = 1) -> str | None:
    """Return why SGLang cannot run on ``count`` of these GPUs and what to do; None if it can."""
    if seen.problem:
        return seen.problem
    if seen.cuda is not None and seen.cuda < NEEDS_CUDA:
        return (
            f"the NVIDIA driver {seen.driver} runs CUDA up to {_version(seen.cuda)}, and SGLang "
            f"needs {_version(NEEDS_CUDA)}: install driver {_NEEDS_DRIVER} or newer"
        )
    fit = suitable(seen.gpus)
    if not fit:
        found = ", ".join(f"{gpu.name} ({_version(gpu.capability)})" for gpu in seen.gpus)
        return (
            f"SGLang needs a GPU of compute capability {_version(MIN_CAPABILITY)} or more "
            f"(Ampere and newer); here is {found}"
        )
    if count > 1 and any(gpu.uuid.startswith(_MIG) for gpu in fit):
        return (
            f"{count} GPUs were asked for, and CUDA gives a process one MIG instance; "
            f"leave tp_size and dp_size out"
        )
    if len(fit) < count:
        return (
            f"{count} GPUs were asked for (tp_size times dp_size), and {len(fit)} can be used; "
            f"ask for fewer, or show more of them in {VISIBLE}"
        )
    return None


def suitable(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Return those that SGLang can run on."""
    return tuple(gpu for gpu in gpus if gpu.capability >= MIN_CAPABILITY)


def choose(gpus: Sequence[Gpu], count: int = 1) -> tuple[Gpu, ...]:
    """Return the ``count`` suitable GPUs with the most free memory, the freest first."""
    return freest(suitable(gpus), count)


def _version(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))


# Last-token pooling, compared with Transformers on the same weights.
_VERIFIED: Final = ("Qwen3ForCausalLM", "Qwen3Model")
# How SGLang 0.5.17 to 0.5.23 pools these, whatever the checkpoint says (srt/models/bert.py,
# roberta.py and gemma3_causal.py). All others get the last token.
_POOLING: Final = {"BertModel": "cls", "XLMRobertaModel": "cls"}
_LAST_TOKEN: Final = "lasttoken"  # noqa: S105 - no password
_GEMMA: Final = "Gemma3TextModel"
_BIDIRECTIONAL: Final = "use_bidirectional_attention"
# SGLang has no code of its own for these: how, and whether, they run is not known.
_WITHOUT_CODE: Final = ("BertForMaskedLM", "RobertaModel", _GEMMA)
_IN_WORDS: Final = {"cls": "the first token", "mean": "the mean of the tokens"}


def unfit(model: str, revision: str | None = None) -> str | None:
    """Return why a model cannot be served on any machine; None if it may be."""
    if not checkpoints.is_folder(model):
        if checkpoints.is_path(model):
            return f"there is no folder {model}"
        kept = checkpoints.snapshot(model, revision)
        return _unservable(kept, partial=True) if kept else None
    if not (Path(model) / checkpoints.CONFIG).is_file():
        return f"the folder {model} holds no {checkpoints.CONFIG}: it is no checkpoint"
    return _unservable(Path(model))


def is_downloaded(model: str) -> bool:
    """Return whether the hub's cache on this machine holds a model, as far as can be seen."""
    kept = checkpoints.hub_cache() / f"models--{model.replace('/', '--')}"
    whole = any(kept.glob(f"snapshots/*/{checkpoints.CONFIG}"))
    return whole and not any(kept.glob("blobs/*.incomplete"))


def notes(model: str, revision: str | None = None) -> list[str]:
    """Return what a user of the model's vectors should know, a sentence each."""
    if not checkpoints.is_folder(model):
        if catalog.lookup(model) != Model(model):
            return []
        kept = checkpoints.snapshot(model, revision)
        # SGLang downloads configuration, tokenizer and weights, but not these files.
        is_checked = kept is not None and pipeline.names_pooling(kept)
        return [_unverified(model, "it"), *([] if is_checked else [_unchecked(model)])]
    architecture = checkpoints.architecture(model) or "an unnamed architecture"
    pooling = [] if architecture in _VERIFIED else [_unverified(model, architecture)]
    return [*pooling, *pipeline.unused_prompts(Path(model))]


def _unservable(folder: Path, *, partial: bool = False) -> str | None:
    architecture = checkpoints.architecture(str(folder))
    if partial and architecture is None:
        return None  # without config.json it is not known how SGLang pools the model
    pooling = _pooling(folder)
    if pooling is None and pipeline.names_pooling(folder):
        return (
            f"{folder} names a pooling, and how SGLang pools a {architecture} is not known. "
            f"{pipeline.OTHER_SERVER}"
        )
    problem = pipeline.unservable(folder, pooling=pooling or _LAST_TOKEN, partial=partial)
    return str(problem) if problem else None


def _pooling(folder: Path) -> str | None:
    """Return how SGLang pools a folder's model, as ``pipeline.unservable`` takes it, or None."""
    architecture = checkpoints.architecture(str(folder)) or ""
    config = checkpoints.read_json(folder / checkpoints.CONFIG)
    if architecture == _GEMMA and config.get(_BIDIRECTIONAL) is True:
        return "mean"
    if architecture in _WITHOUT_CODE:
        return None
    return _POOLING.get(architecture, _LAST_TOKEN)


def _unchecked(model: str) -> str:
    return (
        f"the files that say how {model} pools may not be on this machine, and SGLang does not "
        f"download them: run `hf download {model}` before a start, and emberd checks them."
    )


def _unverified(model: str, what: str) -> str:
    pooling = _pooling(Path(model)) if checkpoints.is_folder(model) else None
    taken = _IN_WORDS.get(pooling or "")
    return (
        f"emberd has not verified how SGLang pools {what} ({model})"
        f"{f'; it takes {taken}' if taken else ''}: compare some vectors with the model's own "
        f"library before an index is made of them."
    )


_ROOT: Final = ("sglang", "srt")
_MAIN: Final = "server_args.py"
_GROUPS: Final = "arg_groups"
_RECORD: Final = "ServerArgs"
_FIELDS: Final = "fields"
_ANNOTATED: Final = ("A", "Annotated")
_ADD: Final = "add_argument"
_NAMES: Final = ("aliases", "cli_name")
_NAME: Final = "cli_name"
_UNREGISTERED: Final = "no_cli"
_DASHES: Final = "--"


def known_options(packages: str) -> frozenset[str] | None:
    """Return the names of all options, such as ``--model-path``.

    Until mid-2026 each was added to the parser by a call; since then most are fields whose
    annotations say how. Both are read.

    Args:
        packages: The ``site-packages`` folder that holds SGLang.

    Returns:
        None when there is no SGLang, or none that is laid out in a way known to us.
    """
    root = Path(packages).joinpath(*_ROOT)
    files = [root / _MAIN, *sorted((root / _GROUPS).rglob("*.py"))]
    try:
        trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}
    except (OSError, SyntaxError, ValueError):
        return None
    names = {name for file, tree in trees.items() for name in _options(file, tree)}
    return frozenset(names) or None


def _options(file: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _called(node) == _ADD:
            yield from _texts(node.args)
        elif isinstance(node, ast.ClassDef) and _holds_options(file, node):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield from _of_field(field.target.id, field.annotation)


def _holds_options(file: Path, node: ast.ClassDef) -> bool:
    return node.name == _RECORD or file.parent.name == _FIELDS


def _of_field(name: str, annotation: ast.expr) -> Iterator[str]:
    if not isinstance(annotation, ast.Subscript) or _name(annotation.value) not in _ANNOTATED:
        return
    words = {
        word.arg: word.value
        for node in ast.walk(annotation.slice)
        if isinstance(node, ast.Call)
        for word in node.keywords
        if word.arg
    }
    hidden = words.get(_UNREGISTERED)
    if isinstance(hidden, ast.Constant) and hidden.value:
        return
    if _NAME not in words:
        yield _DASHES + name.replace("_", "-")
    for key in _NAMES:
        if key in words:
            yield from _texts(ast.walk(words[key]))


def _texts(nodes: Iterator[ast.AST] | list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from [node.value] if node.value.startswith(_DASHES) else []


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else ""


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""
