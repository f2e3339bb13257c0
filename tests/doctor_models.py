"""Models that are whole, as far as their headers tell."""

from __future__ import annotations

import json
from pathlib import Path

import checkpoints_made

_SIZE_BYTES = 64


def whole(folder: Path, *, end_of_text: int | None, architecture: str = "Qwen3ForCausalLM") -> Path:
    """Write a model; its tokenizer puts the token ``end_of_text`` behind each text, or none."""
    checkpoints_made.write(folder, {**checkpoints_made.QWEN, "architectures": [architecture]})
    (folder / "tokenizer.json").write_text(json.dumps({"post_processor": _processor(end_of_text)}))
    header = {"a": {"dtype": "BF16", "shape": [32], "data_offsets": [0, _SIZE_BYTES]}}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(_SIZE_BYTES)
    (folder / "model.safetensors").write_bytes(content)
    return folder


def _processor(end_of_text: int | None) -> object:
    if end_of_text is None:
        return None
    end = "<|endoftext|>"
    return {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": end}}],
        "special_tokens": {end: {"id": end, "ids": [end_of_text]}},
    }
