"""The scores of Hugging Face Transformers for Qwen3-Reranker; used by an engine's interpreter.

For each prompt its token ids, and the probability of yes against no for the next token, one prompt
at a time. That is what the model card of Qwen3-Reranker computes: a softmax over the two logits.
"""

from __future__ import annotations

from typing import Any


def main(folder: str, dtype: str, prompts: list[str] | list[list[int]]) -> dict[str, Any]:
    """Return token ids and scores of whole prompts, which are texts or token ids."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    labels = [tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes")]
    ids = [
        tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if isinstance(prompt, str)
        else prompt
        for prompt in prompts
    ]
    scores = []
    with torch.no_grad():
        for each in ids:
            logits = model(input_ids=torch.tensor([each])).logits[0, -1, labels].float()
            scores.append(logits.softmax(0)[1].item())
    return {"ids": ids, "scores": scores}
