"""What emberd supports with SGLang: GPUs and drivers, models and their pooling, versions."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from emberd import catalog, model_card, model_files, model_pooling
from emberd.catalog import Model
from emberd.engines import gpus as all_gpus
from emberd.engines.gpus import VISIBLE, Gpu, Survey
from emberd.installs.recipes import dotted
from emberd.settings import QUANTIZATIONS, ServerSpec
from emberd.system import ownership

# ------------------------------------------------------------ versions


@dataclass(frozen=True, slots=True)
class Version:
    """What one supported version of SGLang does in another way than the newest one.

    Attributes:
        has_ready: Whether it has ``/ready``, which needs no key. Without it, ``/health`` tells the
            same, but runs a token through the model; with a key, ``/ready`` is then a 401.
        prepares: What its log says when the scheduler begins to prepare the device.
        lacks: Architectures of ``_POOLING`` for which it has no code, so that their pooling does
            not hold.
        msgpack: Whether its processes were tried with msgpack between them instead of pickle.
    """

    has_ready: bool = True
    prepares: str = "Init parallel begin"
    lacks: tuple[str, ...] = ()
    msgpack: bool = True


_OLD: Final = "Init torch distributed begin"
_GEMMA: Final = ("EmbeddingGemma2Model",)

VERSIONS: Final[Mapping[str, Version]] = MappingProxyType(
    {
        # The first version whose embeddings come as base64.
        "0.5.17": Version(has_ready=False, prepares=_OLD, lacks=_GEMMA, msgpack=False),
        "0.5.18": Version(has_ready=False, prepares=_OLD, lacks=_GEMMA, msgpack=False),
        "0.5.19": Version(has_ready=False, prepares=_OLD, lacks=_GEMMA, msgpack=False),
        "0.5.20": Version(prepares=_OLD, lacks=_GEMMA, msgpack=False),
        "0.5.21": Version(lacks=_GEMMA, msgpack=False),
        "0.5.22": Version(msgpack=False),
        "0.5.23": Version(),
    }
)
"""The supported versions, oldest first, and all differences between them that concern emberd.

What is not named here is the same in all of them: the options that emberd passes, the variables
that it sets, the other routes and which of them need the key, the counters, the lines of the log.
``tests/sglang_facts.json`` records that from the wheels, and tests compare it with this table.
"""

# A later build of a release ("0.5.22.post1", "0.5.23+cu130") is that release. A development build
# ("0.5.24.dev3") is none.
_RELEASE: Final = re.compile(r"(?P<release>\d+(?:\.\d+)*)(?:\.post\d+)?(?:\+.*)?")


def find_version(installed: str) -> Version | None:
    """Return what is particular to an installed version; None if it is not supported."""
    found = _RELEASE.fullmatch(installed)
    return VERSIONS.get(found["release"]) if found else None


def _numbers(version: str) -> list[int]:
    release = re.match(r"\d+(?:\.\d+)*", version)
    return [int(part) for part in release[0].split(".")] if release else []


def why_not_version(version: str, spec: ServerSpec) -> str | None:
    """Return what an installed version lacks for ``spec``; None if it can serve it."""
    known = find_version(version)
    if known is None:
        oldest, *_, newest = VERSIONS
        advice = ""
        if _numbers(version) > _numbers(newest):
            advice = "; or start it yourself: emberd finds and verifies it (docs/sglang.md)"
        return f"is not supported (only {oldest} to {newest} are tested{advice})"
    folder = _folder(spec)
    architecture = model_pooling.architecture(folder) if folder else None
    if architecture in known.lacks:
        return f"has no code for the architecture {architecture}"
    return None


def _folder(spec: ServerSpec) -> Path | None:
    """Return the folder of a model, or what the hub's cache has of it."""
    if model_files.is_folder(spec.model):
        return Path(spec.model)
    return model_files.hub_snapshot(spec.model, spec.revision)


# ------------------------------------------------------------ GPUs

MIN_CAPABILITY: Final = (8, 0)
"""SGLang's kernels have no code for older GPUs, although its own check accepts some."""

FP8_CAPABILITY: Final = (8, 9)
"""From here on SGLang multiplies in fp8. ``--quantization fp8`` works from 8.0 on, but there only
the weights are rounded, so the vectors are others (srt/layers/quantization/fp8.py)."""

