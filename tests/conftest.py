"""One state folder for each test process, a clean environment, and no process left behind.

``make test`` runs several workers at once. Each has its own folder and its own shared server, and
``isolation`` hides the processes of the others from the code under test. A test that must be the
only one on the machine is marked ``serial``; those run afterwards, one by one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

import checkpoints_made
import command
import fake_server
import isolation
import leftovers

# The tests of these paths run in one worker for each name, because they share a server of the real
# model, a process that has imported both frameworks, or the sources that were parsed.
_TOGETHER: Final = {
    **dict.fromkeys(
        (
            "tests/contract/test_processes.py",
            "tests/contract/test_swap.py",
            *("tests/test_snippets.py", "tests/test_upstream_pages.py"),
        ),
        "examples",
    ),
    "tests/examples/": "examples",
    "tests/contract/": "frameworks",
    "tests/integrations/": "frameworks",
    "tests/cli/test_embed_with_demo_model.py": "frameworks",
    "tests/serving/": "serving",
    **dict.fromkeys(
        ("tests/test_layout.py", "tests/test_messages.py", "tests/test_env.py"), "sources"
    ),
}
# Single tests that take longer than ten seconds on two cores. They begin before all other single
# tests: if one of them began last, the other workers would wait for its end.
_LONG: Final = (
    "tests/cli/test_embed_data.py::test_a_killed_run_goes_on_and_ends_as_one_that_was_not",
    "tests/cli/test_reuse.py::test_an_external_server_was_not_started_with_any_option",
    "tests/cli/test_shared_gpu.py::test_two_models_are_planned_together_started_and_stopped",
    "tests/cli/test_up_from_nothing.py::test_from_nothing_to_the_servers_command",
    "tests/deploy/test_rolling_update.py::",
    "tests/gateway/test_gateway_background.py::test_a_gateway_that_ends_again_and_again_is_given_up",
    "tests/gateway/test_gateway_memory.py::",
    "tests/manager/test_damaged_folders.py::test_damaged_folder_gives_a_server_or_an_error",
)
_ROOT = pytest.StashKey[Path]()
_ROOTS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Put everything that this process writes under one folder with a short name.

    One name finds every process that a test started, whichever home it was given; and the path
    of a socket in it stays under the kernel's 108 bytes.
    """
    # A background job of a shell starts with SIGINT ignored, and so would all children.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Without bytecode on the disk each of a thousand child processes compiles emberd again.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # In a main thread where no loop was ever set, `asyncio.get_event_loop` creates one, and
    # LlamaIndex never closes it. After `set_event_loop(None)` LlamaIndex calls `asyncio.run`.
    asyncio.set_event_loop(None)
    # The tests fill all cores: more threads of one server only wait for each other, and spin.
    os.environ["OMP_NUM_THREADS"] = "1"
    config.stash[_ROOTS] = []
    is_worker = hasattr(config, "workerinput")
    if not is_worker and config.getoption("dist", "no") != "no":
        return  # this process only hands tests to the workers
    root = Path(tempfile.mkdtemp(prefix="emb-"))
    config.stash[_ROOT] = root
    config.stash[_ROOTS].append(str(root))
    # Servers keep a folder there, and a test may look at all of them.
    (root / "tmp").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(root / "tmp")
    if is_worker:
        # For the controller, which says where the logs are.
        config.workeroutput["root"] = str(root)  # type: ignore[attr-defined]
    if is_worker or config.option.basetemp is None:
        config.option.basetemp = str(root / "t")
    isolation.begin(str(root))
    gc.disable()  # what is imported from now on stays


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the long tests begin first; the others stay in the order of pytest-randomly."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(_LONG))


def pytest_collection_finish() -> None:
    """Let the garbage collector look only at what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Keep the folder of a worker that has ended."""
    if root := getattr(node, "workeroutput", {}).get("root"):
        node.config.stash[_ROOTS].append(root)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests that share something costly in one worker; spread all others.

    xdist's own ``loadgroup`` does nothing with pytest 9.2, whose node ids cannot be changed.
    """
    if config.getoption("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if together := next(filter(file.startswith, _TOGETHER), None):
                return _TOGETHER[together]
            return file if _has_fixture_of_module(config.rootpath / file) else nodeid

    return Scheduling(config, log)


@cache
def _has_fixture_of_module(file: Path) -> bool:
    return 'scope="module"' in file.read_text(encoding="utf-8")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove the folder, unless its logs may be wanted."""
    root = session.config.stash.get(_ROOT, None)
    if root is not None and exitstatus != pytest.ExitCode.TESTS_FAILED:
        shutil.rmtree(root, ignore_errors=True)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Say where the logs of a failed session are."""
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        kept = [root for root in config.stash[_ROOTS] if Path(root).exists()]
        terminalreporter.write_line(f"state and logs of this session: {', '.join(kept)}")


@pytest.fixture(scope="session")
def managed_home(pytestconfig: pytest.Config) -> Path:
    """The EMBERD_HOME that all tests of this process share."""
    home = pytestconfig.stash[_ROOT] / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    return home


@pytest.fixture(scope="session", autouse=True)
def _session_environment(managed_home: Path) -> Iterator[None]:
    # For the session, and not for each test: servers that fixtures of a wider scope start
    # must not see the developer's own variables either.
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("EMBERD_", "OPENAI_")):
                patch.delenv(name)
        patch.setenv("EMBERD_HOME", str(managed_home))
        # The hub's cache holds the model of the fake server, which takes texts as they are.
        hub = managed_home.parent / "hf" / "hub"
        bare = {"prompts": {"query": "", "document": ""}}
        checkpoints_made.write_cached(
            hub, fake_server.MODEL, {"config_sentence_transformers.json": bare}
        )
        patch.setenv("HF_HOME", str(hub.parent))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_process_left(
    _session_environment: None,
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    # Set up before every other fixture of the session, so torn down after them all.
    yield
    command.stop_servers()
    places = (pytestconfig.stash[_ROOT], tmp_path_factory.getbasetemp())
    left = leftovers.end_all(str(place) for place in places)
    if left:
        pytest.fail("the tests left processes behind:\n" + "\n".join(left), pytrace=False)
