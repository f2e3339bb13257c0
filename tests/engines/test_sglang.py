"""The SGLang engine recognises servers and says honestly that it starts none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import emberd.engines
from emberd.engines import Launch, sglang
from emberd.engines.sglang import ENGINE
from emberd.errors import NoEngineError, StartError
from emberd.settings import ServerSpec

SPEC = ServerSpec()
LAUNCH = Launch(port=1, api_key="made-up-key", fingerprint="stamp", folder="unused")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sglang, "_DRIVER", tmp_path / "nothing")
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sglang, "_DRIVER", tmp_path)


def test_without_a_gpu_it_says_so_and_what_else_works(no_gpu: None) -> None:
    reason = ENGINE.refusal(SPEC) or ""
    assert reason.startswith("no CUDA GPU on this machine")
    assert "EMBERD_BASE_URL=http://" in reason
    assert "model='emberd/demo'" in reason


def test_with_a_gpu_it_gives_the_command_that_starts_a_server(gpu: None) -> None:
    reason = ENGINE.refusal(ServerSpec("Qwen/Qwen3-Embedding-0.6B")) or ""
    assert "cannot start one yet" in reason
    assert (
        "`python -m sglang.launch_server --model-path Qwen/Qwen3-Embedding-0.6B --is-embedding "
        in reason
    )
    assert "model='emberd/demo'" in reason


def test_a_tool_on_the_path_counts_as_a_gpu(monkeypatch: pytest.MonkeyPatch, no_gpu: None) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert "cannot start one yet" in (ENGINE.refusal(SPEC) or "")


def test_the_bundled_model_is_not_its_business(gpu: None) -> None:
    assert "does not serve emberd/demo" in (ENGINE.refusal(ServerSpec("emberd/demo")) or "")


def test_the_default_model_without_a_gpu_is_an_error_that_names_every_engine(no_gpu: None) -> None:
    with pytest.raises(NoEngineError) as caught:
        emberd.engines.choose(SPEC)
    text = str(caught.value)
    assert "Qwen/Qwen3-Embedding-4B" in text
    for name in emberd.engines.NAMES:
        assert f"\n  {name}: " in text


def test_a_start_that_gets_past_the_refusal_is_an_error(no_gpu: None) -> None:
    with pytest.raises(StartError, match="cannot start SGLang.*no CUDA GPU"):
        ENGINE.plan(SPEC, LAUNCH)


def test_progress_and_diagnosis_show_the_end_of_the_log() -> None:
    assert ENGINE.progress("one\ntwo\n\n") == "two"
    assert ENGINE.progress("") == "starting"
    assert (
        ENGINE.diagnose(-9, "one\ntwo\n").cause == "SGLang ended with code -9; its last line: two"
    )


@pytest.mark.parametrize(
    "command",
    [
        ["sglang", "serve", "--model-path", "m"],
        ["/opt/venv/bin/sglang", "serve", "m"],
        ["/opt/venv/bin/python3.11", "/opt/venv/bin/sglang", "serve", "m"],
        ["python", "-m", "sglang.launch_server", "--model-path", "m"],
        ["/usr/bin/python3", "-u", "-X", "dev", "-W", "ignore", "-m", "sglang.launch_server"],
        ["python3", "-m", "sglang", "serve", "m"],
        ["python3", "-m", "sglang.cli.main", "serve", "m"],
        ["python3", "/src/python/sglang/launch_server.py", "--model-path", "m"],
    ],
    ids=" ".join,
)
def test_a_server_is_recognised(command: list[str]) -> None:
    assert ENGINE.recognises(command)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["sglang"],
        ["sglang", "version"],
        ["sglang::scheduler"],
        ["sglang::detokenizer"],
        ["python"],
        ["python", "-m"],
        ["python", "-m", "sglang"],
        ["python", "-m", "sglang.bench_serving"],
        ["python", "-m", "sglang_router.launch_router"],
        ["python", "-c", "from multiprocessing.spawn import spawn_main"],
        ["python", "-c", "pass", "-m", "sglang.launch_server"],
        ["python", "train.py", "-m", "sglang.launch_server"],
        ["python", "/opt/venv/bin/sglang", "version"],
        ["python", "-m", "emberd.serving", "--encoder", "demo"],
        ["bash", "-c", "python -m sglang.launch_server"],
        ["vim", "launch_server.py"],
        ["grep", "sglang", "serve"],
    ],
    ids=" ".join,
)
def test_what_is_not_a_server_is_not_recognised(command: list[str]) -> None:
    assert not ENGINE.recognises(command)
