"""The mean that SGLang takes of token states; run by its interpreter.

``python sglang_mean.py`` writes, as JSON, the least cosine of SGLang's mean with the exact one, for
short texts by themselves and behind other texts of a batch. Their states have a common direction,
as those of real models have, and the format in which SGLang keeps them.
"""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace
from typing import Any

TEXTS, TOKENS, HIDDEN = 200, 12, 128


def main() -> dict[str, float]:
    """Return the least cosine of texts in separate requests and in one batch."""
    import torch

    pooler: Any = importlib.import_module("sglang.srt.layers.pooler")
    torch.manual_seed(0)
    states = (torch.randn(TEXTS * TOKENS, HIDDEN) + torch.randn(HIDDEN)).to(torch.bfloat16)
    texts = states.split(TOKENS)
    exact = torch.stack([text.float().mean(0) for text in texts])

    def mean(rows: Any) -> Any:
        lengths = torch.full((len(rows) // TOKENS,), TOKENS)
        batch = SimpleNamespace(extend_seq_lens=lengths)
        return pooler.pool_hidden_states(pooler.PoolingType.MEAN, rows, batch).float()

    def least(found: Any) -> float:
        return float(torch.nn.functional.cosine_similarity(found, exact).min())

    return {"alone": least(torch.cat([mean(text) for text in texts])), "batch": least(mean(states))}


if __name__ == "__main__":
    print(json.dumps(main()))
