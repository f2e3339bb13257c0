"""Which server belongs to an actor, how many actors there are, and what each of them gets.

An actor to which Ray gave a GPU sees no other GPU, and neither does what it starts. So each GPU has
its own home inside that of emberd, and actors that share a GPU find one server there::

    <home>/                  the server of a node without GPUs, or with one
    <home>/gpus/<uuid>/      those of a node with several

With all of them in one home, the actors of all GPUs would use the server that was started first. An
actor that sees all GPUs uses the home of the node, and a server that runs there already.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emberd.catalog import DEMO_MODEL
from emberd.engines import gpus
from emberd.engines.gpus import Gpu
from emberd.env import Places
from emberd.settings import Settings

if TYPE_CHECKING:
    from emberd.embedder import Embedder
    from emberd.verified_manager import Manager

_GPU_HOMES: Final = "gpus"
_HASH_DIGITS: Final = 16
_THREADS: Final = "OMP_NUM_THREADS"
_ENVIRONMENT_AT_START: Final = Path("/proc/self/environ")

# With one actor, a server waits while the actor exchanges batches with Ray. More than two gain
# nothing: the number of requests in flight is limited per actor.
_ACTORS_PER_SERVER: Final = 2
# An actor mostly waits for its server. A whole core for each would leave a small node no core for
# the tasks that read.
_ACTOR_CORES: Final = 0.25
_CPU: Final = "CPU"
_GPU: Final = "GPU"


# ---------------------------------------------------------------- in an actor


def embedder_for(settings: dict[str, Any]) -> Embedder:
    """Return an embedder with ``settings`` on the server of this actor."""
    from emberd.embedder import Embedder  # not at import: this module is imported on the driver

    return Embedder(manager=manager()).replace(**settings)


def manager() -> Manager:
    """Return the manager of the server of this actor; only the visible GPUs are looked up."""
    from emberd.verified_manager import Manager  # not at import: it prepares locks and processes

    free_threads()
    return Manager(home())


def home() -> str:
    """Return the home of the server of this actor."""
    own = Places.resolve().home
    environment = {name: value for name, value in os.environ.items() if name != gpus.VISIBLE}
    visible, existing = gpus.survey().gpus, gpus.survey(environment).gpus
    if not visible or len(visible) == len(existing):
        return own
    return os.path.join(own, _GPU_HOMES, _name(visible))


def free_threads() -> None:
    """Remove the number of threads that Ray allows this process, which its server would inherit.

    The server computes for all actors of a node; one actor has a fraction of a core.
    """
    if not _was_set_at_start():
        os.environ.pop(_THREADS, None)


def _was_set_at_start() -> bool:
    # Ray sets the variable in a running process, where the kernel does not show it.
    if sys.platform != "linux":
        return False
    variables = _ENVIRONMENT_AT_START.read_bytes().split(b"\0")
    return any(each.startswith(f"{_THREADS}=".encode()) for each in variables)


def _name(visible: Sequence[Gpu]) -> str:
    # With an old driver, the name of a MIG instance contains slashes.
    names = sorted(gpu.uuid.replace("/", "_") for gpu in visible)
    if len(names) == 1:
        return names[0]
    # Eight names are too long for a file name.
    return hashlib.sha256("+".join(names).encode()).hexdigest()[:_HASH_DIGITS]


# ---------------------------------------------------------------- on the driver


def portable_settings(settings: Settings) -> dict[str, Any]:
    """Return all settings as keywords for an embedder on a node, without the key."""
    return {
        each.name: getattr(settings, each.name)
        for each in fields(settings)
        if each.name != "api_key"
    }


def actor_arguments(
    settings: Settings,
    *,
    num_gpus: float | None = None,
    actors: int | None = None,
    max_actors: int | None = None,
) -> dict[str, Any]:
    """Return arguments of ``map_batches`` that fit the cluster as it is now.

    Ray Data itself spreads actors over the nodes.

    Args:
        settings: Which model, and where it may run.
        num_gpus: GPUs of a server; None for one if the cluster has any and the model uses it, else
            none.
        actors: Number of actors; None for two per server.
        max_actors: More actors than this would have nothing to do.
    """
    from ray.data import ActorPoolStrategy

    per_server = _gpus_per_server(settings) if num_gpus is None else num_gpus
    servers = _servers_with_gpus(per_server) if per_server else _cpu_nodes()
    # Ray gives only whole GPUs to an actor that gets more than one.
    per_server_actors = 1 if per_server > 1 else _ACTORS_PER_SERVER
    size = actors or max(1, servers * per_server_actors)
    # Not a core per actor, which is Ray's default: on a node with few cores the actors of the first
    # GPU would take them all, and the other GPUs would stay idle.
    resources = (
        {"num_gpus": per_server / per_server_actors, "num_cpus": 0}
        if per_server
        else {"num_cpus": _ACTOR_CORES}
    )
    return {"compute": ActorPoolStrategy(size=min(size, max_actors or size)), **resources}


def _gpus_per_server(settings: Settings) -> float:
    elsewhere = settings.base_url is not None or settings.device not in (None, "cuda")
    if elsewhere or settings.model == DEMO_MODEL:
        return 0
    return 1 if any(node.get(_GPU, 0) >= 1 for node in _resources()) else 0


def _servers_with_gpus(per_server: float) -> int:
    return sum(int(node.get(_GPU, 0) // per_server) for node in _resources())


def _cpu_nodes() -> int:
    return sum(node.get(_CPU, 0) > 0 for node in _resources())


def _resources() -> list[dict[str, float]]:
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call] # Ray has no types for it
    return [node["Resources"] for node in nodes if node["Alive"]]
