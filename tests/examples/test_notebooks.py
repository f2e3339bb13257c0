"""The notebooks of docs/notebooks run, and their stored outputs are those of a run.

``tests/notebooks.py`` shows the command that stores the outputs of a new run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

import notebooks
from emberd import Manager
from homes import home, manager
from managed import stopped_at_the_end
from source_tree import ROOT

__all__ = ["home", "manager", "stopped_at_the_end"]

NOTEBOOKS: Final = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def _without_port(text: str) -> str:
    return re.sub(r"http://127\.0\.0\.1:\d+", "", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_run_of_a_notebook_shows_the_stored_outputs(
    path: Path, home: Path, manager: Manager
) -> None:
    """Each has its own home: the last cell of the quick tour stops the server."""
    done = notebooks.run(path, EMBERD_HOME=str(home))
    assert done.code == 0, done.err
    stored, now = notebooks.shown(notebooks.read(path)), notebooks.shown(done.json)
    assert list(stored) == list(now)
    for cell, text in stored.items():
        assert notebooks.same(_without_port(text), _without_port(now[cell])), (cell, now[cell])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_outputs_and_without_paths_of_a_machine(path: Path) -> None:
    cells = [cell for cell in notebooks.read(path)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell["id"] for cell in cells if not cell["outputs"]] == []
    assert re.findall(r"/(?:tmp|home|root|work)/", path.read_text(encoding="utf-8")) == []
