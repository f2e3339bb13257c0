"""``emberd up --estimate``: the memory of a server on GPUs that need not be here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import checkpoints_made
from command import Command

FIGURES = ("weights_bytes", "kv_bytes", "activation_bytes", "overhead_bytes")


def _cards(command: Command, *words: str) -> list[dict[str, Any]]:
    done = command("up", "--estimate", *words, "--json")
    assert done.code == 0
    cards: list[dict[str, Any]] = done.json["cards"]
    return cards


def test_without_a_size_the_usual_ones_are_shown(emberd: Command) -> None:
    cards = _cards(emberd)
    sizes = [(card["memory_gb"], card["generation"]) for card in cards]
    hopper = [(80, "Hopper"), (141, "Hopper")]
    assert sizes == [(16, None), (24, None), (48, None), (80, None), *hopper]
    assert all(card["fits"] for card in cards)
    for card in cards:
        assert sum(card[name] for name in FIGURES) == card["need_bytes"] <= card["free_bytes"]
    assert not emberd.home.exists()  # nothing was started or written


def test_the_table_has_the_same_figures(emberd: Command) -> None:
    [card] = _cards(emberd, "--memory", "24GB")
    out = emberd("up", "--estimate", "--memory", "24GB").out
    [line] = [line for line in out.splitlines() if line.startswith("24 GB")]
    figures = [f"{card[name] / (1 << 30):.1f}" for name in (*FIGURES, "need_bytes")]
    assert line.split()[2:7] == figures


@pytest.mark.parametrize("size", ["24", "24GB", "24 gb", "24G", "24.0"])
def test_a_size_may_be_written_in_several_ways(emberd: Command, size: str) -> None:
    [card] = _cards(emberd, "--memory", size)
    assert card["memory_gb"] == 24


@pytest.mark.parametrize("size", ["", "big", "0", "-24", "24TB", "99999", "nan"])
def test_a_size_that_cannot_be_one_is_an_error(emberd: Command, size: str) -> None:
    done = emberd("up", "--estimate", f"--memory={size}", "--json")
    assert (done.code, done.json["error"]["kind"]) == (2, "SettingError")


def test_what_changes_the_memory_changes_the_estimate(emberd: Command) -> None:
    [plain] = _cards(emberd, "--memory", "48")
    refused, quantised = _cards(emberd, "--memory", "48", "--quantization", "fp8")
    [short] = _cards(emberd, "--memory", "48", "--context-tokens", "2048")
    [spread] = _cards(emberd, "--memory", "48", "--tp-size", "2")
    assert [refused["fits"], quantised["fits"]] == [False, True]  # not on compute capability 8.0
    assert quantised["weights_bytes"] < 0.6 * plain["weights_bytes"]
    assert short["kv_bytes"] < plain["kv_bytes"]
    assert spread["weights_bytes"] < plain["weights_bytes"]
    assert any("not tried it on a GPU" in note for note in quantised["notes"])
    assert plain["notes"] == []


def test_a_model_that_fits_nowhere_is_shown_with_its_sum(emberd: Command) -> None:
    words = ("up", "Qwen/Qwen3-Embedding-8B", "--estimate", "--memory", "16")
    done = emberd(*words)
    assert done.code == 1
    assert "texts of 2,048 tokens need" in done.out
    [card] = emberd(*words, "--json").json["cards"]
    assert (card["fits"], "advice" in card) == (False, True)
    both = (*words, "--memory", "24", "--json")
    assert [card["fits"] for card in emberd(*both).json["cards"]] == [False, True]
    assert emberd(*both).code == 0


def test_the_size_of_a_folder_is_read_from_its_files(emberd: Command, tmp_path: Path) -> None:
    folder = checkpoints_made.write(tmp_path / "m", tensors={"a": [1 << 15, 1 << 15]})
    [card] = _cards(emberd, folder, "--memory", "24")
    assert card["weights_bytes"] >= 2 << 30


@pytest.mark.parametrize(
    "words",
    [
        ("somebody/unknown", "--estimate"),
        ("emberd/demo", "--estimate"),
        ("--estimate", "--engine", "transformers"),
        ("--estimate", "--device", "cpu"),
        ("--memory", "24GB"),
    ],
    ids=" ".join,
)
def test_an_estimate_that_cannot_be_made_is_an_error(
    emberd: Command, words: tuple[str, ...]
) -> None:
    done = emberd("up", *words, "--json")
    assert (done.code, done.json["error"]["kind"]) == (2, "SettingError")


def test_what_up_refuses_on_any_card_is_refused(emberd: Command) -> None:
    done = emberd("up", "--estimate", "--quantization", "fp8", "--deterministic", "--json")
    assert (done.code, done.json["error"]["kind"]) == (4, "NoEngineError")
    done = emberd("up", "--estimate", "--json", "--", "--dtype", "float16")
    assert done.code == 1
    assert not any(card["fits"] for card in done.json["cards"])
