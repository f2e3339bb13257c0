"""Which models are given to SGLang, and what a user should know about the others."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from emberd import catalog, checkpoints, pipeline
from emberd.catalog import Model

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
_GEMMA: Final = "Gemma3TextModel"
_BIDIRECTIONAL: Final = "use_bidirectional_attention"
# The other decoders get the last token, from code of SGLang's own or through Transformers. For an
# encoder that is not named above, SGLang has no code: how, and whether, it runs is not known.
_DECODERS: Final = ("ForCausalLM", "ForConditionalGeneration")
_BARE_DECODERS: Final = (
    *("CohereModel", "Cohere2Model", "GemmaModel", "Gemma2Model", "GPT2Model", "GPTNeoXModel"),
    *("GraniteModel", "LlamaModel", "MixtralModel", "OlmoModel", "Olmo2Model", "Olmo3Model"),
    *("OPTModel", "PhiModel", "Phi3Model", "Qwen2Model", "Qwen2MoeModel", "Qwen3MoeModel"),
    *("SmolLM3Model", "Starcoder2Model"),
)
# Read by SGLang's way through Transformers (srt/models/transformers.py): "cls" in any case of the
# letters is the first token there, and everything else the last one.
_CONFIGURED: Final = "pooling_type"
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
    if architecture and pooling is None and pipeline.names_pooling(folder):
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
    if architecture in _POOLING:
        return _POOLING[architecture]
    is_decoder = architecture.endswith(_DECODERS) or architecture in _BARE_DECODERS
    if not is_decoder or config.get(_CONFIGURED) is not None:
        return None
    return _LAST_TOKEN


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
