"""The real SGLang: its interpreter, a tiny checkpoint, and the servers that tests share."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from emberd import Embedder, Reranker, installs
from emberd.env import Places
from emberd.verified_manager import Manager
from real import traces
from real.engines import (
    START_S,
    EngineSide,
    Refer,
    Reference,
    embedder_for,
    engine_side,
    engines_of_this_machine,
    python_of,
    with_sentence_transformers,
)

__all__ = ["engines_of_this_machine"]

_TEST_S: Final = 600

# Files whose tests use one server, or one port, run in one worker, in this order; the longest come
# first, and single tests last, so that both workers end at about the same time.
_ONE_SERVER: Final = (
    "test_transformers_engine.py",
    "test_vectors.py",
    "test_verify_command.py",
    "test_frameworks.py",
    "test_gateway_on_sglang.py",
    "test_sockets.py",
    "test_start_phases.py",
    "test_monitoring.py",
    "test_router.py",
    "test_keeping.py",  # it ends the server
)
_ONE_PORT: Final = ("test_by_hand.py", "test_quick_start.py")
_ONE_RERANKER: Final = ("test_reranker.py", "test_rerankers_in_frameworks.py")
_APART: Final = ("test_failures.py",)  # each of its tests starts its own server
_ORDER: Final = ("test_gpu_script.py", *_ONE_SERVER, *_ONE_PORT, *_ONE_RERANKER)
_GROUPS: Final = {
    file: group[0] for group in (_ONE_SERVER, _ONE_PORT, _ONE_RERANKER) for file in group
}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the time of a start, which its first fixture may need; put them in order.

    Within a file that is the order of its text: the last test ends what the others share.
    """
    for item in items:
        item.add_marker(pytest.mark.timeout(_TEST_S))
    ranks = {file: rank for rank, file in enumerate(_ORDER)}

    def place(item: pytest.Item) -> tuple[int, str, int]:
        rank = ranks.get(item.path.name, len(ranks))
        return rank, item.path.name, item.location[1] or 0

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep files that share a server in one worker; start the tests in their order."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            file = Path(nodeid.partition("::")[0]).name
            return nodeid if file in _APART else _GROUPS.get(file, file)

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _threads_sleep() -> Iterator[None]:
    # Threads that wait for each other by spinning take the cores from what runs beside them.
    with pytest.MonkeyPatch.context() as patch:
        if "OMP_WAIT_POLICY" not in os.environ:
            patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        yield


@pytest.fixture(scope="session")
def sglang_python() -> str:
    """The interpreter that has SGLang."""
    return python_of("sglang")


@pytest.fixture(scope="session")
def sglang_side(sglang_python: str) -> Iterator[EngineSide]:
    """What makes checkpoints and reference vectors by SGLang's own Transformers."""
    with engine_side(sglang_python) as side:
        yield side


@pytest.fixture(scope="session")
def transformers_side() -> Iterator[EngineSide]:
    """What makes checkpoints and references by the transformers engine's own Transformers."""
    with engine_side(python_of("transformers")) as side:
        yield side


@pytest.fixture(scope="session")
def sentences_side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineSide]:
    """What the transformers engine has, and sentence-transformers."""
    engine = installs.locate("transformers", Places.resolve())
    assert engine is not None, "Not installed here. Run: emberd engine install transformers"
    python = with_sentence_transformers(engine, tmp_path_factory.mktemp("sentences"))
    with engine_side(python) as side:
        yield side


@pytest.fixture(scope="session")
def tiny(sglang_side: EngineSide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-Embedding checkpoint; random weights, its own tokenizer."""
    return sglang_side.make_tiny(tmp_path_factory.mktemp("models") / "tiny-qwen3")


@pytest.fixture(scope="session")
def refer(sglang_side: EngineSide, tiny: Path) -> Refer:
    """Texts to what Transformers makes of them, on the weights of ``tiny``."""

    def ask(texts: list[str]) -> Reference:
        return sglang_side.reference(tiny, texts)

    return ask


@pytest.fixture(scope="session")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of the server that tests share; at the end nothing of it may be left anywhere."""
    home = tmp_path_factory.mktemp("shared-home")
    with traces.all_gone(home):
        yield home
        Manager(home).stop()


@pytest.fixture(scope="session")
def embedder(shared_home: Path, tiny: Path) -> Embedder:
    """The embedder of ``tiny`` through SGLang on the CPU; its server is started here, once."""
    made = embedder_for(tiny, Manager(shared_home))
    made.ensure()
    return made


@pytest.fixture(scope="session")
def small_reranker(transformers_side: EngineSide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reranker with random weights."""
    folder = tmp_path_factory.mktemp("models") / "small-reranker"
    return transformers_side.make_tiny_reranker(folder)


@pytest.fixture(scope="session")
def reranker_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a home for each engine; at the end nothing of their servers is left."""
    home = tmp_path_factory.mktemp("reranker-home")
    with traces.all_gone(home):
        yield home
        for engine in ("transformers", "sglang"):
            Manager(home / engine).stop()


@pytest.fixture(scope="session")
def start_reranker(small_reranker: Path, reranker_home: Path) -> Callable[[str], Reranker]:
    """Return the reranker of an engine, whose server is started once."""

    @functools.cache
    def start(engine: str) -> Reranker:
        made = Reranker(
            small_reranker,
            engine=engine,
            device="cpu",
            start_timeout=START_S,
            # One of them would be used for both, but for the engine.
            manager=Manager(reranker_home / engine),
            batch_size=64,
        )
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            if engine == "transformers":
                patch.setenv("EMBERD_ENGINE_ARGS", "--dtype float32")
            warnings.simplefilter("ignore")  # random weights may prefer the wrong document
            made.ensure()
        return made

    return start
