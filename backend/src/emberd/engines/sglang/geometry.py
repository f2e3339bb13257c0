"""What a model needs of a device: its shape, and what its weights and tokens weigh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from emberd import catalog
from emberd.catalog import Model
from emberd.model_files import (
    CONFIG,
    SAFETENSORS,
    is_folder,
    read_json,
    read_safetensors_header,
)

_BF16_BYTES: Final = 2
_DTYPE_BYTES: Final = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
_FP8: Final = "fp8"
_FP8_BYTES: Final = 1
_KEY_AND_VALUE: Final = 2
_OLD_WEIGHTS: Final = "*.bin"
_HEAD: Final = "lm_head.weight"
_CAUSAL: Final = "ForCausalLM"
_ENCODERS: Final = ("Bert", "Roberta")
# SGLang's order of preference (srt/utils/hf_transformers/common.py, CONTEXT_LENGTH_KEYS).
_CONTEXT_KEYS: Final = (
    *("max_sequence_length", "seq_length", "max_seq_len", "model_max_length"),
    "max_position_embeddings",
)
_ORIGINAL_CONTEXT: Final = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True)
class Geometry:
    """The shape of one model.

    Attributes:
        architecture: The class that its configuration names.
        layers: Transformer layers.
        hidden: Length of a token's vector between layers.
        intermediate: Width of the feed-forward part.
        kv_heads: Heads of keys and values.
        head_dim: Length of one head.
        vocabulary: Rows of the token table.
        parameters: Numbers that the server keeps on the device.
        context_tokens: Longest text that the model's own configuration allows.
        stored_bytes: Size of weights that are quantised on disk; None for others.
    """

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    parameters: int
    context_tokens: int
    stored_bytes: int | None = None

    @property
    def is_encoder(self) -> bool:
        """Whether each token sees the whole text, so that no text may be read in chunks."""
        return any(name in self.architecture for name in _ENCODERS)

    def weights_bytes(self, dtype: str | None = None, quantization: str | None = None) -> int:
        """Return what the weights take on the device; ``dtype`` None is bfloat16."""
        if self.stored_bytes is not None:
            return self.stored_bytes
        if quantization != _FP8:
            return self.parameters * element_bytes(dtype)
        table = self.vocabulary * self.hidden  # the token table is never quantised
        return (self.parameters - table) * _FP8_BYTES + table * element_bytes(dtype)

    def kv_bytes_per_token(self, dtype: str | None = None, tp_size: int = 1) -> int:
        """Return what one token's keys and values take on each of ``tp_size`` devices.

        As ``get_num_kv_heads`` in SGLang's srt/configs/model_config.py: heads are shared out,
        and each device has one at least.
        """
        heads = max(1, self.kv_heads // tp_size)
        return self.layers * heads * self.head_dim * _KEY_AND_VALUE * element_bytes(dtype)

    def layer_bytes_per_token(self, dtype: str | None = None) -> int:
        """Return what one token takes at the widest point of one layer.

        The residual, its normalised copy, both projections of the feed-forward part and their
        product are alive together there.
        """
        return (2 * self.hidden + 3 * self.intermediate) * element_bytes(dtype)


def _from_catalog(model: Model) -> Geometry | None:
    if model.shape is None or model.context_tokens is None:
        return None
    return Geometry(**asdict(model.shape), context_tokens=model.context_tokens)


KNOWN: Final[Mapping[str, Geometry]] = {
    model.name: geometry
    for model in catalog.MODELS
    if (geometry := _from_catalog(model)) is not None
}
"""Shapes of the catalog's models, for when their files are not on this machine."""


def element_bytes(dtype: str | None) -> int:
    """Return the size of one number; ``None`` and what is not known count as bfloat16."""
    return _DTYPE_BYTES.get(dtype or "", _BF16_BYTES)


def geometry_of(model: str) -> Geometry | None:
    """Return the shape of a model: from its folder, else from the catalog of shapes.

    Returns:
        None for a name on the hub that is not known, or a folder that does not describe itself.
    """
    if is_folder(model):
        return _from_folder(Path(model))
    return _from_catalog(catalog.lookup(model))


def _from_folder(folder: Path) -> Geometry | None:
    config = read_json(folder / CONFIG)
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        architecture = str(config["architectures"][0])
        elements: dict[str, int] = {}
        for path in folder.glob(SAFETENSORS):
            elements |= read_safetensors_header(path).elements
        parameters = sum(elements.values()) or _by_size(folder, config)
        vocabulary = int(config["vocab_size"])
        return Geometry(
            architecture=architecture,
            layers=int(config["num_hidden_layers"]),
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=vocabulary,
            parameters=parameters
            + _unstored_head(architecture, config, _HEAD in elements, vocabulary * hidden),
            context_tokens=_context(config),
            stored_bytes=_stored_bytes(folder) if "quantization_config" in config else None,
        )
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, OSError):
        return None


def _unstored_head(architecture: str, config: Mapping[str, Any], stored: bool, size: int) -> int:
    # SGLang's models make the head of a language model although an embedding never reads it,
    # whether the checkpoint has one or not (srt/models/qwen3.py, Qwen3ForCausalLM.__init__).
    tied = bool(config.get("tie_word_embeddings"))
    return 0 if stored or tied or not architecture.endswith(_CAUSAL) else size


def _by_size(folder: Path, config: Mapping[str, Any]) -> int:
    dtype = config.get("dtype") or config.get("torch_dtype")
    return _stored_bytes(folder) // element_bytes(str(dtype))


def _stored_bytes(folder: Path) -> int:
    files = list(folder.glob(SAFETENSORS)) or list(folder.glob(_OLD_WEIGHTS))
    if not files:
        raise ValueError(f"{folder} holds no weights")
    return sum(file.stat().st_size for file in files)


def _context(config: Mapping[str, Any]) -> int:
    """Return the longest context as SGLang derives it, scaled by the rotary embedding's factor."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    told = _ORIGINAL_CONTEXT in scaling or scaling.get("rope_type") == "llama3"
    factor = 1 if told else scaling.get("factor", 1)
    limit = next(config[key] for key in _CONTEXT_KEYS if config.get(key))
    return int(factor * limit)