NEEDS_CUDA: Final = (13, 0)
"""What the torch that SGLang 0.5.23 pins is built for; driver 580 and newer run it."""


GENERATIONS: Final = {
    (12, 0): "Blackwell (consumer)",
    (10, 0): "Blackwell",
    (9, 0): "Hopper",
    (8, 9): "Ada",
    (8, 0): "Ampere",
}
"""Lowest compute capability of each generation of GPUs -> NVIDIA's name for it, newest first."""


def generation(capability: tuple[int, int]) -> str | None:
    """Return the name of the generation of a compute capability; None if it is too old."""
    return next((name for least, name in GENERATIONS.items() if capability >= least), None)


def why_unsuitable(seen: Survey, count: int = 1, quantization: str | None = None) -> str | None:
    """Return why SGLang cannot use ``count`` of these GPUs and what to do; None if it can."""
    if seen.problem:
        return seen.problem
    if seen.cuda is not None and seen.cuda < NEEDS_CUDA:
        return (
            f"the NVIDIA driver {seen.driver} runs CUDA up to {dotted(seen.cuda)}, but SGLang "
            f"needs {dotted(NEEDS_CUDA)}: install driver 580 or newer"
        )
    fit = _suitable(seen.gpus, quantization)
    if not fit:
        found = ", ".join(f"{gpu.name} ({dotted(gpu.capability)})" for gpu in seen.gpus)
        if quantization and _suitable(seen.gpus):
            return (
                f"SGLang computes in {quantization} from compute capability "
                f"{dotted(FP8_CAPABILITY)} on (Ada and newer); found {found}: omit "
                f"quantization={quantization!r}, or use another GPU"
            )
        return (
            f"SGLang needs a GPU of compute capability {dotted(MIN_CAPABILITY)} or more "
            f"(Ampere and newer); found {found}"
        )
    if count > 1 and any(gpu.uuid.startswith("MIG-") for gpu in fit):
        return (
            f"{count} GPUs were requested, but CUDA gives a process only one MIG instance; "
            f"omit tp_size and dp_size"
        )
    if len(fit) < count:
        return (
            f"{count} GPUs were requested (tp_size times dp_size), but {len(fit)} can be used; "
            f"request fewer, or list more of them in {VISIBLE}"
        )
    return None


def freest_supported(
    gpus: Sequence[Gpu],
    count: int = 1,
    locked: Sequence[str] = (),
    quantization: str | None = None,
) -> tuple[Gpu, ...]:
    """Return the ``count`` suitable GPUs with the most free memory, as ``gpus.freest`` does."""
    return all_gpus.freest(_suitable(gpus, quantization), count, locked)


def _suitable(gpus: Sequence[Gpu], quantization: str | None = None) -> list[Gpu]:
    least = FP8_CAPABILITY if quantization else MIN_CAPABILITY
    return [gpu for gpu in gpus if gpu.capability >= least]


def why_not_quantised(spec: ServerSpec) -> str | None:
    """Return why a server is not started with the quantisation of ``spec``; None if it may be."""
    name = spec.quantization
    if name is None:
        return None
    if name not in QUANTIZATIONS:
        return f"does not support quantization={name!r}; use {' or '.join(QUANTIZATIONS)}, or none"
    if spec.device == "cpu":
        return f"computes in {name} only on a GPU; omit quantization={name!r}"
    if spec.deterministic:
        return (
            f"does not say that its kernels for {name} compute deterministically; omit "
            f"quantization={name!r}, or deterministic=True"
        )
    folder = _folder(spec)
    if folder and "quantization_config" in model_files.read_json(folder / model_files.CONFIG):
        return f"quantises {spec.model} as its config.json says; omit quantization={name!r}"
    return None


# ------------------------------------------------------------ models

