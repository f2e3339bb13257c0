"""emberd in programs whose standard library gevent or eventlet has patched, with no server running.

In processes of their own: a library that is patched stays so.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import emberd
import waiting
from managed import environment

PROGRAM = Path(__file__).with_name("greenlets.py")
VECTORS = {
    "without a greenlet": 1,
    "many": 40,
    "patched late": 3,
    "a thread": 1,
    "async": 1,
    "async in a greenlet": 1,
    "langchain": 3,
    "a loss": 1,
    "several requests": 3,
}


@pytest.mark.parametrize("scenario", VECTORS)
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_patched_program_gets_its_vectors(library: str, scenario: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    try:
        done = subprocess.run(
            # eventlet warns that it is deprecated.
            [sys.executable, "-W", "ignore", str(PROGRAM), library, scenario],
            env=environment(EMBERD_HOME=str(home)),
            capture_output=True,
            text=True,
            timeout=4 * waiting.DEADLINE_S,
            check=False,
        )
    finally:
        emberd.Manager(home).stop()
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == VECTORS[scenario]
