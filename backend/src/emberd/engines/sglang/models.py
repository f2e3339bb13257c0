"""Which models SGLang is given, and what is to be known of those whose vectors nobody verified."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from emberd import catalog, checkpoints
from emberd.catalog import Model

# Last-token pooling, compared with Transformers on the same weights.
_VERIFIED: Final = ("Qwen3ForCausalLM", "Qwen3Model")
_ENCODERS: Final = ("BertModel", "BertForMaskedLM", "XLMRobertaModel", "RobertaModel")
_POOLING: Final = Path("1_Pooling", "config.json")
_MEAN: Final = "pooling_mode_mean_tokens"


def unfit(model: str) -> str | None:
    """Return why a model cannot be served whatever the machine; None if it may be."""
    if not checkpoints.is_folder(model):
        return f"there is no folder {model}" if checkpoints.is_path(model) else None
    if not (Path(model) / checkpoints.CONFIG).is_file():
        return f"the folder {model} holds no {checkpoints.CONFIG}: it is no checkpoint"
    return None


def is_downloaded(model: str) -> bool:
    """Return whether the hub's cache on this machine holds a model, as far as can be seen."""
    cache = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"), "hub"
    )
    kept = Path(cache) / f"models--{model.replace('/', '--')}"
    whole = any(kept.glob(f"snapshots/*/{checkpoints.CONFIG}"))
    return whole and not any(kept.glob("blobs/*.incomplete"))


def notes(model: str) -> list[str]:
    """Return what whoever uses the vectors of a model should know, a sentence each."""
    if not checkpoints.is_folder(model):
        return [_unverified(model, "it")] if catalog.lookup(model) == Model(model) else []
    architecture = checkpoints.architecture(model) or "an unnamed architecture"
    if architecture in _VERIFIED:
        return []
    if architecture in _ENCODERS and checkpoints.read_json(Path(model) / _POOLING).get(_MEAN):
        return [_first_token(model, architecture)]
    return [_unverified(model, architecture)]


def _first_token(model: str, architecture: str) -> str:
    return (
        f"{model} was made for the mean of its tokens, and SGLang takes the first token of a "
        f"{architecture}: the vectors rank texts, and are not those of other libraries. Never "
        f"mix them in one index."
    )


def _unverified(model: str, what: str) -> str:
    return (
        f"emberd has not verified how SGLang pools {what} ({model}): compare some vectors with "
        f"the model's own library before an index is made of them."
    )
