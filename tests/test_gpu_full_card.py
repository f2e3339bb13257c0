"""The part of the run on a GPU that no CPU can show, on a library that says there is a GPU.

The driver's library is a stand-in that tells as free what a file says; torch is one that takes from
that file, and gives back when its process ends. Everything else is the real thing: the script that
fills the card, emberd's plan, its supervisor, the error.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, Final

import pytest

import checkpoints_made
import fake_nvml
import source_tree

GIB: Final = 1 << 30
FREE: Final = 20 * GIB
SOON_S: Final = 100.0
_RUN: Final = source_tree.ROOT / "tests" / "gpu" / "run.py"
_TELLS_FREE: Final = (
    "m->total = 24ULL << 30; m->used = 4ULL << 30; m->free = 20ULL << 30; return 0;"
)
_READS_FREE: Final = """
    FILE *file = fopen(getenv("FREE_BYTES_FILE"), "r");
    m->total = 24ULL << 30; m->free = 0;
    if (file) { if (fscanf(file, "%llu", &m->free) != 1) m->free = 0; fclose(file); }
    m->used = m->total - m->free; return 0;
"""
_TORCH: Final = """
import atexit, os, pathlib
_FILE = pathlib.Path(os.environ["FREE_BYTES_FILE"])
_BEFORE = _FILE.read_text()
atexit.register(lambda: _FILE.write_text(_BEFORE))
uint8 = "uint8"
def empty(size, dtype, device):
    fresh = _FILE.with_suffix(".new")
    fresh.write_text(str(int(_FILE.read_text()) - size))
    fresh.rename(_FILE)
    return size
class cuda:
    @staticmethod
    def mem_get_info():
        return int(_FILE.read_text()), 24 << 30
"""


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with a driver's library of one interface with the real one."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    source = fake_nvml.LIBRARY.replace(_TELLS_FREE, _READS_FREE)
    assert source != fake_nvml.LIBRARY
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "nvml.c").write_text(f"#include <stdio.h>\n#include <stdlib.h>\n{source}")
    command = [compiler, "-shared", "-fPIC", "-DINIT=0", "-o", str(folder / "libnvidia-ml.so.1")]
    subprocess.run([*command, str(folder / "nvml.c")], check=True)
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> str:
    """An interpreter that has an SGLang by its metadata only, and the stand-in of torch."""
    folder = tmp_path / "engine"
    venv.create(folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "torch").mkdir()
    (packages / "torch" / "__init__.py").write_text(_TORCH)
    described = packages / "sglang-0.5.23.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: sglang\nVersion: 0.5.23\n")
    return str(folder / "bin" / "python")


def test_a_full_card_part_passes_where_a_start_is_refused_for_memory(
    tmp_path: Path, library: Path, engine: str
) -> None:
    work, free = tmp_path / "w", tmp_path / "free"
    free.write_text(str(FREE))
    checkpoints_made.write(work / "model", tensors={"norm.weight": [64]})
    prompts = {"prompts": {"query": "", "document": ""}}
    checkpoints_made.write_json(work / "model" / "config_sentence_transformers.json", prompts)
    before = {"figures": {"used_before_gib": (24 * GIB - FREE) / GIB}}
    (work / "results").mkdir()
    (work / "results" / "first_start.json").write_text(json.dumps(before))
    done = subprocess.run(
        [
            *(sys.executable, str(_RUN), "--work", str(work), "--json", str(tmp_path / "gpu.json")),
            *("--parts", "full_card,nothing_left"),
        ],
        capture_output=True,
        text=True,
        timeout=SOON_S,
        env={
            **os.environ,
            "EMBERD_SGLANG_PYTHON": engine,
            "FREE_BYTES_FILE": str(free),
            "LD_LIBRARY_PATH": str(library),
        },
    )
    content = json.loads((tmp_path / "gpu.json").read_text())
    found: dict[str, Any] = {part["name"]: part for part in content["parts"]}
    assert found["full_card"]["kind"] == "passed", found["full_card"]
    assert found["nothing_left"]["kind"] == "passed", found["nothing_left"]
    assert content["gpu"]["name"] == "NVIDIA L4"
    figures = found["full_card"]["figures"]
    assert figures["free_gib"] < 3
    assert "GiB" in figures["error"]
    assert int(free.read_text()) == FREE
    assert done.returncode == 0
