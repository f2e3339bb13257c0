"""sentence-transformers, asked again and again; run by a Python that has it.

``python sentences.py MODEL DEVICE`` loads the model in bfloat16 and prints its version. Then, for
each line of its input, ``{"texts": [...], "batch_size": 32, "one_by_one": false}``, it prints one
with the seconds that each call of ``encode`` took, and the first three vectors.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

SHOWN = 3


def main(folder: str, device: str) -> None:
    """Answer until the input ends."""
    import torch

    package: Any = importlib.import_module("sentence_transformers")
    numbers = {"dtype": torch.bfloat16}
    model = package.SentenceTransformer(folder, device=device, model_kwargs=numbers)
    print(json.dumps({"version": package.__version__}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        calls = [[text] for text in asked["texts"]] if asked["one_by_one"] else [asked["texts"]]
        seconds, vectors = [], []
        for texts in calls:
            began = time.perf_counter()
            found = model.encode(
                texts,
                batch_size=asked["batch_size"],
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            seconds.append(time.perf_counter() - began)
            vectors.extend(found[:SHOWN])
        shown = [vector.astype("float32").tolist() for vector in vectors[:SHOWN]]
        print(json.dumps({"seconds": seconds, "vectors": shown}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
