"""The shape of a model, and the memory that its weights and tokens take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from emberd import catalog
from emberd.catalog import DecoderShape, Model
from emberd.model_files import CONFIG, SAFETENSORS, is_folder, read_json, read_safetensors_header

_BF16_BYTES: Final = 2
# In float32: a logit, its log-probability, and the logit of the batch before, which SGLang releases
# only after it has started this one (srt/managers/scheduler.py, event_loop_overlap).
_LOGIT_BYTES: Final = 4 + 4 + 4
# Tokens of a batch for each prompt in it. What the server's cache has of a prompt counts for
# nothing: of a new one at least its end and its document, of a repeated one a single token.
_PROMPT_TOKENS: Final = 32
_FP8_BYTES: Final = 1
_DTYPE_BYTES: Final = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
# Parts of the names of architectures in which each token sees the whole text.
_ENCODERS: Final = ("Bert", "Roberta", "Contriever", "Bidirectional", "EmbeddingGemma")
# SGLang's order of preference (srt/utils/hf_transformers/common.py, CONTEXT_LENGTH_KEYS).
_CONTEXT_KEYS: Final = (
    *("max_sequence_length", "seq_length", "max_seq_len", "model_max_length"),
    "max_position_embeddings",
)
_DAMAGED: Final = (
    *(ArithmeticError, AttributeError, LookupError, OSError, RecursionError, StopIteration),
    *(TypeError, ValueError),
)
"""What reading and using a configuration or a header of any content raises."""


@dataclass(frozen=True, slots=True)
class ModelShape(DecoderShape):
    """The shape of one model, and how long its texts may be.

    Attributes:
        context_tokens: Longest text that the model's own configuration allows.
        stored_bytes: Size in bytes of weights that are quantised on disk; None for others.
        reranks: Whether it is a reranker, whose language-model head is used.
    """

    context_tokens: int
    stored_bytes: int | None = None
    reranks: bool = False

    @property
    def is_encoder(self) -> bool:
        """Whether each token attends to the whole text, which rules out chunked prefill."""
        return any(name in self.architecture for name in _ENCODERS)

    def weights_bytes(self, quantization: str | None = None) -> int:
        """Return the bytes that the weights take on the device, in bfloat16 if not quantised."""
        if self.stored_bytes is not None:
            return self.stored_bytes
        if quantization != "fp8":
            return self.parameters * _BF16_BYTES
        # SGLang quantises the linear layers (Fp8Config.get_quant_method in
        # srt/layers/quantization/fp8.py): not the token table, nor the head of a language model.
        # The norms, and a scale for each row, are less than what is added for the allocator.
        tables = self.tables * self.vocabulary * self.hidden
        return (self.parameters - tables) * _FP8_BYTES + tables * _BF16_BYTES

    def kv_bytes_per_token(self, tp_size: int = 1) -> int:
        """Return the bytes that one token's keys and values take on each of ``tp_size`` devices.

        As ``get_num_kv_heads`` in SGLang's srt/configs/model_config.py: the heads are distributed,
        and each device has at least one.
        """
        heads = max(1, self.kv_heads // tp_size)
        keys = self.layers * heads * self.head_dim * _BF16_BYTES
        return 2 * keys  # as large as the values

    def most_prompts(self, tokens: int) -> int | None:
        """Return to how many prompts a batch of so many tokens is limited; None if it is not.

        The size of a batch in tokens is no bound for a reranker, because a prompt of which a part
        is in the server's cache can have a single token in a batch.
        """
        return tokens // _PROMPT_TOKENS if self.reranks else None

    def logits_bytes(self, tokens: int) -> int:
        """Return the bytes that the answers of a batch of so many tokens take.

        SGLang computes the logits of the whole vocabulary for the last token of each prompt.
        """
        return (self.most_prompts(tokens) or 0) * self.vocabulary * _LOGIT_BYTES

    def layer_bytes_per_token(self) -> int:
        """Return the bytes that one token takes at the widest point of one layer.

        There the residual, its normalised copy, both projections of the feed-forward part and their
        product exist at the same time.
        """
        return (2 * self.hidden + 3 * self.intermediate) * _BF16_BYTES


def _from_catalog(model: Model) -> ModelShape | None:
    if model.shape is None or model.context_tokens is None:
        return None
    return ModelShape(
        **asdict(model.shape),
        context_tokens=model.context_tokens,
        reranks=model.task == catalog.RERANK,
    )


KNOWN: Final[Mapping[str, ModelShape]] = {
    model.name: shape for model in catalog.MODELS if (shape := _from_catalog(model)) is not None
}
"""Shapes of the catalog's models."""


def element_bytes(dtype: str | None) -> int:
    """Return the bytes of one value; ``None`` and unknown formats count as bfloat16."""
    return _DTYPE_BYTES.get(dtype or "", _BF16_BYTES)


def shape_of(model: str, task: str = catalog.EMBED) -> ModelShape | None:
    """Return the shape of a model: a folder's from its files, that of a hub name from the catalog.

    Returns:
        None for an unknown name on the hub, or a folder without a usable config.json or weights.
    """
    if is_folder(model):
        return _from_folder(Path(model), task)
    return _from_catalog(catalog.lookup(model))


def _from_folder(folder: Path, task: str) -> ModelShape | None:
    config = read_json(folder / CONFIG)
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        architecture = str(config["architectures"][0])
        elements: dict[str, int] = {}
        for path in folder.glob(SAFETENSORS):
            elements |= read_safetensors_header(path).elements
        parameters = sum(elements.values())
        if not parameters:
            stored_as = str(config.get("dtype") or config.get("torch_dtype"))
            parameters = _stored_bytes(folder) // element_bytes(stored_as)
        vocabulary = int(config["vocab_size"])
        # SGLang creates the head of a language model whether or not the checkpoint has one,
        # although an embedding never uses it (srt/models/qwen3.py, Qwen3ForCausalLM.__init__).
        stores_head = "lm_head.weight" in elements
        has_head = stores_head or not config.get("tie_word_embeddings")
        if not architecture.endswith("ForCausalLM"):
            has_head = False
        elif has_head and not stores_head:
            parameters += vocabulary * hidden
        return ModelShape(
            architecture=architecture,
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=vocabulary,
            tables=2 if has_head else 1,
            parameters=parameters,
            context_tokens=_context(config),
            stored_bytes=_stored_bytes(folder) if "quantization_config" in config else None,
            reranks=task == catalog.RERANK,
        )
    except _DAMAGED:
        return None


def _stored_bytes(folder: Path) -> int:
    files = list(folder.glob(SAFETENSORS)) or list(folder.glob("*.bin"))
    if not files:
        raise ValueError(f"{folder} contains no weights")
    return sum(file.stat().st_size for file in files)


def _context(config: Mapping[str, Any]) -> int:
    """Return the context length as SGLang derives it, scaled by the rotary embedding's factor."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    is_scaled = (
        "original_max_position_embeddings" in scaling or scaling.get("rope_type") == "llama3"
    )
    factor = 1 if is_scaled else scaling.get("factor", 1)
    limit = next(config[key] for key in _CONTEXT_KEYS if config.get(key))
    return int(factor * limit)
