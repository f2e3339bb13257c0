"""Makes a random Qwen3-Embedding checkpoint, texts, and their vectors; run by an engine's Python.

``python checkpoint.py FOLDER`` reads a JSON object from its input::

    {"shape": "4b", "device": "cuda", "texts": {"16": 2048, "256": 384, "2000": 48},
     "documents": [...], "queries": [...]}

It writes to FOLDER

* ``model``: the checkpoint, random weights of a fixed seed;
* ``texts.json``: for each number of tokens that many different texts of exactly so many, the
  end-of-text token included;
* ``reference.npz``: the vectors of the documents and then of the queries with the model's prompt,
  by Hugging Face transformers, one text at a time, as the model card computes them: ``float32`` and
  ``bfloat16``, each (n, dimensions), normalised in float32, and ``tokens``, (n,).
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

END_OF_TEXT = "<|endoftext|>"
SPECIAL = [END_OF_TEXT, "<|im_start|>", "<|im_end|>"]
QUERY_PROMPT = (
    "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
)
SEED = 0
# The tokenizer is trained on files of the standard library: words that it knows make one token.
FILES = 120
WORDS = [
    *("return", "def", "class", "import", "self", "value", "error", "data", "list"),
    *("index", "file", "path", "name", "type", "object", "string", "number", "key"),
    *("is", "not", "in", "for", "with", "as", "from", "and", "or", "if", "else", "the"),
    *("of", "to", "a", "that", "this", "None", "True", "False", "len", "int", "str"),
    *("get", "set", "add", "open", "read", "write", "call", "time", "test", "code"),
    *("line"),
]


class Shape(NamedTuple):
    """The size of a model, and of the vocabulary that its tokenizer is trained to."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    context: int
    trained: int


SHAPES = {
    "8b": Shape(4096, 36, 32, 8, 128, 12288, 151_665, 40_960, 8_000),
    "4b": Shape(2560, 36, 32, 8, 128, 9728, 151_665, 40_960, 8_000),
    "0.6b": Shape(1024, 28, 16, 8, 128, 3072, 151_669, 40_960, 8_000),
    "tiny": Shape(128, 2, 4, 2, 32, 384, 4_096, 8_192, 4_000),
    # The vectors of 4b at hardly any arithmetic: what a text costs besides.
    "thin": Shape(2560, 1, 2, 2, 32, 64, 8_192, 8_192, 8_000),
}


def main(folder: Path, asked: dict[str, Any]) -> None:
    """Write the checkpoint, the texts and the reference to ``folder``."""
    shape, model = SHAPES[asked["shape"]], folder / "model"
    model.mkdir(exist_ok=True)
    tokenizer = make_tokenizer(shape)
    tokenizer.save_pretrained(model)
    describe(model, shape)
    save_model(model, shape, asked["device"], tokenizer.convert_tokens_to_ids(END_OF_TEXT))
    texts = {
        tokens: make_texts(tokenizer, count, int(tokens))
        for tokens, count in asked["texts"].items()
    }
    write(folder / "texts.json", texts)
    prompted = [f"{QUERY_PROMPT}{query}" for query in asked["queries"]]
    save_reference(folder / "reference.npz", model, asked["device"], asked["documents"] + prompted)


def make_tokenizer(shape: Shape) -> Any:
    """Return a byte-level BPE tokenizer that ends each text with the end-of-text token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.trained,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library = Path(os.__file__).parent
    bare.train([str(path) for path in sorted(library.glob("*.py"))[:FILES]], trainer)
    bare.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}",
        pair=f"$A $B {END_OF_TEXT}",
        special_tokens=[(END_OF_TEXT, bare.token_to_id(END_OF_TEXT))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bare,
        eos_token="<|im_end|>",
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=min(shape.context, 32_768),
    )


def save_model(folder: Path, shape: Shape, device: str, end_id: int) -> None:
    """Save a model of that shape with random weights of a fixed seed, in bfloat16."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        rope_theta=1e6,
        bos_token_id=end_id,
        eos_token_id=end_id,
    )
    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "norm" not in name:
                # The usual 0.02 makes all texts nearly alike in a narrow model.
                weights.normal_(0.0, shape.hidden**-0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write(folder / "config.json", {**written, "architectures": ["Qwen3ForCausalLM"]})


def describe(folder: Path, shape: Shape) -> None:
    """Write the files that sentence-transformers reads, as Qwen3-Embedding has them."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    pooling = {
        "word_embedding_dimension": shape.hidden,
        "pooling_mode_lasttoken": True,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_cls_token": False,
        "include_prompt": True,
    }
    prompts = {
        "prompts": {"query": QUERY_PROMPT, "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling" / "config.json", pooling)
    write(folder / "config_sentence_transformers.json", prompts)


def make_texts(tokenizer: Any, count: int, tokens: int) -> list[str]:
    """Return ``count`` different texts of ``tokens`` tokens each, end-of-text token included."""
    known = [word for word in WORDS if _tokens(tokenizer, f" {word}") == 1]
    first = next(word for word in known if _tokens(tokenizer, word) == 1)
    dice = random.Random(tokens)
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts[" ".join([first, *dice.choices(known, k=tokens - 2)])] = None
    if wrong := [text for text in texts if len(tokenizer(text)["input_ids"]) != tokens]:
        raise SystemExit(f"{len(wrong)} texts have not {tokens} tokens, such as {wrong[0]!r:.200}")
    return list(texts)


def save_reference(path: Path, model: Path, device: str, texts: list[str]) -> None:
    """Save the vectors of ``texts`` in both precisions, from the files of the checkpoint."""
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = [tokenizer(text, return_tensors="pt")["input_ids"].to(device) for text in texts]
    found: dict[str, Any] = {"tokens": np.array([each.shape[1] for each in ids])}
    for name in ("bfloat16", "float32"):
        found[name] = np.stack(vectors(model, device, getattr(torch, name), ids))
    whole = path.with_name(f"new-{path.name}")
    np.savez(whole, **found)
    whole.rename(path)


def vectors(model: Path, device: str, dtype: Any, ids: list[Any]) -> list[Any]:
    """Return the vector of each text in one precision: its last token's hidden state."""
    import torch
    from transformers import AutoModel

    loaded = AutoModel.from_pretrained(model, dtype=dtype).to(device).eval()
    made = []
    with torch.no_grad():
        for each in ids:
            last = loaded(input_ids=each).last_hidden_state[0, -1].float()
            made.append((last / last.norm()).cpu().numpy())
    return made


def write(path: Path, content: Any) -> None:
    """Write JSON."""
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.load(sys.stdin))
