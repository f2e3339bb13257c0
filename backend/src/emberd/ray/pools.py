"""How many actors embed, and what each of them is given."""

from __future__ import annotations

from typing import Any, Final

from emberd.catalog import DEMO_MODEL
from emberd.settings import Settings

# With one actor alone a server waits while that one takes a batch out of Ray and puts the vectors
# in. More than two gain nothing: the requests in flight are bounded for each actor.
_ACTORS_PER_SERVER: Final = 2
# An actor waits for its server most of the time. A whole core for each would leave a small node
# none for the tasks that read.
_ACTOR_CORES: Final = 0.25
_CPU: Final = "CPU"
_GPU: Final = "GPU"


def arguments(
    settings: Settings,
    *,
    num_gpus: float | None = None,
    actors: int | None = None,
    most: int | None = None,
) -> dict[str, Any]:
    """Return the arguments of ``map_batches`` that fit the cluster as it is now.

    Ray Data itself spreads actors over the nodes.

    Args:
        settings: Which model, and where it may run.
        num_gpus: GPUs of one server; None for one where the cluster has any and the model uses it,
            else none.
        actors: How many actors; None for two a server.
        most: More actors than this have nothing to do.
    """
    from ray.data import ActorPoolStrategy

    per_server = _gpus_of(settings) if num_gpus is None else num_gpus
    servers = _with_gpus(per_server) if per_server else _nodes()
    # Ray gives whole GPUs alone to an actor that gets more than one.
    each = 1 if per_server > 1 else _ACTORS_PER_SERVER
    size = actors or max(1, servers * each)
    return {
        "compute": ActorPoolStrategy(size=min(size, most or size)),
        **(_of_gpus(per_server / each) if per_server else {"num_cpus": _ACTOR_CORES}),
    }


def _of_gpus(each: float) -> dict[str, float]:
    # Not a core each, which is Ray's default: on a node of few cores the actors of the first GPU
    # would take them all, and the other GPUs would wait for ever.
    return {"num_gpus": each, "num_cpus": 0}


def _gpus_of(settings: Settings) -> float:
    elsewhere = settings.base_url is not None or settings.device not in (None, "cuda")
    if elsewhere or settings.model == DEMO_MODEL:
        return 0
    return 1 if any(node.get(_GPU, 0) >= 1 for node in _resources()) else 0


def _with_gpus(per_server: float) -> int:
    return sum(int(node.get(_GPU, 0) // per_server) for node in _resources())


def _nodes() -> int:
    return sum(node.get(_CPU, 0) > 0 for node in _resources())


def _resources() -> list[dict[str, float]]:
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call] # Ray gives it no types
    return [node["Resources"] for node in nodes if node["Alive"]]
