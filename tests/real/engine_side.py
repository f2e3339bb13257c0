"""Makes checkpoints and reference vectors in one process, for as long as its input is open.

Run by the interpreter of an engine, whose imports take most of the time of one answer. Each line of
the input is a JSON list, the name of a function and its arguments; each line of the output is what
the function returned.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import make_shapes as shapes  # type: ignore[import-not-found]
import make_tiny as tiny  # type: ignore[import-not-found]  # beside this script
import qwen_bpe  # type: ignore[import-not-found]
import reference as by_transformers  # type: ignore[import-not-found]
import reference_scores  # type: ignore[import-not-found]


def make_tiny(folder: str, layers: int, hidden: int) -> None:
    """Write a tiny checkpoint to ``folder``."""
    tiny.main(Path(folder), layers, hidden)


def make_tiny_reranker(folder: str, habits: list[str], layers: int, hidden: int) -> None:
    """Write a tiny reranker to ``folder``."""
    tiny.write_reranker(Path(folder), habits, layers, hidden)


def scores(folder: str, dtype: str, prompts: list[str]) -> Any:
    """Return token ids and scores of ``prompts`` by the reranker in ``folder``."""
    return reference_scores.main(folder, dtype, prompts)


def reference(folder: str, dtype: str, texts: list[str]) -> Any:
    """Return token ids and vectors of ``texts`` by the checkpoint in ``folder``."""
    return by_transformers.main(folder, dtype, texts)


def make_shape(folder: str, architecture: str, habits: list[str], config: dict[str, Any]) -> None:
    """Write a tiny checkpoint of an architecture to ``folder``."""
    shapes.make(Path(folder), architecture, habits, config)


def make_module(folder: str, kind: str) -> None:
    """Write a module of sentence-transformers that has weights to ``folder``."""
    shapes.make_module(Path(folder), kind)


def pooled(folder: str, texts: list[str], token: int, config: dict[str, Any]) -> Any:
    """Return the vectors of ``texts`` by one token's state, in float32 and a changed ``config``."""
    return by_transformers.main(folder, "float32", texts, token, **config)["vectors"]


def sentences(asked: list[dict[str, Any]]) -> Any:
    """Return what sentence-transformers does with folders; this interpreter must have it."""
    import sentence_decisions  # type: ignore[import-not-found]  # imports the library

    return sentence_decisions.main(asked)


def make_qwen(folder: str, table: str, special: list[tuple[str, int]]) -> None:
    """Write a tiny checkpoint with Qwen's real tokenizer to ``folder``."""
    qwen_bpe.make(Path(folder), Path(table), special)


def count(table: str, special: list[tuple[str, int]], texts: list[str]) -> list[int]:
    """Return how many tokens ``texts`` have by Qwen's real tokenizer."""
    counts: list[int] = qwen_bpe.counts(Path(table), special, texts)
    return counts


FUNCTIONS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(make_tiny, reference, make_qwen, count),
        *(make_tiny_reranker, scores),
        *(make_shape, make_module, pooled, sentences),
    )
}

if __name__ == "__main__":
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        print(json.dumps(FUNCTIONS[name](*arguments)), flush=True)
