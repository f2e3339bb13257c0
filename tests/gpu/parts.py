"""All parts, in the order in which they run: those that share the first server come first."""

from __future__ import annotations

from typing import Final

from gpu.bench import CPU, CUDA
from gpu.runner import Part

_MODEL: Final = {"model/config.json": "model"}
_TEXTS: Final = {**_MODEL, "texts.json": "model"}
_REFERENCE: Final = {**_TEXTS, "reference.npz": "model"}


def _part(
    function: str,
    claim: str,
    expected_s: tuple[float, float],
    limit_s: tuple[float, float],
    needs: dict[str, str],
) -> Part:
    """Return a part that both devices can show; times are those of a GPU, then of a CPU."""
    return Part(
        name=function.partition(":")[2],
        function=f"gpu.{function}",
        claim=claim,
        expected_s=dict(zip((CUDA, CPU), expected_s, strict=True)),
        limit_s=dict(zip((CUDA, CPU), limit_s, strict=True)),
        needs=needs,
    )


PARTS: Final = (
    _part("machine:model", "a checkpoint and its reference", (30, 25), (90, 240), {}),
    _part("machine:doctor", "emberd doctor finds that it can serve", (4, 5), (30, 60), _MODEL),
    _part("starts:first_start", "the first start, by phase", (172, 35), (280, 400), _MODEL),
    _part("vectors:fidelity", "vectors beside float32", (4, 6), (45, 120), _REFERENCE),
    _part("vectors:batch", "texts together and alone", (4, 4), (30, 120), _TEXTS),
    _part("rates:bulk", "texts a second, beside other clients", (60, 25), (110, 240), _TEXTS),
    _part("rates:latency", "one query, beside other clients", (10, 10), (40, 120), _TEXTS),
    _part("rates:at_once", "many queries at once", (7, 10), (40, 120), _TEXTS),
    _part("machine:memory", "the memory plan beside NVML", (2, 2), (30, 60), _MODEL),
    _part("machine:stop", "emberd stop leaves nothing", (4, 4), (60, 90), _MODEL),
    _part("starts:stampede", "many processes, one server", (62, 40), (120, 400), _MODEL),
    _part("starts:kill_scheduler", "kill -9 during an ingest", (68, 45), (130, 400), _TEXTS),
    _part("starts:kill_supervisor", "kill -9 during an ingest", (66, 45), (130, 400), _TEXTS),
    Part(
        name="full_card",
        function="gpu.machine:full_card",
        claim="a full GPU: a typed error",
        expected_s={CUDA: 15},
        limit_s={CUDA: 60},
        needs=_MODEL,
        not_here="it fills the memory of a GPU",
    ),
    _part("vectors:transformers", "the transformers engine", (32, 20), (90, 300), _REFERENCE),
    _part("library:in_process", "sentence-transformers", (32, 25), (80, 240), _REFERENCE),
    Part(
        name="nothing_left",
        function="gpu.machine:nothing_left",
        claim="no process, no memory is left",
        expected_s={CUDA: 4, CPU: 4},
        limit_s={CUDA: 60, CPU: 120},
        needs={},
        always=True,
    ),
)
