"""Makes a tiny Qwen3-Embedding checkpoint; run by the interpreter of an engine.

``python make_tiny.py FOLDER [LAYERS HIDDEN]``: random weights from a fixed seed, a byte-level
tokenizer that ends each text with the end-of-text token, and the files of sentence-transformers
that the official repositories have: the layout of Qwen/Qwen3-Embedding, a thousandth of its size.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SEED = 20_261_122
VOCABULARY = 2_048
CONTEXT_TOKENS = 8_192
END_OF_TEXT = "<|endoftext|>"
START = "<s>"
CHAT = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
QUERY_PROMPT = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
TRAINED_ON = [
    "The quick brown fox jumps over the lazy dog, and nobody knows why it does.",
    "Retrieval looks up passages that answer a question; the query is a short text.",
    "向量检索把文本变成数字，再比较它们的方向。",
    "def norm(v): return sum(x * x for x in v) ** 0.5",
    QUERY_PROMPT,
]


def main(folder: Path, layers: int, hidden: int) -> None:
    """Write the checkpoint to ``folder``."""
    write_checkpoint(folder, make_tokenizer(), layers, hidden)


def write_reranker(folder: Path, habits: Sequence[str], layers: int, hidden: int) -> None:
    """Write a checkpoint as Qwen3-Reranker is to ``folder``.

    Its tokenizer knows the special tokens of the prompt, and appends none.
    """
    tokenizer = make_tokenizer(("nfc", "chat", *habits))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    make_model(len(tokenizer), tokenizer.convert_tokens_to_ids(END_OF_TEXT), layers, hidden)(folder)


def write_checkpoint(folder: Path, tokenizer: Any, layers: int, hidden: int) -> None:
    """Write a checkpoint with this tokenizer to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    make_model(len(tokenizer), tokenizer.convert_tokens_to_ids(END_OF_TEXT), layers, hidden)(folder)
    write(folder / "modules.json", modules())
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {
        "word_embedding_dimension": hidden,
        "pooling_mode_mean_tokens": False,  # the default of old versions is True
        "pooling_mode_lasttoken": True,
    }
    write(folder / "1_Pooling" / "config.json", pooling)
    prompts = {"query": QUERY_PROMPT, "document": ""}
    write(folder / "config_sentence_transformers.json", {"prompts": prompts})


def make_tokenizer(habits: Sequence[str] = ("end",)) -> Any:
    """Return a byte-level BPE tokenizer.

    Args:
        habits: What it does with each text: ``"end"`` appends the end-of-text token, ``"start"``
            puts a token before it, ``"nfc"`` and ``"lower"`` normalise it. ``"chat"``: it has the
            special tokens of a chat, and one token for each of yes and no.
    """
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    chats = "chat" in habits
    special = [END_OF_TEXT, *([START] if "start" in habits else []), *(CHAT if chats else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator([*TRAINED_ON, *(["yes", "no"] * 9 if chats else [])], trainer)
    kinds = {"nfc": normalizers.NFC, "lower": normalizers.Lowercase}
    if chosen := [kind() for habit, kind in kinds.items() if habit in habits]:
        bare.normalizer = chosen[0] if len(chosen) == 1 else normalizers.Sequence(chosen)
    before, after = [START] * ("start" in habits), [END_OF_TEXT] * ("end" in habits)
    around = processors.TemplateProcessing(
        single=" ".join([*before, "$A", *after]),
        pair=" ".join([*before, "$A", *after, "$B", *after]),
        special_tokens=[
            (token, bare.token_to_id(token)) for token in dict.fromkeys(before + after)
        ],
    )
    level = processors.ByteLevel(trim_offsets=False)
    bare.post_processor = processors.Sequence([level, around] if before or after else [level])
    return wrapped(bare, bos_token=START if before else None)


def wrapped(bare: Any, **tokens: str | None) -> Any:
    """Return a tokenizer as Transformers saves it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        **tokens,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=CONTEXT_TOKENS,
    )


def make_model(tokens: int, end_id: int, layers: int, hidden: int) -> Any:
    """Return what saves a model of that shape."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(SEED)
    config = Qwen3Config(
        vocab_size=max(tokens, VOCABULARY),
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=max(2, hidden // 32),
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=end_id,
        eos_token_id=end_id,
        torch_dtype="bfloat16",
    )
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name:
                # Wider than the usual 0.02: with it all texts come out nearly alike, and a
                # comparison of vectors would not see a wrong one.
                weights.normal_(0.0, 0.08)
    return model.save_pretrained


def modules() -> list[dict[str, Any]]:
    """Return the list of modules that sentence-transformers reads."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    return [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]


def write(path: Path, content: Any) -> None:
    """Write JSON."""
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    shape = [int(word) for word in sys.argv[2:]] or [2, 128]
    main(Path(sys.argv[1]), *shape)
