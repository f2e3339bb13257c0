"""Makes tiny checkpoints of several architectures; run by the interpreter of an engine.

Random weights from a fixed seed and a tokenizer with chosen habits, as ``make_tiny`` makes them for
a Qwen3. The files of sentence-transformers are written by who asks, except the weights of modules.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import make_tiny as tiny  # type: ignore[import-not-found]  # beside this script

HIDDEN = 128
CONTEXT_TOKENS = 2_048
_COMMON = {
    "hidden_size": HIDDEN,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_TOKENS,
}
_DECODER = {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 32}
_WORD_PIECES = 1_000
_AROUND = ("[CLS]", "[SEP]")


def make(folder: Path, architecture: str, habits: Sequence[str], config: Mapping[str, Any]) -> None:
    """Write a checkpoint.

    Args:
        folder: Where.
        architecture: A class of Transformers.
        habits: Those of ``make_tiny.make_tokenizer``; a BERT has its own tokenizer.
        config: Changes of the configuration.
    """
    import torch
    import transformers

    is_encoder = architecture.startswith("Bert")
    tokenizer = _word_pieces() if is_encoder else tiny.make_tokenizer(habits)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    kind = getattr(transformers, architecture)
    more: dict[str, Any] = {} if is_encoder else dict(_DECODER)
    if architecture.startswith(("Gemma2", "Gemma3")):
        more |= _LAYERS
    made = kind.config_class(
        vocab_size=tiny.VOCABULARY,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **{**_COMMON, **more, **config},
    )
    torch.manual_seed(tiny.SEED)
    model = kind(made).to(torch.bfloat16)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name.lower():
                weights.normal_(0.0, 0.08)  # as wide as make_tiny's, and for the same reason
    model.save_pretrained(folder)


def make_module(folder: Path, kind: str) -> None:
    """Write the settings and weights of a ``Dense`` or ``LayerNorm`` module of random weights."""
    import torch
    from safetensors.torch import save_file  # type: ignore[import-not-found]

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(tiny.SEED)
    if kind == "Dense":
        settings: dict[str, Any] = {
            "in_features": HIDDEN,
            "out_features": HIDDEN,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        weights = {"linear.weight": torch.randn(HIDDEN, HIDDEN) * 0.1}
    else:
        settings = {"dimension": HIDDEN}
        weights = {
            "norm.weight": 1 + torch.rand(HIDDEN),
            "norm.bias": torch.randn(HIDDEN),
        }
    tiny.write(folder / "config.json", settings)
    save_file(weights, folder / "model.safetensors")


def _word_pieces() -> Any:
    """Return a tokenizer of lower-case word pieces between ``[CLS]`` and ``[SEP]``, as BERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    bare.normalizer = normalizers.BertNormalizer(lowercase=True)
    bare.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", *_AROUND, "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=_WORD_PIECES, special_tokens=special, show_progress=False
    )
    # Each letter at the start of a word and within one, or most words of a text would be unknown.
    letters = [f"{letter} a{letter}" for letter in string.ascii_lowercase + string.digits]
    bare.train_from_iterator([*tiny.TRAINED_ON, *letters], trainer)
    start, end = _AROUND
    bare.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(token, bare.token_to_id(token)) for token in _AROUND],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token=start,
        sep_token=end,
        mask_token="[MASK]",
        model_max_length=CONTEXT_TOKENS,
    )
