"""Bulk runs over a stand-in for the server, in this process or in one that may be killed.

``python bulk_standin.py`` forks a run for each line that it reads, so that a run costs no imports.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from pyarrow import parquet

from emberd.bulk import pipeline, readers
from emberd.bulk.pipeline import BulkSummary, Embed, local_executor
from emberd.bulk.request import BulkRequest, OutputFormat, find_inputs
from emberd.errors import ServerUnavailableError, TextError

DIMENSIONS: Final = 4
_AHEAD: Final = 300
_CHANGES: Final = ("os.rename", "os.remove", "os.link", "os.rmdir", "os.mkdir")


def vector(text: str) -> Any:
    """Return a vector of length one that depends only on the text."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:DIMENSIONS]
    raw = np.frombuffer(digest, np.uint8).astype(np.float32) - 127.5
    return (raw / np.linalg.norm(raw)).astype(np.float32)


def embed(texts: Iterable[str]) -> Iterator[Any]:
    """Yield a vector a text, and the error of a blank one; texts are taken well ahead."""
    source = iter(texts)
    index = 0
    while window := list(islice(source, _AHEAD)):
        for text in window:
            if "SERVER DOWN" in text:
                raise ServerUnavailableError("Nobody answers.")
            if text.strip():
                yield vector(text)
            else:
                yield TextError(f"Text {index} is blank. Omit blank texts.", index=index)
            index += 1


def request(source: Path | list[Path], output: Path, **options: Any) -> BulkRequest:
    """Return a request to embed ``source`` into ``output``, saving after each chunk."""
    names = source if isinstance(source, list) else [source]
    usual = {
        "output_format": OutputFormat(output.suffix.removeprefix(".") or "folder"),
        "identity": "emberd:stand-in",
        "role": "document",
        "column": "text",
        "embedding_column": "embedding",
        "save_every_s": 0.0,
    }
    found = find_inputs([str(name) for name in names])
    return BulkRequest(found, output, **{**usual, **options})


def run(source: Path | list[Path], output: Path, **options: Any) -> BulkSummary:
    """Embed ``source`` into ``output``."""
    return run_request(request(source, output, **options))


def run_request(
    wanted: BulkRequest, by: Embed = embed, dimensions: int = DIMENSIONS, watch: Any = None
) -> BulkSummary:
    """Run ``wanted`` with ``by``, which returns vectors of ``dimensions``."""
    reader = readers.open_reader(wanted)
    return pipeline.run(wanted, reader, local_executor(lambda: (by, dimensions)), watch)


def rejects(output: Path) -> list[dict[str, Any]]:
    """Return what is written of the rows that could not be embedded."""
    path = output.with_name(output.name + ".rejects.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_right(output: Path) -> bool:
    """Return whether each row of a Parquet output has the vector of its text."""
    table = parquet.read_table(output)
    expected = [vector(text) for text in table["text"].to_pylist()]
    return bool(np.array_equal(np.array(table["embedding"].to_pylist(), np.float32), expected))


class Runs:
    """Runs in processes of their own, which kill themselves before a step of their choice."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def __call__(self, source: Path, output: Path, kill_at: int = 0) -> int:
        """Run to the end, or to before step ``kill_at``, and return the exit status."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([str(source), str(output), kill_at]).encode() + b"\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._server.communicate()


@contextmanager
def runs() -> Iterator[Runs]:
    """Yield what runs in processes of their own."""
    opened = Runs()
    try:
        yield opened
    finally:
        opened.close()


def _main() -> None:
    # What a run imports, so that each child need not. No run, whose threads a fork would lose.
    for name in ("filelock", "pyarrow.compute", "pyarrow.pandas_compat", "pandas"):
        with suppress(ImportError):  # pandas is imported by pyarrow where it is installed
            importlib.import_module(name)
    gc.freeze()  # or each child would copy what it only looks at
    for line in iter(sys.stdin.readline, ""):
        source, output, kill_at = json.loads(line)
        if (child := os.fork()) == 0:
            _run_and_exit(Path(source), Path(output), kill_at)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run_and_exit(source: Path, output: Path, kill_at: int) -> None:
    _die_at(kill_at, str(output))
    try:
        run(source, output)
    except BaseException:  # noqa: BLE001 - the parent's frames are none of this process
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _die_at(kill_at: int, marked: str) -> None:
    """Die by a kill before the ``kill_at``-th step that changes the output or its parts."""
    steps = iter(range(1, kill_at + 1))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in _CHANGES or (event == "open" and arguments[2] & os.O_CREAT)
        if changes and str(arguments[0]).startswith(marked) and next(steps, None) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    _main()
