"""The options of ``emberd serve``, and what it does before it listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints_made import write_plain
from command import Command
from emberd import engines
from emberd.cli import serve
from emberd.engines import Choice, load
from emberd.errors import DownloadNeededError, SettingError
from emberd.settings import Settings

NOWHERE = "http://127.0.0.1:9"
RERANKER = "Qwen/Qwen3-Reranker-4B"


def test_a_download_is_needed_before_it_listens_and_never_for_a_request(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("EMBERD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(engines, "explain", lambda spec: Choice(load("sglang"), None, {}))
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr("emberd.cli.downloads.is_terminal", lambda: False)
    monkeypatch.setattr(Settings, "fetch_card", lambda settings: None)
    with pytest.raises(DownloadNeededError):
        serve._download(Settings.resolve(), assume_yes=False)


def test_a_given_server_needs_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "explain", lambda spec: pytest.fail("no engine is needed"))
    serve._download(Settings.resolve(base_url=NOWHERE), assume_yes=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("emberd/demo", "emberd/demo"),
        ("emberd/demo", "--no-tcp", "--no-socket"),
        ("emberd/demo", "--port", "65536"),
        ("emberd/demo", "--idle-timeout", "soon"),
        ("emberd/demo", "--key-file", "/nowhere/key"),
        ("emberd/demo", "--cache", "nonsense://"),
        ("emberd/demo", "--cache", "redis://:password@127.0.0.1:9"),
        (RERANKER, "--cache", "redis://:password@127.0.0.1:9"),
    ],
)
def test_options_that_cannot_be_used_end_it_before_it_listens(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    outcome = Command(tmp_path / "home")("serve", *arguments)
    assert outcome.code in (1, 2)
    assert "error:" in outcome.err
    assert "listening" not in outcome.err
    assert ":password" not in outcome.err


def test_a_key_in_two_places_is_refused_without_showing_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("secret-in-file")
    command = Command(tmp_path / "home", {"EMBERD_SERVE_KEY": "secret-in-variable"})
    outcome = command("serve", "emberd/demo", "--key-file", str(file))
    assert outcome.code == 2
    assert "secret" not in outcome.err + outcome.out


@pytest.mark.parametrize(
    ("variables", "models", "expected"),
    [
        ({}, None, [(None, "embed")]),
        (
            {"EMBERD_RERANK_MODEL": "Qwen/Qwen3-Reranker-4B"},
            None,
            [(None, "embed"), (None, "rerank")],
        ),
        (
            {
                "EMBERD_BASE_URL": "http://127.0.0.1:9",
                "EMBERD_RERANK_BASE_URL": "http://127.0.0.1:9",
            },
            ["emberd/demo", "Qwen/Qwen3-Reranker-4B"],
            [("emberd/demo", "embed"), ("Qwen/Qwen3-Reranker-4B", "rerank")],
        ),
    ],
)
def test_which_models_are_served_and_as_what(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    models: list[str] | None,
    expected: list[tuple[str | None, str]],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert serve._named(models) == expected


def test_what_a_model_does_is_in_its_files_or_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An embedder would take a reranker's folder, and its vectors would be of no use."""
    for role in ("QUERY", "DOCUMENT"):
        monkeypatch.setenv(f"EMBERD_{role}_INSTRUCTION", "{text}")
    model = write_plain(tmp_path / "plain")
    for given in [[model], ["emberd/demo", model]]:
        with pytest.raises(SettingError, match="--task"):
            serve._named(given)
    for task in ("embed", "rerank"):
        assert serve._named([model], task) == [(model, task)]
    assert serve._named(["emberd/demo", RERANKER, model], "rerank") == [
        ("emberd/demo", "embed"),
        (RERANKER, "rerank"),
        (model, "rerank"),
    ]


@pytest.mark.parametrize(
    ("models", "task"),
    [
        ([RERANKER], "embed"),
        (["emberd/demo"], "rerank"),
        (["emberd/demo", RERANKER], "rerank"),
        (["emberd/demo"], "other"),
        (None, "rerank"),
    ],
)
def test_a_task_that_the_files_contradict_is_refused(models: list[str] | None, task: str) -> None:
    with pytest.raises(SettingError):
        serve._named(models, task)
