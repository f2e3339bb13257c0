"""Parts about vectors: beside transformers' in float32, and of batches beside single texts."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from emberd import Embedder
from gpu import compare
from gpu.bench import NO_INSTRUCTION, Bench, Vectors
from gpu.machine import QUERIES, documents
from gpu.result import Report

_FLOOR_FACTOR: Final = 2.0
"""A server may be that many times as far from float32 as transformers in bfloat16 is."""

_ROUNDING: Final = 1e-4
_LEAST_ALIKE: Final = 0.995
_BATCH_TEXTS: Final = 32
_BATCH_TOKENS: Final = 256


def fidelity(bench: Bench, report: Report) -> None:
    """Compare with transformers in float32, and tell how far its own bfloat16 is from that."""
    embedder = bench.shared()
    ours = _embed(embedder, bench)
    found = beside_reference(bench, report, ours)
    report.summary = _in_words(found)


def transformers(bench: Bench, report: Report) -> None:
    """Start the ``transformers`` engine on the device, and compare its vectors likewise."""
    bench.manager.stop()
    embedder = bench.embedder(engine="transformers")
    server = embedder.ensure()
    report.figure("engine", server.engine)
    report.figure("notes", list(server.notes))
    report.require(server.started, f"it was not started: {server.reason}")
    status = next(own for own in bench.manager.status() if own.start_id == server.start_id)
    report.figure("device", status.device)
    report.require(status.device == bench.device, f"it runs on {status.device}")
    found = beside_reference(bench, report, _embed(embedder, bench))
    bench.manager.stop()
    report.summary = f"on {status.device}: {_in_words(found)}"


def batch(bench: Bench, report: Report) -> None:
    """Compare texts of one request with the same texts in separate ones."""
    embedder = bench.shared(query_instruction=NO_INSTRUCTION)
    texts = bench.texts(_BATCH_TOKENS)[:_BATCH_TEXTS]
    together = embedder.embed_documents(texts)
    alone = np.concatenate([embedder.embed_documents([text]) for text in texts])
    again = np.concatenate([embedder.embed_documents([text]) for text in texts])
    found = compare.spread(alone, together)
    report.figure("texts", len(texts))
    report.figure("tokens", _BATCH_TOKENS)
    report.figure("cosine_alone_to_batch", found)
    report.figure("cosine_alone_to_alone", compare.spread(alone, again))
    report.figure("cosine_between_texts", compare.between(alone))
    report.require(found["min"] >= _LEAST_ALIKE, f"least cosine {found['min']}")
    wrong = compare.misplaced(together, alone)
    report.require(not wrong, f"vectors in the wrong place: {wrong[:5]}")
    report.summary = (
        f"{len(texts)} texts of {_BATCH_TOKENS} tokens alone and together: cosine min "
        f"{found['min']}, median {found['median']}"
    )


def beside_reference(bench: Bench, report: Report, ours: Vectors) -> dict[str, Any]:
    """Compare vectors of the reference's texts with it; require the noise floor of bfloat16."""
    with np.load(bench.folder / "reference.npz") as kept:
        exact, rough, tokens = kept["float32"], kept["bfloat16"], kept["tokens"]
    found = compare.spread(ours, exact)
    floor = compare.spread(rough, exact)
    worst = int(np.argmin(compare.cosines(ours, exact)))
    report.figure("texts", len(ours))
    report.figure("tokens_longest", int(tokens.max()))
    report.figure("cosine_to_float32", found)
    report.figure("cosine_bfloat16_to_float32", floor)
    report.figure("cosine_between_texts", compare.between(exact))
    report.figure("tokens_of_worst", int(tokens[worst]))
    for name in ("min", "median"):
        far, may = 1 - found[name], _FLOOR_FACTOR * (1 - floor[name]) + _ROUNDING
        report.require(
            far <= may, f"{name} cosine {found[name]}, with bfloat16 in transformers {floor[name]}"
        )
    wrong = compare.misplaced(ours, exact)
    report.require(not wrong, f"vectors in the wrong place: {wrong[:5]}")
    return {**found, "floor": floor, "texts": len(ours)}


def _embed(embedder: Embedder, bench: Bench) -> Vectors:
    # The queries as the user gives them: the instruction is emberd's to put before them.
    made = [embedder.embed_documents(documents(bench)), embedder.embed_queries(list(QUERIES))]
    return np.concatenate(made)


def _in_words(found: dict[str, Any]) -> str:
    return (
        f"{found['texts']} texts, cosine to float32: min {found['min']}, median "
        f"{found['median']}; transformers in bfloat16: min {found['floor']['min']}, median "
        f"{found['floor']['median']}"
    )
