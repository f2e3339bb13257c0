"""Which models are given to SGLang, and what a user should know about the others."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from emberd import catalog, checkpoints, pipeline
from emberd.catalog import Model

# Last-token pooling, compared with Transformers on the same weights.
_VERIFIED: Final = ("Qwen3ForCausalLM", "Qwen3Model")
# What SGLang 0.5.23 takes for these, whatever the checkpoint says (srt/models/bert.py, roberta.py
# and gemma3_causal.py).
_OTHERWISE_POOLED: Final = {
    "BertModel": "the first token",
    "BertForMaskedLM": "the first token",
    "RobertaModel": "the first token",
    "XLMRobertaModel": "the first token",
    "Gemma3TextModel": "the mean of the tokens",
}


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


def notes(model: str) -> list[str]:
    """Return what a user of the model's vectors should know, a sentence each."""
    if not checkpoints.is_folder(model):
        return [_unverified(model, "it")] if catalog.lookup(model) == Model(model) else []
    architecture = checkpoints.architecture(model) or "an unnamed architecture"
    pooling = [] if architecture in _VERIFIED else [_unverified(model, architecture)]
    return [*pooling, *pipeline.unused_prompts(Path(model))]


def _unservable(folder: Path, *, partial: bool = False) -> str | None:
    problem = pipeline.unservable(folder, partial=partial)
    if problem is not None:
        return str(problem)
    architecture = checkpoints.architecture(str(folder)) or ""
    taken = _OTHERWISE_POOLED.get(architecture)
    if taken is None or not pipeline.names_pooling(folder):
        return None
    return (
        f"{folder} is made for the last token, and SGLang takes {taken} of a {architecture}. "
        f"{pipeline.OTHER_SERVER}"
    )


def _unverified(model: str, what: str) -> str:
    taken = _OTHERWISE_POOLED.get(what)
    return (
        f"emberd has not verified how SGLang pools {what} ({model})"
        f"{f'; it takes {taken}' if taken else ''}: compare some vectors with the model's own "
        f"library before an index is made of them."
    )
