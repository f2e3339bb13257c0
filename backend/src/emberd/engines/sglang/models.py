"""Which models are given to SGLang, and what a user should know about the others."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from emberd import catalog, hub_cache, model_card, model_files
from emberd.catalog import Model

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
    if not model_files.is_folder(model):
        if model_files.is_path(model):
            return f"there is no folder {model}"
        kept = hub_cache.snapshot(model, revision)
        return _unservable(kept, partial=True) if kept else None
    if not (Path(model) / model_files.CONFIG).is_file():
        return f"the folder {model} holds no {model_files.CONFIG}: it is no checkpoint"
    return _unservable(Path(model))


def notes(model: str, revision: str | None = None) -> list[str]:
    """Return what a user of the model's vectors should know, a sentence each."""
    if not model_files.is_folder(model):
        if catalog.lookup(model) != Model(model):
            return []
        kept = hub_cache.snapshot(model, revision)
        # SGLang downloads configuration, tokenizer and weights, but not these files.
        is_checked = kept is not None and model_card.names_pooling(kept)
        return [_unverified(model, "it"), *([] if is_checked else [_unchecked(model)])]
    architecture = model_card.architecture(Path(model)) or "an unnamed architecture"
    pooling = [] if architecture in _VERIFIED else [_unverified(model, architecture)]
    return [*pooling, *model_card.unused_prompts(Path(model))]


def _unservable(folder: Path, *, partial: bool = False) -> str | None:
    architecture = model_card.architecture(folder)
    if partial and architecture is None:
        return None  # without config.json it is not known how SGLang pools the model
    pooling = _pooling(folder)
    if pooling is None and model_card.names_pooling(folder):
        return (
            f"{folder} names a pooling, and how SGLang pools a {architecture} is not known. "
            f"{model_card.OTHER_SERVER}"
        )
    problem = model_card.why_unsupported(folder, pooling=pooling or _LAST_TOKEN, partial=partial)
    return str(problem) if problem else None


def _pooling(folder: Path) -> str | None:
    """Return how SGLang pools a folder's model, by ``model_card``'s names; None if unknown."""
    architecture = model_card.architecture(folder) or ""
    config = model_files.read_json(folder / model_files.CONFIG)
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
    pooling = _pooling(Path(model)) if model_files.is_folder(model) else None
    taken = _IN_WORDS.get(pooling or "")
    return (
        f"emberd has not verified how SGLang pools {what} ({model})"
        f"{f'; it takes {taken}' if taken else ''}: compare some vectors with the model's own "
        f"library before an index is made of them."
    )
