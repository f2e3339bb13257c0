"""Folders of models, as small as their headers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

QWEN: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 500,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}


LAST_TOKEN: Mapping[str, Any] = {"embedding_dimension": 64, "pooling_mode": "lasttoken"}
MODULES: Sequence[tuple[str, str]] = (
    ("", "sentence_transformers.base.modules.transformer.Transformer"),
    ("1_Pooling", "sentence_transformers.sentence_transformer.modules.pooling.Pooling"),
    ("2_Normalize", "sentence_transformers.base.modules.normalize.Normalize"),
)
"""Path and type of each module, as sentence-transformers 6.x writes them."""


def write_modules(
    folder: Path,
    modules: Sequence[tuple[str, str]] = MODULES,
    pooling: Mapping[str, Any] | None = LAST_TOKEN,
) -> Path:
    """Write ``modules.json``, and the settings of the Pooling module to ``1_Pooling``."""
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": kind}
        for number, (path, kind) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    if pooling is not None:
        write_json(folder / "1_Pooling" / "config.json", pooling)
    return folder


def write_cached(hub: Path, name: str, files: Mapping[str, Any]) -> Path:
    """Write a model into a hub's cache, with only these files; return its snapshot."""
    folder, commit = hub / f"models--{name.replace('/', '--')}", "c" * 40
    snapshot = folder / "snapshots" / commit
    for path in ("config.json", "modules.json", "tokenizer.json", *files):
        if path in files:
            write_json(snapshot / path, files[path])
        else:  # as the hub's client notes that there is no such file
            write_json(folder / ".no_exist" / commit / path, None)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return snapshot


def write_json(path: Path, content: Any) -> None:
    """Write JSON to a file, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write(
    folder: Path,
    config: Mapping[str, Any] = QWEN,
    tensors: Mapping[str, Sequence[int]] | None = None,
) -> str:
    """Write a configuration, and the header of a file with these tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if tensors is not None:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in tensors.items():
            start, end = end, end + 2 * math.prod(shape)
            offsets = [start, end]
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": offsets}
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text
        (folder / "model.safetensors").write_bytes(content)
    return str(folder)


def write_plain(folder: Path) -> str:
    """Write a Qwen3 whose files do not say what it is for."""
    folder.mkdir()
    config = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 8}
    config["max_position_embeddings"] = 64
    tokenizer = {"added_tokens": [], "post_processor": {"type": "ByteLevel"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return str(folder)
