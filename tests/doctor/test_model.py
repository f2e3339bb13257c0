"""The model: whole in a folder, whole in the hub's cache, or to be had from the hub."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpoints_made
import examined
from doctor_models import whole
from emberd import engines, modelscope_weights
from emberd.doctor import model
from emberd.doctor.findings import Finding, Level
from emberd.settings import StartOptions

NAME = "somebody/Model-4B"


def look(tmp_path: Path, name: str, **more: Any) -> list[Finding]:
    return list(model.check_model(examined.wanted(tmp_path, name, **more)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and no hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", *model.TOKENS):
        monkeypatch.delenv(name, raising=False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(modelscope_weights, "find", lambda *_: None)
    return tmp_path / "hf" / "hub"


@pytest.fixture
def serve(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Answers for the hub from then on; gives the paths that are asked for."""
    from contextlib import ExitStack

    with ExitStack() as running:

        def begin(status: int, content: object = None) -> list[str]:
            asked: list[str] = []

            def answer(path: str) -> tuple[int, bytes]:
                asked.append(path)
                return status, json.dumps(content).encode()

            monkeypatch.setenv("HF_ENDPOINT", running.enter_context(examined.answering(answer)))
            return asked

        yield begin


def test_the_demo_downloads_nothing(tmp_path: Path) -> None:
    assert [f.level for f in look(tmp_path, "emberd/demo")] == [Level.OK]


def test_a_whole_folder_is_good(tmp_path: Path) -> None:
    folder = whole(tmp_path / "model", end_of_text=7)
    found = look(tmp_path, str(folder))
    assert examined.worse(found) == []
    assert "the end-of-text token 7" in examined.named(found, "tokenizer").fact


def test_a_folder_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    [found] = look(tmp_path, str(tmp_path / "gone"))
    assert (found.level, found.fact) == (
        Level.PROBLEM,
        f"the folder {tmp_path / 'gone'} does not exist",
    )


def test_a_folder_that_is_not_whole_is_a_problem(tmp_path: Path) -> None:
    checkpoints_made.write(tmp_path / "model")
    [found] = look(tmp_path, str(tmp_path / "model"))
    assert found.level is Level.PROBLEM
    assert "no tokenizer.json, no weights" in found.fact


def test_a_tokenizer_that_appends_nothing_is_a_problem_for_qwen3_alone(tmp_path: Path) -> None:
    """Even in a folder whose name says that it is a model of the catalog."""
    folder = whole(tmp_path / "Qwen3-Embedding-4B", end_of_text=None)
    found = examined.named(look(tmp_path, str(folder)), "tokenizer")
    assert found.level is Level.PROBLEM
    bert = whole(tmp_path / "bert", end_of_text=None, architecture="BertModel")
    assert examined.worse(look(tmp_path, str(bert))) == []


@pytest.mark.parametrize("revision", [None, "v2", "c0ffee"])
def test_a_model_in_the_cache_needs_no_hub(
    tmp_path: Path, cache: Path, revision: str | None
) -> None:
    kept = cache / "models--somebody--Model-4B"
    whole(kept / "snapshots" / "c0ffee", end_of_text=7)
    for name in ("main", "v2"):
        (kept / "refs").mkdir(exist_ok=True)
        (kept / "refs" / name).write_text("c0ffee")
    found = look(tmp_path, NAME, revision=revision)
    assert [f.name for f in found] == ["cache", "tokenizer"]
    assert examined.worse(found) == []


def test_another_revision_than_the_cached_one_has_to_be_downloaded(
    tmp_path: Path, cache: Path
) -> None:
    whole(cache / "models--somebody--Model-4B" / "snapshots" / "c0ffee", end_of_text=7)
    found = look(tmp_path, NAME, revision="decade")
    assert examined.named(found, "hub").level is Level.PROBLEM


def test_half_a_download_in_the_cache_is_told(
    tmp_path: Path, serve: Callable[..., list[str]], cache: Path
) -> None:
    serve(200, {"siblings": []})
    folder = cache / "models--somebody--Model-4B" / "snapshots" / "main"
    checkpoints_made.write(folder)
    assert "no tokenizer.json" in examined.named(look(tmp_path, NAME), "cache").fact


