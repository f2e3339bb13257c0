"""The run on a GPU, on the CPU: the parts that SGLang on the CPU can show, from start to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import source_tree
from gpu.parts import PARTS

_RUN: Final = source_tree.ROOT / "tests" / "gpu" / "run.py"
# Measured on two cores: 338 s beside little other work (load 3), 1,221 s beside much (10 to 30).
_BUDGET_S: Final = 1500.0


@pytest.mark.timeout(_BUDGET_S + 120.0)
def test_the_parts_that_a_cpu_can_show_pass(
    sglang_python: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    command = [sys.executable, str(_RUN), "--device", "cpu", "--model", "tiny"]
    command += ["--budget", str(_BUDGET_S), "--json", str(path)]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "EMBERD_SGLANG_PYTHON": sglang_python},
    )
    with capsys.disabled():
        print(f"\n{done.stdout}")
    found = {part["name"]: part for part in json.loads(path.read_text())["parts"]}
    assert list(found) == [part.name for part in PARTS]
    wrong = {
        name: part["summary"]
        for name, part in found.items()
        if part["kind"] == "failed" or part["why"] == "not run"
    }
    assert wrong == {}
    skipped = {name for name, part in found.items() if part["kind"] == "skipped"}
    # The library is in no engine's environment unless somebody has put it there.
    assert skipped - {"in_process"} == {part.name for part in PARTS if part.not_here}
    assert done.returncode == 0
