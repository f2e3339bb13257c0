"""Starts of the real SGLang that fail, and the errors that callers get."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest

import leftovers
import waiting
from emberd.errors import NoEngineError, StartError
from emberd.verified_manager import Manager
from real import fake_hub, traces
from real.engines import START_S, embedder_for

_SOON_S: Final = 5.0
_LOOK_S: Final = 1.0
_SERVER: Final = "sglang.launch_server"
_SCHEDULER: Final = "sglang::scheduler"
_SHARD: Final = "model.safetensors"

Start = Callable[..., StartError]
Broken = Callable[..., Path]


class Deaths:
    """Notes when the main process of a server of ``home`` was last seen to die."""

    def __init__(self, home: Path) -> None:
        self.last_s = 0.0
        self._home = str(home)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Deaths:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            for process in leftovers.find([self._home]):
                if _main_process(process):
                    psutil.wait_procs([process], timeout=START_S)
                    self.last_s = time.monotonic()


def _main_process(process: psutil.Process) -> bool:
    try:
        return _SERVER in process.cmdline()
    except psutil.Error:
        return False


@pytest.fixture
def start(
    tmp_path: Path, sglang_python: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., StartError]]:
    """Start a server that must fail; return the error, which must come soon after its death."""
    home = tmp_path / "home"

    def fail(model: Path | str, arguments: str = "", **environment: str) -> StartError:
        monkeypatch.setenv("EMBERD_ENGINE_ARGS", arguments)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with Deaths(home) as deaths, pytest.raises(StartError) as raised:
            embedder_for(model, Manager(home)).ensure()
        told_s = time.monotonic()
        assert deaths.last_s, "no server was seen to die"
        assert told_s - deaths.last_s < _SOON_S
        assert raised.value.log_path is not None
        return raised.value

    with traces.all_gone(home):
        yield fail
        Manager(home).stop()


@pytest.fixture
def broken(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the tiny checkpoint, change what its configuration says, and return the copy.

    Each is a separate one: a running server of the same files would be found and used.
    """

    def copy(**changes: object) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(tiny, folder)
        config = folder / "config.json"
        said = {**json.loads(config.read_text()), "made_for": str(tmp_path), **changes}
        config.write_text(json.dumps(said))
        return folder

    return copy


# ---------------------------------------------------------------- dead before any weights


def test_an_option_that_it_does_not_know(start: Start, broken: Broken) -> None:
    error = start(broken(), "--no-such-option 7")
    assert error.cause == "the installed SGLang does not know the option --no-such-option"
    assert "EMBERD_ENGINE_ARGS" in error.advice


def test_a_config_json_that_is_cut_off_is_refused_before_a_start(
    start: Start, broken: Broken
) -> None:
    folder = broken()
    (folder / "config.json").write_text('{"architectures": ["Qwen3ForCau')
    with pytest.raises(NoEngineError, match=r"config\.json is not JSON"):
        start(folder)


def test_a_type_of_model_that_nobody_knows(start: Start, broken: Broken) -> None:
    folder = broken(model_type="frobnicator")
    error = start(folder)
    assert error.cause.endswith(
        "has the type frobnicator, which this engine's Transformers does not know"
    )
    assert "Use a model that SGLang supports" in error.advice


def test_a_gated_model(start: Start) -> None:
    with fake_hub.serve_hub() as url:
        error = start(fake_hub.GATED, HF_ENDPOINT=url)
    assert error.cause.startswith(f"{fake_hub.GATED} is gated")
    assert "hf auth login" in error.advice


def test_a_model_that_the_hub_does_not_have(start: Start) -> None:
    with fake_hub.serve_hub() as url:
        error = start(fake_hub.GONE, HF_ENDPOINT=url)
    assert error.cause.startswith(f"{fake_hub.GONE} is neither a folder")
    assert "HF_TOKEN" in error.advice


def test_a_model_that_is_not_in_the_cache_of_a_machine_without_a_network(start: Start) -> None:
    error = start(fake_hub.GONE, HF_HUB_OFFLINE="1")
    assert "is not in the hub's cache on this machine" in error.cause
    assert error.advice.startswith("Unset HF_HUB_OFFLINE")


# ---------------------------------------------------------------- dead while it loads


@pytest.mark.full
def test_a_hub_that_cannot_be_reached(start: Start) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        error = start(fake_hub.GONE, HF_ENDPOINT=f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert error.cause.startswith("the hub could not be reached")
    assert "HTTPS_PROXY" in error.advice


@pytest.mark.full
def test_a_file_of_weights_that_is_cut_off(start: Start, broken: Broken) -> None:
    folder = broken()
    os.truncate(folder / _SHARD, (folder / _SHARD).stat().st_size // 2)
    error = start(folder)
    assert error.cause.startswith(f"a weight file of {folder} is damaged or incomplete")
    assert "copy it again" in error.advice


@pytest.mark.full
def test_weights_of_another_size_than_the_configuration_says(start: Start, broken: Broken) -> None:
    error = start(broken(hidden_size=96))
    assert "do not match its config.json" in error.cause


@pytest.mark.full
def test_a_folder_without_weights(start: Start, broken: Broken) -> None:
    folder = broken()
    (folder / _SHARD).unlink()
    assert start(folder).cause == f"{folder} contains no weights (*.safetensors)"


@pytest.mark.full
def test_an_architecture_that_sglang_does_not_have(start: Start, broken: Broken) -> None:
    error = start(broken(architectures=["FrobnicatorForCausalLM"]))
    assert "SGLang has no implementation of the architecture" in error.cause


@pytest.mark.full
def test_a_model_without_a_tokenizer(start: Start, broken: Broken) -> None:
    folder = broken()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    error = start(folder)
    assert error.cause.endswith("has no usable tokenizer: a text gave no tokens")
    assert "tokenizer.json" in error.advice


@pytest.mark.full
def test_no_memory_left_for_the_kv_cache(start: Start, broken: Broken) -> None:
    error = start(broken(), "--mem-fraction-static 0.00001")
    assert "the fraction 1e-05 of the memory" in error.cause
    assert "--context-tokens" in error.advice


@pytest.mark.full
def test_a_scheduler_that_is_killed_while_it_loads(
    start: Start, broken: Broken, tmp_path: Path
) -> None:
    """As the kernel does when memory runs out."""
    killed: list[int] = []
    over = threading.Event()
    killer = threading.Thread(target=_kill_schedulers, args=(str(tmp_path), killed, over))
    killer.start()
    try:
        error = start(broken())
    finally:
        over.set()
        killer.join()
    assert killed
    # It is started again for the caller, and killed each time.
    assert "3 starts in a row were killed" in error.cause
    assert "a process of SGLang was killed" in error.cause
    assert "dmesg" in error.advice


def _kill_schedulers(home: str, killed: list[int], over: threading.Event) -> None:
    while not over.wait(waiting.POLL_S):
        for process in psutil.process_iter(["name", "cmdline"]):
            title = " ".join(process.info["cmdline"] or ())
            if title.startswith(_SCHEDULER) and _is_of(process, home):
                process.kill()
                killed.append(process.pid)


def _is_of(process: psutil.Process, home: str) -> bool:
    try:
        return any(home in value for value in process.environ().values())
    except psutil.Error:
        return False
