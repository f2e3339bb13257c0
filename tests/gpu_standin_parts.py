"""Parts that stand in for the real ones: the runner's tests run them in its child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Final

from gpu.bench import Bench
from gpu.result import Report, SkippedError, Why

LONG_S: Final = 600.0
_SLEEPER: Final = "import time; time.sleep(600)"


def passes(bench: Bench, report: Report) -> None:
    """Measure something."""
    report.figure("device", bench.device)
    (bench.folder / "made").touch()
    report.summary = "all is well"


def misses(bench: Bench, report: Report) -> None:
    """Measure something that is not as it should be, and go on."""
    report.require(False, "one thing is wrong")
    report.figure("after", 1)
    report.require(False, "another too")


def raises(bench: Bench, report: Report) -> None:
    """Fail with an exception."""
    report.figure("before", 1)
    raise ValueError("out of range")


def dies(bench: Bench, report: Report) -> None:
    """End without a message."""
    print("the last line")
    sys.stdout.flush()
    os._exit(7)


def skips(bench: Bench, report: Report) -> None:
    """Find that it cannot be run."""
    raise SkippedError("the library is not installed", Why.NOT_HERE)


def hangs(bench: Bench, report: Report) -> None:
    """Start processes, in a group and in a session of their own, and never end."""
    usual = subprocess.Popen([sys.executable, "-c", _SLEEPER])
    apart = subprocess.Popen([sys.executable, "-c", _SLEEPER], start_new_session=True)
    report.figure("pids", [os.getpid(), usual.pid, apart.pid])
    time.sleep(LONG_S)
