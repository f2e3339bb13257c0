"""Runs notebooks in a kernel, and compares what they show with what is stored in them.

To store the outputs of a notebook that runs with emberd/demo:
PYTHONPATH=tests python -c 'import notebooks as n; n.store("PATH")'.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any, Final

import managed
from command import Outcome, run_program

# In a separate process: warnings are errors in this one, and nbclient's cannot be fixed here.
_IN_A_KERNEL: Final = """
import sys
import nbformat
from nbclient import NotebookClient

notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, kernel_name="python3").execute()
print(nbformat.writes(notebook))
"""
_NUMBER: Final = re.compile(r"-?\d+\.\d+")


def read(path: Path) -> dict[str, Any]:
    """Return a notebook as it is stored."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def run(path: Path, **environment: str) -> Outcome:
    """Run the cells of a notebook, except those with the tag ``skip-execution``.

    Returns:
        What the process did; ``json`` is the notebook with the outputs.
    """
    with tempfile.TemporaryDirectory() as folder:
        variables = managed.environment(**{"IPYTHONDIR": folder, **environment})
        return run_program("-c", _IN_A_KERNEL, str(path), environment=variables)


def shown(notebook: dict[str, Any]) -> dict[str, str]:
    """Return what each cell of code shows, by the cell's name."""
    return {cell["id"]: "".join(map(_text, cell["outputs"])) for cell in _of_code(notebook)}


def same(stored: str, now: str) -> bool:
    """Return whether two outputs are the same, but for the last decimal place of numbers."""
    if _NUMBER.sub("0.0", stored) != _NUMBER.sub("0.0", now):
        return False
    pairs = zip(_NUMBER.findall(stored), _NUMBER.findall(now), strict=True)
    return all(abs(float(one) - float(other)) < 1.5 * _last_place(one) for one, other in pairs)


def store(name: str) -> None:
    """Run a notebook and store it with its outputs."""
    path = Path(name)
    done = run(path)
    assert done.code == 0, done.err
    stored, now = read(path), done.json
    by_id = {cell["id"]: cell for cell in now["cells"]}
    for number, cell in enumerate(_of_code(stored), 1):
        cell["outputs"] = by_id[cell["id"]]["outputs"]
        cell["execution_count"] = number if cell["outputs"] else None
        for output in cell["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = number
    path.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _of_code(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _last_place(number: str) -> float:
    return 10.0 ** -len(number.partition(".")[2])


def _text(output: dict[str, Any]) -> str:
    text = output["text"] if "text" in output else output["data"]["text/plain"]
    return text if isinstance(text, str) else "".join(text)
