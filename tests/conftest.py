"""One state folder for the whole session, a clean environment, and no process left behind."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import leftovers

_ROOT = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Put all that the session writes under one folder with a short name.

    One name finds every process that a test started, whichever home it was given; and the path
    of a socket in it stays under the kernel's 108 bytes.
    """
    # A background job of a shell starts with SIGINT ignored, and so would all children.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    root = Path(tempfile.mkdtemp(prefix="emb-"))
    config.stash[_ROOT] = root
    if config.option.basetemp is None:
        config.option.basetemp = str(root / "t")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove the session's folder, unless its logs may be wanted."""
    if exitstatus != pytest.ExitCode.TESTS_FAILED:
        shutil.rmtree(session.config.stash[_ROOT], ignore_errors=True)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Say where the logs of a failed session are."""
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        terminalreporter.write_line(f"state and logs of this session: {config.stash[_ROOT]}")


@pytest.fixture(scope="session")
def managed_home(pytestconfig: pytest.Config) -> Path:
    """The EMBERD_HOME that all tests of the session share."""
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
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_process_left(
    _session_environment: None,
    pytestconfig: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    # Set up before every other fixture of the session, so torn down after them all.
    yield
    places = (pytestconfig.stash[_ROOT], tmp_path_factory.getbasetemp())
    left = leftovers.end_all(str(place) for place in places)
    if left:
        pytest.fail("the tests left processes behind:\n" + "\n".join(left), pytrace=False)
