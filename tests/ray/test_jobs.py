"""Bulk jobs on a cluster: complete, right, and continued after a kill."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import dataset, parquet

import emberd
import waiting
from bulk_standin import embed as embed_by_standin
from emberd.bulk import checkpoint, pipeline, readers, units
from emberd.bulk.pipeline import BulkSummary, UnitTask
from emberd.bulk.request import BulkRequest, OutputFormat, find_inputs
from emberd.cli import embed as embed_command
from emberd.errors import EmberdError, SettingError
from emberd.ray.executor import ray_executor
from emberd.settings import Settings
from managed import MODEL, environment, same
from ray_cluster import Nodes

ROWS = [{"id": row, "text": f"Sentence {row} about bread and the sea."} for row in range(96)]
GROUP = 8

DRIVER = """
import sys
from pathlib import Path
import ray
from emberd.bulk import pipeline, readers, units
from emberd.bulk.request import BulkRequest, OutputFormat, find_inputs
from emberd.ray.executor import ray_executor
from emberd.settings import Settings
units.UNIT_ROWS = {group}
ray.init(sys.argv[3], log_to_driver=False)
settings = Settings(model={model!r})
request = BulkRequest(
    find_inputs([sys.argv[1]]), Path(sys.argv[2]), OutputFormat.FOLDER, identity="test"
)
pipeline.run(request, readers.open_reader(request), ray_executor(settings))
"""


@pytest.fixture(autouse=True)
def _small_units(ray_nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_ROWS", GROUP)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "rows.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=GROUP)
    return path.parent


def request(source: Path, output: Path, **parameters: Any) -> BulkRequest:
    found = find_inputs([str(source)])
    return BulkRequest(found, output, OutputFormat.FOLDER, identity="test", **parameters)


def run(source: Path, output: Path, base_url: str | None = None, **parameters: Any) -> BulkSummary:
    wanted = request(source, output, **parameters)
    executor = ray_executor(Settings(model=MODEL, base_url=base_url))
    return pipeline.run(wanted, readers.open_reader(wanted), executor)


def check(output: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    """Every row is in the output once, in order, with the vector that ``Embedder`` returns."""
    found = dataset.dataset(output).to_table()
    assert found.select(["id", "text"]).to_pylist() == rows
    vectors = np.array(found["embedding"].to_pylist(), np.float32)
    assert same(vectors, emberd.Embedder(MODEL).embed_documents(row["text"] for row in rows))


def test_a_job_whose_driver_was_killed_is_continued(
    ray_nodes: Nodes, source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    parts = checkpoint.folder_of(output)
    program = DRIVER.format(group=GROUP, model=MODEL)
    command = [sys.executable, "-c", program, str(source), str(output), ray_nodes.address]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as driver:
        waiting.until(lambda: len(list(parts.glob("unit-*.json"))) > 2, 60)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    # Its workers end a moment later; what they finish until then counts.
    done = len(list(parts.glob("unit-*.json")))
    summary = run(source, output)
    assert (summary.embedded, summary.rejected) == (96, 0)
    assert done * GROUP <= summary.before
    check(output)
    assert not parts.exists()


def test_a_job_begun_on_a_cluster_is_continued_locally(source: Path, tmp_path: Path) -> None:
    """And workers of the earlier run write nothing more."""
    wanted = request(source, tmp_path / "out")
    reader = readers.open_reader(wanted)
    late: list[UnitTask] = []

    def begin(task: UnitTask, missing: Any, on_rows: Any) -> None:
        late.append(task)
        task.embed(missing[3:5], embed_by_standin, 4, math.inf, on_rows)
        raise EmberdError("The driver stops here.")

    with pytest.raises(EmberdError, match="stops here"):
        pipeline.run(wanted, reader, begin)

    def finish(task: UnitTask, missing: Any, on_rows: Any) -> None:
        assert list(missing) == [0, 1, 2, *range(5, 12)]
        with pytest.raises(EmberdError, match="Another run has taken over"):
            late[0].embed([0], embed_by_standin, 4, math.inf, on_rows)
        task.embed(missing, embed_by_standin, 4, 0.0, on_rows)

    summary = pipeline.run(wanted, reader, finish)
    assert (summary.embedded, summary.before) == (96, 2 * GROUP)
    found = dataset.dataset(tmp_path / "out").to_table()
    assert found.select(["id", "text"]).to_pylist() == ROWS


def test_overlapping_parts_of_two_workers_count_once(source: Path, tmp_path: Path) -> None:
    wanted = request(source, tmp_path / "out")
    reader = readers.open_reader(wanted)

    def twice(task: UnitTask, missing: Any, on_rows: Any) -> None:
        task.embed(missing, embed_by_standin, 4, math.inf, on_rows)
        # As a worker writes it that was believed dead, and that began with another part.
        whole = next(task.folder.glob("part-000000-*.parquet"))
        for stop in (3, 5):
            name = f"part-000000-0000000000-{stop:010d}"
            for ending in (".parquet", ".jsonl"):
                whole.with_name(name + ending).write_bytes(whole.with_suffix(ending).read_bytes())

    assert pipeline.run(wanted, reader, twice).embedded == 96
    found = dataset.dataset(tmp_path / "out").to_table()
    assert found.select(["id", "text"]).to_pylist() == ROWS


def test_an_error_of_a_worker_ends_the_job_as_what_it_is(source: Path, tmp_path: Path) -> None:
    with pytest.raises(emberd.ServerUnavailableError, match="No response") as raised:
        run(source, tmp_path / "out", base_url="http://127.0.0.1:9")
    assert pipeline.RESUME_HINT in raised.value.__notes__


def test_a_bad_row_is_an_error_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([*map(json.dumps, ROWS[:9]), "{bad"]))
    with pytest.raises(EmberdError, match=r"rows\.jsonl, line 10\): The line is not JSON"):
        run(path, tmp_path / "out", bad_rows="fail")


@pytest.mark.parametrize(
    ("names", "save_every", "message"),
    [
        ((), None, "--ray requires Parquet"),
        (("rows.txt",), None, "--ray requires Parquet"),
        (("in",), "5", "--save-every cannot be combined"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    tmp_path: Path, names: tuple[str, ...], save_every: str | None, message: str
) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(SettingError, match=message):
        embed_command._check_ray([str(tmp_path / name) for name in names], save_every)


def test_without_ray_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_command, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'emberd\[ray\]'"):
        embed_command._check_ray(["in"], None)


def test_an_interrupted_run_says_how_to_continue(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(task: UnitTask, missing: Any, on_rows: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_command.embed_data(
            [str(source)],
            tmp_path / "out",
            None,
            emberd.Embedder(MODEL),
            executor=interrupted,
            connected=nullcontext(),
        )
    assert pipeline.RESUME_HINT in capsys.readouterr().err
