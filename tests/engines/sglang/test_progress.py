"""Progress of a starting SGLang server, from its log."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

import sglang_logs
from emberd.engines.base import phase_of
from emberd.engines.sglang.log_reader import progress

KEPT_CHARS = 256 * 1024


def steps(log: str) -> list[str]:
    """What is shown while a log grows by one line after the other, each step once."""
    lines = log.splitlines(keepends=True)
    shown = [progress("".join(lines[:count])) for count in range(len(lines) + 1)]
    return shown[:1] + [step for before, step in pairwise(shown) if step != before]


def test_progress_of_a_real_start() -> None:
    assert steps(sglang_logs.read("ready").text) == [
        "importing SGLang",
        "starting the scheduler",
        "preparing the device",
        "loading the weights",
        "loading the weights (0 of 1 files)",
        "loading the weights (1 of 1 files)",
        "allocating the KV cache",
        "preparing the first batch",
        "opening its port",
        "warming up",
        "answering",
    ]


@pytest.mark.parametrize(
    ("told", "phase"),
    [
        ("importing SGLang", "importing SGLang"),
        ("waiting for the hub (retry 5 of 5)", "waiting for the hub"),
        ("downloading the weights 40 %", "downloading the weights"),
        ("loading the weights (1.2 of 7.6 GB)", "loading the weights"),
        ("capturing graphs 12/35", "capturing graphs"),
        ("", ""),
    ],
)
def test_the_figures_of_progress_do_not_make_another_phase(told: str, phase: str) -> None:
    assert phase_of(told) == phase


def test_progress_shows_retries_of_the_hub() -> None:
    assert "waiting for the hub (retry 5 of 5)" in steps(sglang_logs.read("hub-unreachable").text)


def test_progress_shows_a_download_without_a_bar() -> None:
    assert steps(sglang_logs.read("disk-full").text)[-1] == "downloading the weights"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "Fetching 5 files:  40%|####      | 2/5 [00:01<00:02,  1.5it/s]",
            "downloading the weights 40 %",
        ),
        ("model-00001-of-00002.safetensors:  34%|###  | 1.7G/5.0G", "downloading the weights 34 %"),
        (
            "Multi-thread loading shards:  40% Completed | 2/5 [00:01<00:02,  1.5it/s]",
            "loading the weights (2 of 5 files)",
        ),
        (
            "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01]",
            "loading the weights (1 of 2 files)",
        ),
        ("[2026-11-22] Capture target decode CUDA graph begin. backend=full", "capturing graphs"),
        (
            "Capturing prefill shape (num_tokens=2048 avail_mem=20.54 GB):  34%|###| 12/35 [00:01]",
            "capturing graphs 12/35",
        ),
        (
            "Capturing batches (bs=8 avail_mem=20.54 GB): 100%|#####| 4/4 [00:01<00:00]",
            "capturing graphs 4/4",
        ),
        ("DeepGEMM warmup:  10%|#         | 64/640 [00:01]", "compiling kernels 64/640"),
        (
            "2026-11-22 - INFO - core.py:12 - flashinfer.jit: Loading JIT ops: norm",
            "compiling kernels",
        ),
        ("[2026-11-22] Init torch distributed begin.", "preparing the device"),
    ],
)
def test_progress_knows_lines_of_gpus_and_other_loaders(line: str, told: str) -> None:
    assert progress(f"Load weight begin.\n{line}\n") == told


def test_the_last_state_of_a_bar_counts() -> None:
    bar = "Multi-thread loading shards:  {}% Completed | {}/4 [00:01]"
    assert progress(bar.format(25, 1) + "\r" + bar.format(75, 3)) == (
        "loading the weights (3 of 4 files)"
    )


def test_unrelated_lines_do_not_change_progress() -> None:
    log = "Load weight begin.\nIgnore import error when loading x\nUserWarning: no triton\n"
    assert progress(log) == "loading the weights"


@pytest.mark.parametrize("log", ["", "\n", "\r", "what is this\n"])
def test_without_a_known_line_it_is_importing(log: str) -> None:
    assert progress(log) == "importing SGLang"


def test_a_long_log_costs_little() -> None:
    """A supervisor asks twenty times a second."""
    log = (sglang_logs.read("ready").text * 100)[-KEPT_CHARS:]
    began = time.thread_time()
    for _ in range(20):
        assert progress(log) == "answering"
    assert (time.thread_time() - began) / 20 < 0.005
