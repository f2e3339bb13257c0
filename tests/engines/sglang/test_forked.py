"""SGLang's server on the CPU forks its processes instead of starting interpreters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emberd.engines.sglang import command

# As SGLang's own module: it imports, sets the start method, and starts a process.
_SERVER = """
import gc, json, multiprocessing, os, sys
collects_in_imports = gc.isenabled()
imported_in = os.getpid()

def child(writer):
    writer.send([os.getpid(), os.getppid(), imported_in])

if __name__ == "__main__":
    method = sys.argv[1]
    multiprocessing.set_start_method(method, force=True)
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=child, args=(writer,))
    process.start()
    print(json.dumps({
        "pid": os.getpid(), "child": reader.recv(), "argv": sys.argv[1:],
        "collects": [collects_in_imports, gc.isenabled()],
    }))
    process.join()
"""


@pytest.fixture
def server(tmp_path: Path) -> Path:
    package = tmp_path / "fake"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "server.py").write_text(_SERVER)
    return tmp_path


def run(folder: Path, *words: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": f"{command.ON_CPU}{os.pathsep}{folder}"}
    done = subprocess.run(
        [sys.executable, "-m", *words], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_its_processes_have_what_the_main_process_imported(server: Path) -> None:
    told = run(server, "sglang_forked", "fake.server", "spawn", "--port", "1")
    child, parent, imported_in = told["child"]
    assert (parent, imported_in) == (told["pid"], told["pid"])
    assert child != told["pid"]
    assert told["argv"] == ["spawn", "--port", "1"]
    assert told["collects"] == [False, True], "collections are off for the imports only"


def test_without_it_they_import_again(server: Path) -> None:
    told = run(server, "fake.server", "spawn")
    child, parent, imported_in = told["child"]
    assert (parent, imported_in) == (told["pid"], child)


def test_another_start_method_is_kept(server: Path) -> None:
    told = run(server, "sglang_forked", "fake.server", "forkserver")
    assert told["child"][1] != told["pid"]
