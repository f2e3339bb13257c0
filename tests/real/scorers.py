"""Rerankers without a server, asked again and again; run by an interpreter that has them.

``python scorers.py FOLDER DTYPE BATCH`` loads a checkpoint in both ways and then, for each line of
its input (a way, a query and documents), writes the seconds that it took, and the scores. The ways
are ``card``, what the model card of Qwen3-Reranker does in batches, and ``cross-encoder``, the
CrossEncoder of sentence-transformers.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final

_TASK: Final = "Given a web search query, retrieve relevant passages that answer the query"
_PREFIX: Final = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
_SUFFIX: Final = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_MOST_TOKENS: Final = 8192

Score = Callable[[str, list[str]], list[float]]


def _pair(query: str, document: str) -> str:
    return f"<Instruct>: {_TASK}\n<Query>: {query}\n<Document>: {document}"


def card(folder: str, dtype: Any, batch: int) -> Score:
    """Return the steps of the model card: the ends apart, padded on the left, all logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    no, yes = (tokenizer.convert_tokens_to_ids(word) for word in ("no", "yes"))
    before, after = (tokenizer.encode(end, add_special_tokens=False) for end in (_PREFIX, _SUFFIX))

    def score(query: str, documents: list[str]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(documents), batch):
            texts = [_pair(query, document) for document in documents[start : start + batch]]
            most = _MOST_TOKENS - len(before) - len(after)
            inputs = tokenizer(
                texts, padding=False, truncation=True, max_length=most, add_special_tokens=False
            )
            ids = [[*before, *each, *after] for each in inputs["input_ids"]]
            padded = tokenizer.pad({"input_ids": ids}, padding=True, return_tensors="pt")
            with torch.no_grad():
                logits = model(**padded).logits[:, -1, :]
            answers = torch.stack([logits[:, no], logits[:, yes]], dim=1).float()
            found += torch.nn.functional.log_softmax(answers, dim=1)[:, 1].exp().tolist()
        return found

    return score


def cross_encoder(folder: str, dtype: Any, batch: int) -> Score:
    """Return sentence-transformers' class, with the prompt as its chat template."""
    import torch

    sentences: Any = importlib.import_module("sentence_transformers")
    numbers = {"dtype": dtype}
    template = _PREFIX + _pair(
        "{{ (messages | selectattr('role', 'eq', 'query') | first).content }}",
        "{{ (messages | selectattr('role', 'eq', 'document') | first).content }}",
    )
    # Jinja removes the last line break of a template.
    template += _SUFFIX + "\n"
    model = sentences.CrossEncoder(
        folder,
        device="cpu",
        model_kwargs=numbers,
        processor_kwargs={"chat_template": template},
        activation_fn=torch.nn.Sigmoid(),
    )

    def score(query: str, documents: list[str]) -> list[float]:
        pairs = [(query, document) for document in documents]
        scores = model.predict(pairs, batch_size=batch, convert_to_numpy=True)
        listed: list[float] = scores.astype("float32").tolist()
        return listed

    return score


def main(folder: str, dtype: str, batch: str) -> None:
    """Answer until the input ends."""
    import torch

    numbers = getattr(torch, dtype)
    ways = {
        "card": card(folder, numbers, int(batch)),
        "cross-encoder": cross_encoder(folder, numbers, int(batch)),
    }
    print(torch.get_num_threads(), flush=True)
    for line in sys.stdin:
        way, query, documents = json.loads(line)
        began = time.perf_counter()
        scores = ways[way](query, documents)
        print(json.dumps([time.perf_counter() - began, scores]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
