"""sentence-transformers, asked again and again; run by an interpreter that has it.

``python sentences.py FOLDER DTYPE`` loads the model and then, for each line of its input (a JSON
list of texts), writes a line: the seconds that embedding them took, and the first three vectors.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any


def main(folder: str, dtype: str) -> None:
    """Answer until the input ends."""
    import torch

    sentences: Any = importlib.import_module("sentence_transformers")
    numbers = {"dtype": getattr(torch, dtype)}
    model = sentences.SentenceTransformer(folder, device="cpu", model_kwargs=numbers)
    print(torch.get_num_threads(), flush=True)
    for line in sys.stdin:
        texts = json.loads(line)
        began = time.perf_counter()
        vectors = model.encode(texts, normalize_embeddings=True, convert_to_numpy=True)
        seconds = time.perf_counter() - began
        answer = {"seconds": seconds, "vectors": vectors[:3].astype("float32").tolist()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