# Last-token pooling, compared with Transformers on the same weights.
_VERIFIED: Final = ("Qwen3ForCausalLM", "Qwen3Model")
# How SGLang 0.5.23 pools these, whatever the checkpoint says (srt/models/bert.py, roberta.py,
# lfm2.py, embedding_gemma2.py, qwen3.py, qwen3_embedding.py, llama_embedding.py and clip.py). A
# bidirectional Gemma 3 gets the mean as well (gemma3_causal.py).
_LAST_TOKEN: Final = "lasttoken"  # noqa: S105 - no password
_POOLING: Final = {
    "BertModel": "cls",
    "Contriever": "cls",
    "XLMRobertaModel": "cls",
    "Lfm2BidirectionalModel": "cls",
    "EmbeddingGemma2Model": "mean",
    "CLIPModel": _LAST_TOKEN,
    "LlamaEmbeddingModel": _LAST_TOKEN,
    "MistralModel": _LAST_TOKEN,
    "Qwen3Model": _LAST_TOKEN,
    "Qwen3ForCausalLM": _LAST_TOKEN,
}
_RERANKERS: Final = ("Qwen3ForCausalLM",)
_BERTS: Final = ("BertModel", "Contriever", "XLMRobertaModel")
# SGLang computes a mean as the difference of two running sums over all tokens of a batch, in
# bfloat16 (srt/layers/pooler.py). After 2,400 tokens of other texts, the mean of 12 states has a
# cosine of 0.87 to 0.95 with the exact one; after 300, 0.998, which passes a canary.
_WRONG_MEAN: Final = (
    "which SGLang computes from sums over all texts of a batch, rounded to bfloat16: the vectors "
    "would depend on the batch"
)
_MEAN: Final = "mean"
# SGLang has its own code for these, and none of it pools: a start fails (0.5.23, tried with the
# last).
_NO_EMBEDDINGS: Final = ("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM")
# The other decoders get the last token, from code of SGLang's own or through Transformers. For an
# encoder that is not named above, SGLang has no code: how, and whether, it runs is not known.
_DECODERS: Final = ("ForCausalLM", "ForConditionalGeneration")
_BARE_DECODERS: Final = (
    *("CohereModel", "Cohere2Model", "GemmaModel", "Gemma2Model", "GPT2Model", "GPTNeoXModel"),
    *("GraniteModel", "LlamaModel", "MixtralModel", "OlmoModel", "Olmo2Model", "Olmo3Model"),
    *("OPTModel", "PhiModel", "Phi3Model", "Qwen2Model", "Qwen2MoeModel", "Qwen3MoeModel"),
    *("SmolLM3Model", "Starcoder2Model"),
)
_IN_WORDS: Final = {"cls": "the first token"}


def precision_notes(spec: ServerSpec) -> list[str]:
    """Return what users of a quantised model should know, one sentence each."""
    text = (
        f"{spec.quantization} gives other vectors than {spec.model} does unquantised, and emberd's "
        f"developers have not tried it on a GPU: compare some vectors before you build an index."
    )
    return [text] if spec.quantization else []


def why_not_reranked(spec: ServerSpec) -> str | None:
    """Return why SGLang's scores would not be those of a reranker; None if they may be."""
    folder = _folder(spec)
    architecture = model_pooling.architecture(folder) if folder else None
    if architecture not in (None, *_RERANKERS):
        return (
            f"scores pairs with {' and '.join(_RERANKERS)}, but {spec.model} has the architecture "
            f"{architecture}"
        )
    return None


def notes(model: str, revision: str | None = None) -> list[str]:
    """Return what users of the model's vectors should know, one sentence each."""
    if not model_files.is_folder(model):
        if (known := catalog.find(model)) is not None:
            kind = known.architecture or ""
            return [] if kind in _VERIFIED else [_unverified(model, kind, _POOLING.get(kind))]
        kept = model_files.hub_snapshot(model, revision)
        if kept is not None and model_pooling.tells_pooling(kept):
            return [_unverified(model, "it"), *model_card.unused_prompts(kept)]
        # SGLang downloads configuration, tokenizer and weights, but not these files.
        unchecked = (
            f"the files that say how {model} pools may not be on this machine, and SGLang does not "
            f"download them: run `hf download {model}` before the start, and emberd checks them."
        )
        return [_unverified(model, "it"), unchecked]
    architecture = model_pooling.architecture(Path(model)) or "an unnamed architecture"
    taken = _pooling(Path(model))
    pooling = [] if architecture in _VERIFIED else [_unverified(model, architecture, taken)]
    return [*pooling, *model_card.unused_prompts(Path(model))]


