"""The vectors of Hugging Face Transformers, without emberd; run by an engine's interpreter.

``python reference.py FOLDER [DTYPE]`` reads texts as JSON from its input and writes, as JSON, for
each its token ids and its vector: the last token's hidden state, one text at a time, normalised in
float32. That is what the model card of Qwen3-Embedding computes.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(
    folder: str, dtype: str, texts: list[str], pooled: int = -1, **config: Any
) -> dict[str, Any]:
    """Return token ids and vectors of ``texts``.

    Args:
        folder: The checkpoint.
        dtype: The number format.
        texts: The texts.
        pooled: Which token's state becomes the vector: -1 for the last, 0 for the first.
        config: Changes of the configuration.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype), **config).eval()
    ids = [tokenizer(text)["input_ids"] for text in texts]
    vectors = []
    with torch.no_grad():
        for each in ids:
            states = model(input_ids=torch.tensor([each])).last_hidden_state
            state = states[0, pooled].float()
            vectors.append((state / state.norm()).tolist())
    return {"ids": ids, "vectors": vectors}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump(main(sys.argv[1], (sys.argv[2:] or ["bfloat16"])[0], given), sys.stdout)
