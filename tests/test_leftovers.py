"""What the tests themselves find of processes and files that they left."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import leftovers
from emberd.manager import history
from real import traces

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


def test_without_a_name_no_process_is_found() -> None:
    assert leftovers.find([]) == leftovers.find([""]) == []


@pytest.mark.parametrize("folder", ["", "one-engine"])
def test_the_temporary_folder_of_a_server_in_a_home_or_below_it_is_found(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "_GONE_S", 0.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(traces, "_SHARED_MEMORY", tmp_path)  # of other tests, too
    home = tmp_path / "home"
    (home / folder).mkdir(parents=True)

    def start_two() -> None:
        """Leave what two servers leave; the second has another home."""
        (home / folder / history.NAME).write_text(json.dumps({"start_id": "0123"}) + "\n")
        (tmp_path / "emberd-0123").mkdir()
        (tmp_path / "emberd-4567").mkdir()

    with pytest.raises(AssertionError) as raised, traces.all_gone(home):
        start_two()
    assert "emberd-0123" in str(raised.value)
    assert "emberd-4567" not in str(raised.value)
