"""Recall@k and index size for several numbers of dimensions.

    python choose_dimensions.py
    python choose_dimensions.py --model Qwen/Qwen3-Embedding-4B --data mine.json --plot recall.png

Qwen3-Embedding was trained so that its vectors can be cut to 32 numbers or more. E5, the model of
emberd/demo, was not: its figures show how to measure, and do not apply to Qwen3.

The file for --data is {"passages": [{"id", "text"}, ...], "queries": [{"text", "answer"}, ...]}; an
answer is the id of a passage. Use a few hundred your own questions: without --data the script
uses the set of examples/demo, which has 30 questions, so each of them is 3 % of the recall.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from emberd import Embedder

DATA = Path(__file__).parent / "demo" / "multilingual.json"
LENGTHS = (32, 64, 128, 256, 512, 1024, 2000)  # pgvector's HNSW index takes 2000 at most
PLACES = (1, 5, 10)
PASSAGES = 1_000_000
BYTES_OF_A_FLOAT32 = 4

Rows = dict[int, list[float]]  # dimensions -> recall at each of PLACES


def cut(vectors: Any, dimensions: int) -> Any:
    """Do what ``Embedder(dimensions=...)`` does, without embedding the texts again."""
    heads = vectors[:, :dimensions]
    return heads / np.linalg.norm(heads, axis=1, keepdims=True)


def recall(queries: Any, passages: Any, answers: list[int]) -> list[float]:
    cosines = queries @ passages.T
    of_answer = cosines[np.arange(len(answers)), answers]
    nearer = (cosines > of_answer[:, None]).sum(axis=1)
    return [float((nearer < place).mean()) for place in PLACES]


def measure(embedder: Embedder, data: dict[str, Any]) -> Rows:
    number = {passage["id"]: place for place, passage in enumerate(data["passages"])}
    answers = [number[query["answer"]] for query in data["queries"]]
    passages = embedder.embed_documents(passage["text"] for passage in data["passages"])
    queries = embedder.embed_queries(query["text"] for query in data["queries"])
    native = passages.shape[1]
    lengths = [*(length for length in LENGTHS if length < native), native]
    return {n: recall(cut(queries, n), cut(passages, n), answers) for n in lengths}


def megabytes(dimensions: int) -> float:
    return PASSAGES * dimensions * BYTES_OF_A_FLOAT32 / 1e6


def show(rows: Rows) -> None:
    heads = "".join(f"{f'recall@{place}':>11}" for place in PLACES)
    print(f"dimensions{heads}   MB for {PASSAGES:,} passages")
    for dimensions, found in rows.items():
        figures = "".join(f"{figure:11.2f}" for figure in found)
        print(f"{dimensions:10}{figures}   {megabytes(dimensions):,.0f}")


def plot(rows: Rows, title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for place, line in zip(PLACES, zip(*rows.values(), strict=True), strict=True):
        axes.plot(list(rows), line, marker="o", label=f"recall@{place}")
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(list(rows), [f"{n}\n{megabytes(n) / 1000:.1f} GB" for n in rows], fontsize=7)
    axes.set_xlabel(f"dimensions, and the size of an index of {PASSAGES:,} passages")
    axes.set_title(title)
    axes.legend()
    figure.savefig(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", default="emberd/demo", help="name on the hub, or a folder")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it, too: .png, .svg, ...")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    data = json.loads(asked.data.read_text(encoding="utf-8"))
    embedder = Embedder(asked.model)
    title = f"{asked.model}: {len(data['passages'])} passages, {len(data['queries'])} questions"
    print(title)
    rows = measure(embedder, data)
    show(rows)
    if asked.model == "emberd/demo":
        print("Its E5 was not trained to be cut. Qwen3-Embedding was: measure it by itself.")
    if asked.plot:
        try:
            plot(rows, title, asked.plot)
        except ImportError:
            raise SystemExit("--plot needs matplotlib: pip install matplotlib") from None


if __name__ == "__main__":
    main()
