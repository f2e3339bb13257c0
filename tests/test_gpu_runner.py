"""The run on a GPU, as far as it needs none: limits, budget, kinds of results, what is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import psutil
import pytest

import source_tree
import waiting
from gpu import bench, parts, result, run, runner
from gpu.engine_side import checkpoint
from gpu.result import Kind, Result, Why
from gpu.runner import Part, Work

RUN: Final = source_tree.ROOT / "tests" / "gpu" / "run.py"
SOON_S: Final = 60.0


def part(name: str, **changes: object) -> Part:
    given: dict[str, object] = {
        "name": name,
        "function": f"gpu_standin_parts:{name}",
        "claim": "a stand-in",
        "expected_s": {"cpu": 0.0},
        "limit_s": {"cpu": SOON_S},
        "needs": {},
    }
    return Part(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    bench.Bench(folder=tmp_path, device="cpu", shape="tiny", python=sys.executable).save()
    return Work(tmp_path, "cpu", time.monotonic() + SOON_S + runner.RESERVED_S)


def only(work: Work, one: Part) -> Result:
    (found,) = runner.run([one], work, ())
    return found


def test_a_part_passes_with_its_figures(work: Work) -> None:
    found = only(work, part("passes"))
    assert (found.kind, found.summary) == (Kind.PASSED, "all is well")
    assert found.figures == {"device": "cpu"}
    assert "passes" in found.line


def test_a_part_that_misses_something_fails_with_all_its_figures(work: Work) -> None:
    found = only(work, part("misses"))
    assert (found.kind, found.summary) == (Kind.FAILED, "one thing is wrong; another too")
    assert found.figures == {"after": 1}


@pytest.mark.parametrize(
    ("name", "reason"), [("raises", "ValueError: out of range"), ("dies", "exit code 7: the last")]
)
def test_a_part_that_breaks_fails_and_the_rest_goes_on(work: Work, name: str, reason: str) -> None:
    broken, after = runner.run([part(name), part("passes")], work, ())
    assert broken.kind is Kind.FAILED
    assert reason in broken.summary
    assert broken.detail
    assert after.kind is Kind.PASSED


def test_a_part_over_its_limit_is_ended_with_all_that_it_started(work: Work) -> None:
    limit_s = 10.0
    found = only(work, part("hangs", limit_s={"cpu": limit_s}))
    assert found.kind is Kind.FAILED
    assert f"{limit_s:.0f} s" in found.summary
    pids = found.figures["pids"]
    waiting.until(lambda: not any(map(_runs, pids)))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_part_that_another_device_shows_is_skipped_with_the_reason(work: Work) -> None:
    gpu = {"expected_s": {"cuda": 1.0}, "limit_s": {"cuda": 1.0}}
    found = only(work, part("raises", not_here="it needs a GPU", **gpu))
    assert (found.kind, found.why, found.summary) == (
        Kind.SKIPPED,
        Why.NOT_HERE,
        "it needs a GPU",
    )


def test_a_part_whose_library_is_missing_is_skipped_with_the_reason(work: Work) -> None:
    found = only(work, part("skips"))
    assert (found.kind, found.why) == (Kind.SKIPPED, Why.NOT_HERE)
    assert found.summary == "the library is not installed"


def test_a_part_that_does_not_fit_into_the_time_left_is_skipped(work: Work) -> None:
    slow = part("raises", expected_s={"cpu": 10 * SOON_S})
    skipped, after = runner.run([slow, part("passes")], work, ())
    assert (skipped.kind, skipped.why) == (Kind.SKIPPED, Why.NOT_RUN)
    assert skipped.summary.startswith("no time left")
    assert after.kind is Kind.PASSED


def test_a_part_that_always_runs_does_so_when_no_time_is_left(work: Work) -> None:
    over = Work(work.folder, work.device, time.monotonic())
    assert only(over, part("passes", expected_s={"cpu": 1.0})).kind is Kind.SKIPPED
    assert only(over, part("passes", always=True)).kind is Kind.PASSED


def test_a_part_without_what_it_needs_is_skipped(work: Work) -> None:
    needy = part("passes", needs={"made": "another"})
    found = only(work, needy)
    assert (found.kind, found.why) == (Kind.SKIPPED, Why.NOT_RUN)
    assert "another" in found.summary
    (work.folder / "made").touch()
    assert only(work, needy).kind is Kind.PASSED


def test_parts_that_were_not_asked_for_are_skipped(work: Work) -> None:
    first, second = runner.run([part("raises"), part("passes")], work, ["passes"])
    assert (first.kind, first.why) == (Kind.SKIPPED, Why.NOT_HERE)
    assert second.kind is Kind.PASSED


@pytest.mark.parametrize(
    ("results", "code"),
    [
        ([Result("a", Kind.PASSED, "")], 0),
        ([Result("a", Kind.PASSED, ""), Result("b", Kind.SKIPPED, "", why=Why.NOT_HERE)], 0),
        ([Result("a", Kind.PASSED, ""), Result("b", Kind.SKIPPED, "", why=Why.NOT_RUN)], 2),
        ([Result("a", Kind.FAILED, ""), Result("b", Kind.SKIPPED, "", why=Why.NOT_RUN)], 1),
    ],
)
def test_the_exit_code_tells_a_failure_and_a_part_that_did_not_run(
    results: list[Result], code: int
) -> None:
    assert runner.exit_code(results) == code


def test_the_file_and_the_table_hold_every_part(work: Work, tmp_path: Path) -> None:
    found = list(runner.run([part("passes"), part("misses"), part("skips")], work, ()))
    path = tmp_path / "out" / "gpu.json"
    runner.keep(path, {"device": "cpu"}, found)
    kept = json.loads(path.read_text())
    assert kept["counts"] == {"passed": 1, "failed": 1, "skipped": 1}
    assert [each["name"] for each in kept["parts"]] == ["passes", "misses", "skips"]
    rows = result.table(found).splitlines()
    assert len(rows) == 2 + len(found)
    assert all(row.startswith("| ") and row.endswith(" |") for row in rows)


def test_the_real_parts_exist_and_should_fit_into_the_budget() -> None:
    names = [each.name for each in parts.PARTS]
    assert len(names) == len(set(names))
    assert sum(each.expected_s["cuda"] for each in parts.PARTS) < 600 - runner.RESERVED_S
    for each in parts.PARTS:
        assert each.limit_s.keys() == each.expected_s.keys()
        assert ("cpu" in each.limit_s) is not bool(each.not_here)
        assert all(each.limit_s[device] > each.expected_s[device] for device in each.limit_s)
        module, _, function = each.function.partition(":")
        path = RUN.parent.parent / f"{module.replace('.', '/')}.py"
        assert f"\ndef {function}(bench: Bench, report: Report)" in path.read_text()


def test_every_model_that_can_be_asked_for_has_a_shape() -> None:
    of_a_benchmark_on_the_cpu = {"thin"}
    assert set(run._MODELS) == set(checkpoint.SHAPES) - of_a_benchmark_on_the_cpu


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU")
def test_without_a_gpu_the_run_says_what_is_missing_and_does_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(RUN), "--work", str(tmp_path / "work")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SOON_S)
    assert done.returncode == 3
    assert "There is no GPU" in done.stdout
    assert "--device cpu" in done.stdout
    assert not (tmp_path / "work").exists()


def test_the_plan_shows_every_part_and_the_sum_without_a_gpu() -> None:
    done = subprocess.run([sys.executable, str(RUN), "--plan"], capture_output=True, text=True)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *(each.name for each in parts.PARTS),
        "all",
    ]
