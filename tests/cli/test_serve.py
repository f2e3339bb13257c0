"""The options of ``emberd serve``, and what it does before it listens."""

from __future__ import annotations

from pathlib import Path

import pytest

from command import Command
from emberd import engines
from emberd.cli import serve
from emberd.engines import Choice, load
from emberd.errors import DownloadNeededError
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
    ],
)
def test_options_that_cannot_be_used_end_it_before_it_listens(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    outcome = Command(tmp_path / "home")("serve", *arguments)
    assert outcome.code in (1, 2)
    assert "error:" in outcome.err
    assert "listening" not in outcome.err


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
