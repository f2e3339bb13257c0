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
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emberd.bulk.request import Role
from emberd.catalog import DEMO_MODEL
from emberd.engines import gpus
from emberd.env import Places
from emberd.settings import Settings

if TYPE_CHECKING:
    from emberd.bulk.pipeline import Embed
    from emberd.embedder import Embedder

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
    # Not at import: this module is imported on the driver, and the manager prepares locks.
    from emberd.embedder import Embedder
    from emberd.verified_manager import Manager

    free_threads()
    # The key of the node is that of the server in the settings, which contain none.
    of_node = Embedder(manager=Manager(home()))
    return of_node.replace(api_key=of_node.settings.api_key, **settings)


def connect(embedder: Embedder, role: str) -> tuple[Embed, int]:
    """Return what embeds texts of ``role``, and the length of its vectors."""
    free_threads()
    iterate = embedder.iter_queries if role == Role.QUERY else embedder.iter_documents
    dimensions = embedder.settings.dimensions or embedder.endpoint().dimensions
    return partial(iterate, set_aside=True), dimensions


def home() -> str:
    """Return the home of the server of this actor; only the visible GPUs are looked up."""
    own = Places.resolve().home
    environment = {name: value for name, value in os.environ.items() if name != gpus.VISIBLE}
    visible, existing = gpus.survey().gpus, gpus.survey(environment).gpus
    if not visible or len(visible) == len(existing):
        return own
    # With an old driver, the name of a MIG instance contains slashes.
    names = sorted(gpu.uuid.replace("/", "_") for gpu in visible)
    if len(names) > 1:  # eight names are too long for a file name
        names = [hashlib.sha256("+".join(names).encode()).hexdigest()[:_HASH_DIGITS]]
    return os.path.join(own, "gpus", names[0])


def free_threads() -> None:
    """Remove the number of threads that Ray allows this process, which its server would inherit.

    The server computes for all actors of a node; one actor has a fraction of a core.
    """
    # Ray sets the variable in a running process, where the kernel does not show it.
    if sys.platform == "linux":
        variables = _ENVIRONMENT_AT_START.read_bytes().split(b"\0")
        if any(each.startswith(f"{_THREADS}=".encode()) for each in variables):
            return  # the user set it
    os.environ.pop(_THREADS, None)


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
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call] # Ray has no types for it
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    if num_gpus is None:
        elsewhere = settings.base_url is not None or settings.device not in (None, "cuda")
        needs_gpu = not elsewhere and settings.model != DEMO_MODEL
        num_gpus = int(needs_gpu and any(node.get(_GPU, 0) >= 1 for node in resources))
    if num_gpus:
        servers = sum(int(node.get(_GPU, 0) // num_gpus) for node in resources)
    else:
        servers = sum(node.get(_CPU, 0) > 0 for node in resources)
    # Ray gives only whole GPUs to an actor that gets more than one.
    per_server = 1 if num_gpus > 1 else _ACTORS_PER_SERVER
    size = actors or max(1, servers * per_server)
    # Not a core per actor, which is Ray's default: on a node with few cores the actors of the first
    # GPU would take them all, and the other GPUs would stay idle.
    shares = (
        {"num_gpus": num_gpus / per_server, "num_cpus": 0}
        if num_gpus
        else {"num_cpus": _ACTOR_CORES}
    )
    pool = ray.data.ActorPoolStrategy(size=min(size, max_actors or size))
    return {"compute": pool, **shares}
