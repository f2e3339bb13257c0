"""What the adapters of other libraries need around them.

Chroma and LanceDB are tested in the environment of the vector stores (``make test-stores``), the
others in an environment with torch (``make test-adapters``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import emberd
from agents.conftest import _texts
from agents.recipes import Sent
from managed import MODEL, environment, stopped_at_the_end
from real.recorder import in_front_of

__all__ = ["stopped_at_the_end"]

# Each is another package's, and reported where no one can act on it.
_FOREIGN = (
    "ignore:.*'asyncio.iscoroutinefunction' is deprecated:DeprecationWarning",
    "ignore:The .*search_sorted.* is deprecated",
    "ignore:unclosed database in:ResourceWarning",
)
# Ours, and true: what is tried here is that a length is kept.
_OURS = r"ignore:dimensions=\d+.* was not trained:UserWarning"

InNewProcess = Callable[..., str]  # runs code with variables of its environment; what it prints


def pytest_configure(config: pytest.Config) -> None:
    """Let these warnings pass; some come while a module is imported."""
    for line in (*_FOREIGN, _OURS):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session", autouse=True)
def _silent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the libraries from reporting, and from the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
        patch.setenv("ANONYMIZED_TELEMETRY", "False")
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("MTEB_CACHE", str(tmp_path_factory.mktemp("mteb")))
        yield


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """The texts that the session's server was sent, which everything now goes to."""
    with in_front_of(emberd.Embedder(MODEL).endpoint()) as recorder:
        monkeypatch.setenv("EMBERD_BASE_URL", recorder.base_url)
        monkeypatch.setenv("EMBERD_API_KEY", recorder.api_key)
        yield lambda: [text for text in _texts(recorder) if ": " in text[:9]]


@pytest.fixture
def in_new_process(tmp_path: Path) -> InNewProcess:
    """Run code in a separate process, which inherits nothing but the environment."""

    def run(code: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**environment(), **variables, "HOME": os.environ.get("HOME", str(tmp_path))},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