def why_unservable(folder: Path, *, partial: bool) -> str | None:
    """Return why SGLang's vectors would not be those of a folder's model; None if they may be.

    With ``partial`` the folder is the hub's cache, in which files may be missing.
    """
    architecture = model_pooling.architecture(folder)
    if partial and architecture is None:
        return None  # without config.json it is not known how SGLang pools the model
    pooling = _pooling(folder)
    if architecture and pooling is None and (not partial or model_pooling.names_pooling(folder)):
        return (
            f"how SGLang pools a {architecture} ({folder}) is unknown. {model_pooling.OTHER_SERVER}"
        )
    problem = model_pooling.why_unsupported(
        folder,
        pooling=pooling or _LAST_TOKEN,
        partial=partial,
    )
    if problem is None and architecture in _NO_EMBEDDINGS:
        return (
            f"SGLang computes no embeddings with a {architecture} ({folder}). "
            f"{model_pooling.OTHER_SERVER}"
        )
    if problem is None and pooling == _MEAN:
        return f"{folder} pools by mean, {_WRONG_MEAN}. {model_pooling.OTHER_SERVER}"
    return str(problem) if problem else None


def _pooling(folder: Path) -> str | None:
    """Return how SGLang pools a folder's model, for ``model_pooling``; None if unknown."""
    architecture = model_pooling.architecture(folder) or ""
    config = model_files.read_json(folder / model_files.CONFIG)
    is_gemma = architecture.startswith("Gemma3Text") or config.get("model_type") == "gemma3_text"
    if is_gemma and config.get("use_bidirectional_attention"):
        return _MEAN
    if architecture in _POOLING:
        return _POOLING[architecture]
    is_decoder = architecture.endswith(_DECODERS) or architecture in _BARE_DECODERS
    # SGLang reads pooling_type where it runs a model through Transformers
    # (srt/models/transformers.py): "cls" in any case is the first token there, and everything else
    # the last one.
    is_configured = config.get("pooling_type") is not None
    return _LAST_TOKEN if is_decoder and not is_configured else None


def overrides(spec: ServerSpec) -> dict[str, Any]:
    """Return what the configuration of a model lacks for SGLang."""
    needed: dict[str, Any] = {"is_matryoshka": True}
    folder = _folder(spec)
    config = model_files.read_json(folder / model_files.CONFIG) if folder else {}
    # Transformers 5 has only these positions and does not save the key; SGLang requires it.
    is_bert = model_pooling.architecture(folder) in _BERTS if folder else False
    if is_bert and "position_embedding_type" not in config:
        needed["position_embedding_type"] = "absolute"
    return needed


def why_entry_unservable(model: Model) -> str | None:
    """Return why SGLang's vectors would not be those of a model of the catalog."""
    taken = _POOLING.get(model.architecture or "")
    if taken == model.pooling and taken != _MEAN:
        return None
    return f"SGLang does not pool {model.name} as it was trained ({model.pooling})"


def _unverified(model: str, what: str, pooling: str | None = None) -> str:
    taken = _IN_WORDS.get(pooling or "")
    return (
        f"emberd has not verified how SGLang pools {what} ({model})"
        f"{f'; it takes {taken}' if taken else ''}. Before you build an index, compare its vectors "
        f"with those of transformers: emberd verify {shlex.quote(model)}"
    )


_CODE: Final = (".py", ".pyc", ".so")


def check_code(model: str, revision: str | None) -> None:
    """Check that no other user can have written the code of a model that is run when it is loaded.

    That is what ``--trust-remote-code`` allows: Python files of the model, and the copies of them
    that Transformers makes and imports.

    Raises:
        StateFolderError: Another user can have written some of it.
    """
    if model_files.is_folder(model):
        roots = [Path(model).resolve()]
    else:
        snapshot = model_files.hub_snapshot(model, revision)
        # The commit of a branch, and the files of all commits, are beside the snapshot.
        roots = [model_files.hub_folder(model)] if snapshot else []
    for root in (*roots, model_files.hub_modules()):
        for place, _, names in os.walk(root):
            _check_code(Path(place), os.lstat(place), root)
            for name in names:
                file = Path(place, name)
                if name.endswith(_CODE) and file.is_file():
                    # The content: the hub's cache consists of links to files inside of it.
                    _check_code(file.resolve(), file.stat(), root)


def _check_code(path: Path, facts: os.stat_result, root: Path) -> None:
    ownership.check(
        path,
        facts,
        by_root=True,
        so="so its code is not run",
        instead="Omit --trust-remote-code, or use your own copy.",
        within=root,
    )
