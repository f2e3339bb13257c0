"""One Ray cluster of two nodes for the session, each with a separate home, and demo engines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

import leftovers
from emberd import Manager, ServerStatus

CORES: Final = 2
CARDS: Final = ("GPU-aaaa", "GPU-bbbb")

_GRACE_S: Final = 30.0
_STORE_BYTES: Final = 100 << 20
FILTERS: Final = (
    # Ray's own, in its driver: about itself, and about sockets and files of its processes.
    "ignore::DeprecationWarning:ray",
    "ignore::FutureWarning:ray",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
_QUIET: Final = {
    "RAY_AUTH_MODE": "disabled",  # else it writes a token into the user's home
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# What no vector may be made with where the driver has its say.
_OF_NODES: Final = ("first node: {text}", "second node: {text}")
# What the second node's workers, and what they start, take for the library of the driver.
_PYNVML: Final = """
import sys
from fake_nvml import Card, Nvml
sys.modules[__name__] = Nvml([Card({!r}), Card({!r})])
"""


@dataclass(frozen=True)
class Nodes:
    """The cluster, and the EMBERD_HOME of each of its nodes.

    Attributes:
        address: Where the cluster answers.
        plain: Of the one without GPUs.
        with_gpus: Of the one with two, as far as its workers see.
    """

    address: str
    plain: Path
    with_gpus: Path

    @property
    def cards(self) -> Path:
        """The folder of the homes of single GPUs."""
        return self.with_gpus / "gpus"

    def supervisors(self) -> list[list[int]]:
        """Return the supervisors that live on each node, but for those of single GPUs."""
        return [supervisors(home) for home in (self.plain, self.with_gpus)]

    def status(self) -> list[ServerStatus]:
        """Return what is known of the servers of the nodes, but for those of single GPUs."""
        return [one for home in (self.plain, self.with_gpus) for one in Manager(home).status()]

    def stop(self) -> None:
        """Stop all servers."""
        for home in (self.plain, self.with_gpus, *self.cards.glob("*")):
            Manager(home).stop()

    def workers(self) -> list[psutil.Process]:
        """Return the processes of the actors that embed."""
        named = leftovers.find([str(self.plain), str(self.with_gpus)])
        return [process for process in named if is_worker(process)]


def supervisors(home: Path) -> list[int]:
    """Return the process ids of the supervisors that live in ``home``."""
    return [s.supervisor_pid for s in Manager(home).status() if s.supervisor_pid is not None]


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process is an actor of Ray Data that runs one of our classes."""
    try:
        return "MapWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture(scope="session")
def ray_nodes(managed_home: Path, stopped_at_the_end: None) -> Iterator[Nodes]:
    """The cluster of the session."""
    with two_nodes(managed_home.parent, EMBERD_DOCUMENT_INSTRUCTION=_OF_NODES) as nodes:
        yield nodes


@contextmanager
def two_nodes(root: Path, **more: tuple[str, str]) -> Iterator[Nodes]:
    """Run a cluster with this process connected to it; of its processes none is left.

    Args:
        root: Where its homes and logs are.
        **more: Variables of the environment, with a value for each node.
    """
    before = set(psutil.Process().children(recursive=True))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _QUIET.items():
            patch.setenv(name, value)
        patch.setenv("RAY_TMPDIR", str(root / "ray"))
        from ray.cluster_utils import Cluster

        import ray

        cluster: Any = Cluster()
        try:
            nodes = _begun(cluster, root, more)
            yield nodes
            nodes.stop()
        finally:
            rays = set(psutil.Process().children(recursive=True)) - before
            ray.shutdown()
            cluster.shutdown()
    # By their ids: some take another name, and what names the cluster goes with the old one.
    _, left = psutil.wait_procs(rays, _GRACE_S)
    for process in left:
        process.kill()
    assert not left, f"processes of Ray left behind: {left}"


def _begun(cluster: Any, root: Path, more: Mapping[str, tuple[str, str]]) -> Nodes:
    import ray

    plain, with_gpus = root / "n1", root / "n2"
    fakes = root / "fakes"
    fakes.mkdir()
    (fakes / "pynvml.py").write_text(_PYNVML.format(*CARDS))
    paths = os.pathsep.join([str(fakes), str(Path(__file__).parent)])
    first, second = ({name: pair[node] for name, pair in more.items()} for node in (0, 1))
    first |= {"EMBERD_HOME": str(plain)}
    second |= {"EMBERD_HOME": str(with_gpus), "PYTHONPATH": paths}
    common = {"num_cpus": CORES, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    cluster.add_node(env_vars=first, **common)
    cluster.add_node(env_vars=second, num_gpus=len(CARDS), **common)
    ray.init(cluster.address, log_to_driver=False)
    return Nodes(cluster.address, plain, with_gpus)