def test_offline_and_not_in_the_cache_is_a_problem(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = examined.named(look(tmp_path, NAME), "hub")
    assert found.level is Level.PROBLEM
    assert found.advice.startswith("unset HF_HUB_OFFLINE")


def test_a_hub_that_nobody_reaches_is_a_problem(tmp_path: Path, cache: Path) -> None:
    found = examined.named(look(tmp_path, NAME), "hub")
    assert found.level is Level.PROBLEM
    assert found.fact == f"127.0.0.1:9 did not respond within 3 s, and {NAME} is not in the cache"


def test_a_hub_that_hangs_is_not_waited_for(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert examined.named(look(tmp_path, NAME), "hub").level is Level.PROBLEM


def test_a_model_on_the_hub_is_told_with_its_size(
    tmp_path: Path, serve: Callable[..., list[str]]
) -> None:
    files = [("model.safetensors", 8_000_000_000), ("config.json", 1), ("onnx/x.onnx", 9 << 40)]
    siblings = [{"rfilename": name, "size": size} for name, size in files]
    asked = serve(200, {"gated": False, "siblings": siblings})
    found = examined.named(look(tmp_path, NAME, revision="refs/pr/1"), "hub")
    assert (found.level, found.fact[-8:]) == (Level.OK, ", 8.0 GB")
    assert asked == [f"/api/models/{NAME}/revision/refs%2Fpr%2F1?blobs=true"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_name_that_the_hub_does_not_know_is_a_problem(
    tmp_path: Path, serve: Callable[..., list[str]], status: int
) -> None:
    serve(status, {"error": "Repository not found"})
    found = examined.named(look(tmp_path, "Qwen/Qwen3-Embeding-4B"), "hub")
    assert found.level is Level.PROBLEM
    assert found.advice == "Did you mean --model Qwen/Qwen3-Embedding-4B?"


def test_a_gated_model_wants_a_token_which_is_never_sent_or_shown(
    tmp_path: Path, serve: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(200, {"gated": "manual"})
    found = look(tmp_path, NAME)
    assert examined.named(found, "hub").fact == f"{NAME} is gated"
    assert examined.named(found, "token").fact == "a token for the hub is not set"
    monkeypatch.setenv("HF_TOKEN", "open sesame")
    found = look(tmp_path, NAME)
    assert examined.worse(found) == [examined.named(found, "cache")]
    assert examined.named(found, "token").fact == "a token for the hub is set"
    assert "sesame" not in f"{found} {asked}"


def test_a_hub_with_a_fault_of_its_own_is_a_note(
    tmp_path: Path, serve: Callable[..., list[str]]
) -> None:
    serve(503)
    assert examined.named(look(tmp_path, NAME), "hub").level is Level.NOTE


@pytest.fixture
def sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang would be installed and serve the model."""
    monkeypatch.setattr(engines, "explain", lambda _: engines.Choice(None, "sglang", {}))


@pytest.mark.usefixtures("sglang")
def test_a_model_that_sglang_takes_from_modelscope_is_looked_for_there(
    tmp_path: Path, serve: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(200, {"siblings": []})
    monkeypatch.setenv("SGLANG_USE_MODELSCOPE", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [found] = look(tmp_path, NAME)
    assert (found.level, found.name) == (Level.NOTE, "cache")
    assert "downloads it from ModelScope" in found.fact
    folder = whole(tmp_path / "kept", end_of_text=7)
    monkeypatch.setattr(modelscope_weights, "find", lambda *_: folder)
    [found] = look(tmp_path, NAME)
    assert found.level is Level.OK
    assert str(folder) in found.fact
    assert asked == []


@pytest.mark.usefixtures("sglang")
def test_a_download_folder_of_sglang_is_not_taken_for_the_hubs_cache(
    tmp_path: Path, serve: Callable[..., list[str]], cache: Path
) -> None:
    asked = serve(200, {"siblings": []})
    whole(cache / "models--somebody--Model-4B" / "snapshots" / "main", end_of_text=7)
    options = StartOptions(arguments=("--download-dir=/models",))
    [found] = look(tmp_path, NAME, options=options)
    assert found.level is Level.NOTE
    assert "--download-dir" in found.fact
    assert asked == []


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_model_that_is_only_in_modelscopes_cache_can_be_given_as_a_folder(
    tmp_path: Path,
    serve: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    offline: str,
) -> None:
    serve(200, {"siblings": []})
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(modelscope_weights, "find", lambda *_: Path("/ms/model"))
    given = {"model": NAME, "revision": "v2", "device": "cpu"}
    found = examined.named(look(tmp_path, NAME, given=given), "modelscope")
    assert found.advice.startswith("emberd up --model /ms/model --device cpu")
