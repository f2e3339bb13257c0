"""Files in, a folder of Parquet out: whole, right, and gone on with after a kill."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from filelock import FileLock
from pyarrow import dataset, parquet

import emberd
import waiting
from emberd.bulk import inputs
from emberd.cli import embed_ray
from emberd.errors import EmberdError, SettingError
from emberd.ray import jobs, units
from emberd.ray.jobs import Order, Summary
from emberd.settings import Settings
from managed import MODEL, environment, same
from ray_cluster import Nodes

ROWS = [{"id": row, "text": f"Sentence {row} about bread and the sea."} for row in range(96)]
GROUP = 8

DRIVER = """
import sys
from emberd.bulk import inputs
from emberd.ray import jobs, units
from emberd.settings import Settings
import ray
from pathlib import Path
units._ROWS = {group}
ray.init(sys.argv[3], log_to_driver=False)
jobs.run(jobs.Order(inputs.find([sys.argv[1]]), Path(sys.argv[2]), Settings(model={model!r})))
"""


@pytest.fixture(autouse=True)
def _small_pieces(ray_nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_ROWS", GROUP)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "rows.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=GROUP)
    return path.parent


def run(source: Path, output: Path, base_url: str | None = None, **wishes: Any) -> Summary:
    settings = Settings(model=MODEL, base_url=base_url)
    return jobs.run(Order(inputs.find([str(source)]), output, settings, **wishes))


def check(output: Path, rows: list[dict[str, Any]] = ROWS) -> None:
    """Every row is in the output once, with the vector that ``Embedder`` gives to its text."""
    found = dataset.dataset(output).to_table().sort_by("id")
    assert found.select(["id", "text"]).to_pylist() == rows
    vectors = np.array(found["embedding"].to_pylist(), np.float32)
    assert same(vectors, emberd.Embedder(MODEL).embed_documents(row["text"] for row in rows))


def test_a_job_whose_driver_was_killed_is_gone_on_with(
    ray_nodes: Nodes, source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    marks = output / "_emberd" / "done"
    program = DRIVER.format(group=GROUP, model=MODEL)
    command = [sys.executable, "-c", program, str(source), str(output), ray_nodes.address]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL) as driver:
        waiting.until(lambda: len(list(marks.glob("part-*"))) > 2, 60)
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    # Its workers end a moment after it; what they finish meanwhile counts.
    done = len(list(marks.glob("part-*")))
    summary = run(source, output)
    assert (summary.rows, summary.set_aside, summary.pieces) == (96, 0, 12)
    assert 0 < summary.fresh <= 12 - done
    check(output)
    again = run(source, output)
    assert (again.fresh, again.rows) == (0, 96)
    assert not list(output.glob(".part-*"))


def test_bad_rows_are_set_aside_with_their_place_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    bad = ["{bad", '{"id": 5}']
    path.write_text("\n".join([*map(json.dumps, ROWS[:9]), *bad]))
    with pytest.raises(EmberdError, match=r"rows\.jsonl, byte \d+: The line is no JSON"):
        run(path, tmp_path / "out", fails_on_bad_row=True)
    summary = run(path, tmp_path / "other")
    assert (summary.rows, summary.set_aside) == (9, 2)
    check(tmp_path / "other", ROWS[:9])
    (file,) = summary.set_aside_in.iterdir()
    told = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["reason"][:11] for row in told] == ["The line is", "The text is"]
    assert all(row["file"] == str(path) and row["byte"] > 0 for row in told)


def test_what_was_begun_is_gone_on_with_by_the_same_job_alone(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run(source, output)
    with pytest.raises(SettingError, match="begun with other role: 'document', and now 'query'"):
        run(source, output, role="query")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[:3]), source / "rows.parquet")
    with pytest.raises(SettingError, match=r"begun with other inputs: .*rows\.parquet"):
        run(source, output)
    assert run(source, output, restart=True).rows == 3
    check(output, ROWS[:3])


def test_pieces_that_were_cut_otherwise_are_not_gone_on_with(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tmp_path / "out")
    monkeypatch.setattr(units, "_ROWS", 2 * GROUP)
    with pytest.raises(SettingError, match="begun with other pieces"):
        run(source, tmp_path / "out")


def test_a_run_that_is_interrupted_says_how_to_go_on(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(order: Order) -> Summary:
        raise KeyboardInterrupt

    monkeypatch.setattr(embed_ray, "_connected", contextlib.nullcontext)
    monkeypatch.setattr(jobs, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embed_ray.embed([str(source)], tmp_path / "out", Settings(model=MODEL), address=None)
    assert "run the same command again" in capsys.readouterr().err


def test_a_folder_with_other_things_in_it_is_left_alone(source: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="holds something else"):
        run(source, tmp_path)


def test_one_run_at_a_time_writes_to_a_folder(source: Path, tmp_path: Path) -> None:
    own = tmp_path / "out" / "_emberd"
    own.mkdir(parents=True)
    with (
        FileLock(own / "lock", fallback_to_soft=False, preserve_lock_file=True),
        pytest.raises(EmberdError, match="Another run writes to"),
    ):
        run(source, tmp_path / "out")


def test_an_error_of_the_server_ends_the_job_as_what_it_is(source: Path, tmp_path: Path) -> None:
    with pytest.raises(emberd.ServerUnavailableError, match="No response") as raised:
        run(source, tmp_path / "out", base_url="http://127.0.0.1:9")
    assert "run the same command again" in " ".join(raised.value.__notes__)


@pytest.mark.parametrize(
    ("names", "folder", "told"),
    [
        ((), "out", "Name one of them"),
        (("rows.txt",), "out", "Name one of them"),
        (("in",), None, "Give --output FOLDER"),
        (("in",), "out.parquet", "Give --output FOLDER"),
        (("in",), "in/out", "among what is read"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    tmp_path: Path, names: tuple[str, ...], folder: str | None, told: str
) -> None:
    (tmp_path / "in").mkdir()
    given = [str(tmp_path / name) for name in names]
    output = tmp_path / folder if folder else None
    with pytest.raises(SettingError, match=told):
        embed_ray.embed(given, output, Settings(), address=None)


def test_without_ray_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_ray, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"pip install 'emberd\[ray\]'"):
        embed_ray.embed(["in"], Path("out"), Settings(), address=None)


def test_the_command_tells_what_came_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 0, "text": "bread"}\n{"id": 1}\n')
    # This process is connected already, and stays so.
    monkeypatch.setattr(embed_ray, "_connected", contextlib.nullcontext)
    code = embed_ray.embed([str(path)], tmp_path / "out", Settings(model=MODEL), address=None)
    assert code == 6
    told = capsys.readouterr().err
    assert "out: 1 row in 1 piece; " in told
    assert "1 row could not be embedded and is not in it" in told
