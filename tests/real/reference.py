"""The vectors of Hugging Face Transformers, written by nobody here; run by an engine's interpreter.

``python reference.py FOLDER [DTYPE]`` reads texts as JSON from its input and writes, as JSON, for
each its token ids and its vector: the last token's hidden state, one text at a time, normalised in
float32. That is what the model card of Qwen3-Embedding computes.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(folder: str, dtype: str, texts: list[str]) -> dict[str, Any]:
    """Return token ids and vectors of ``texts``."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ids = [tokenizer(text)["input_ids"] for text in texts]
    vectors = []
    with torch.no_grad():
        for each in ids:
            last = model(input_ids=torch.tensor([each])).last_hidden_state[0, -1].float()
            vectors.append((last / last.norm()).tolist())
    return {"ids": ids, "vectors": vectors}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump(main(sys.argv[1], (sys.argv[2:] or ["bfloat16"])[0], given), sys.stdout)
