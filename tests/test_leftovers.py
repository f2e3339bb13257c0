"""What the tests themselves find of processes that they left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import leftovers

_SLEEPS = "import time; time.sleep(60)"


def test_the_process_of_a_longer_name_is_not_found(tmp_path: Path) -> None:
    homes = [tmp_path / name for name in ("home1", "home10", "home1.d", "home1-b")]
    begun = [subprocess.Popen([sys.executable, "-c", _SLEEPS, f"{each}/file"]) for each in homes]
    try:
        for home, process in zip(homes, begun, strict=True):
            assert [each.pid for each in leftovers.find([str(home)])] == [process.pid]
        assert {each.pid for each in leftovers.find(map(str, homes[:2]))} == {
            each.pid for each in begun[:2]
        }
    finally:
        for process in begun:
            process.kill()
            process.wait()
