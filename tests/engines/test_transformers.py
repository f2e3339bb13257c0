"""The transformers engine: availability, command, and diagnosis of its server."""

from __future__ import annotations

import json
import platform
import signal
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

import emberd.engines
from emberd import installs
from emberd.engines import Launch, gpus
from emberd.engines.gpus import Gpu, Survey
from emberd.engines.transformers import ENGINE, torch_cuda
from emberd.env import SERVER_KEY
from emberd.errors import NoEngineError, StartError
from emberd.installs import Interpreter
from emberd.serving import hardware
from emberd.settings import ServerSpec, StartOptions
from emberd.system import capacity

GIB = 1024**3
MODEL = "Qwen/Qwen3-Embedding-0.6B"
LAUNCH = Launch(
    port=7, api_key="made-up-key", start_id="stamp", folder="unused", home="/home-of-it"
)
T4 = Gpu(0, "GPU-t4", "Tesla T4", 16 * GIB, 15 * GIB, (7, 5))
A100 = Gpu(1, "GPU-a100", "A100", 80 * GIB, 70 * GIB, (8, 0))
V100 = Gpu(2, "GPU-v100", "Tesla V100", 32 * GIB, 31 * GIB, (7, 0))
NO_DRIVER = Survey(problem="no NVIDIA driver")


class Machine:
    """A machine with what a test gives it."""

    def __init__(self, patch: pytest.MonkeyPatch, packages: Path) -> None:
        self._patch = patch
        self._packages = packages
        self.installed()
        self.sees()
        self.is_a("linux", "x86_64")
        self.has_free(64 * GIB)
        patch.setattr(hardware, "multiplies_bfloat16", lambda: True)

    def installed(self, version: str | None = "5.19.0", cuda: str = "'13.0'") -> None:
        found = None
        if version is not None:
            (self._packages / "torch").mkdir(exist_ok=True)
            file = self._packages / "torch" / "version.py"
            file.write_text(f"debug = False\ncuda: Optional[str] = {cuda}\nhip = None\n")
            found = Interpreter("/opt/t/bin/python", version, str(self._packages), "a test")
        self._patch.setattr(installs, "locate", lambda name, places=None: found)

    def sees(self, *cards: Gpu, cuda: tuple[int, int] = (13, 0)) -> None:
        seen = Survey(cards, "580.1", cuda) if cards else NO_DRIVER
        self._patch.setattr(gpus, "survey", lambda environ=None: seen)

    def is_a(self, system: str, processor_kind: str) -> None:
        self._patch.setattr(sys, "platform", system)
        self._patch.setattr(platform, "machine", lambda: processor_kind)

    def has_free(self, size: int) -> None:
        self._patch.setattr(capacity, "free_memory", lambda: size)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A Linux machine without a GPU where the engine is installed."""
    return Machine(monkeypatch, tmp_path)


def spec(model: str = MODEL, **wishes: Any) -> ServerSpec:
    return ServerSpec(model, **wishes)


def checkpoint(folder: Path, **changes: object) -> str:
    """Write a configuration, and no weights."""
    folder.mkdir()
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "vocab_size": 1000,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)


# ---------------------------------------------------------------- what it serves where


def test_it_is_asked_between_sglang_and_the_demo() -> None:
    assert emberd.engines.NAMES == ("sglang", "transformers", "demo")
    assert emberd.engines.load("transformers") is ENGINE


def test_cpu_is_used_only_if_it_or_the_engine_is_requested(machine: Machine) -> None:
    refused = ENGINE.why_unavailable(spec()) or ""
    assert refused.startswith("no NVIDIA driver. On the CPU it serves only if requested")
    assert "engine='transformers'" in refused
    assert "EMBERD_BASE_URL=http://" in refused
    for wish in ({"engine": "transformers"}, {"device": "cpu"}):
        assert ENGINE.why_unavailable(spec(**wish)) is None
        assert ENGINE.plan(spec(**wish), LAUNCH).device == "cpu"


def test_with_no_gpu_the_default_model_is_refused_by_every_engine_by_name(
    machine: Machine,
) -> None:
    with pytest.raises(NoEngineError) as raised:
        emberd.engines.choose(ServerSpec())
    lines = [line.split(":")[0].strip() for line in str(raised.value).splitlines()[1:]]
    assert lines == ["sglang", "transformers", "demo"]


def test_old_gpu_is_used_by_default(machine: Machine) -> None:
    machine.sees(T4)
    assert ENGINE.why_unavailable(spec()) is None
    assert emberd.engines.choose(spec()) is ENGINE
    plan = ENGINE.plan(spec(), LAUNCH)
    assert (plan.device, plan.environment["CUDA_VISIBLE_DEVICES"]) == ("cuda", "GPU-t4")


def test_apple_gpu_is_used_by_default(machine: Machine) -> None:
    machine.is_a("darwin", "arm64")
    assert ENGINE.why_unavailable(spec()) is None
    assert ENGINE.plan(spec(), LAUNCH).device == "mps"


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"model": "emberd/demo"}, "does not serve emberd/demo"),
        ({"quantization": "fp8"}, "omit quantization='fp8'"),
        ({"device": "cuda"}, "no NVIDIA driver"),
        ({"device": "mps"}, "not a Mac with Apple silicon"),
        ({"device": "tpu"}, "device='tpu' is unknown: use cuda, mps or cpu"),
        ({"model": "/nowhere/at-all", "device": "cpu"}, "there is no folder /nowhere/at-all"),
        ({"context_tokens": 40_000, "device": "cpu"}, "up to 32,768 tokens, not 40,000"),
    ],
)
def test_unsupported_requests_are_refused_with_advice(
    machine: Machine, wish: dict[str, Any], reason: str
) -> None:
    assert reason in (ENGINE.why_unavailable(spec(**wish)) or "")
    assert ENGINE.installable_environment(spec(**wish)) is None


def test_a_folder_of_another_architecture_is_refused_by_its_name(
    machine: Machine, tmp_path: Path
) -> None:
    assert ENGINE.why_unavailable(spec(checkpoint(tmp_path / "qwen"), device="cpu")) is None
    folder = checkpoint(tmp_path / "bert", architectures=["BertModel"])
    assert "has the architecture BertModel" in (
        ENGINE.why_unavailable(spec(folder, device="cpu")) or ""
    )


def test_a_folder_without_a_configuration_is_no_checkpoint(
    machine: Machine, tmp_path: Path
) -> None:
    assert "contains no config.json" in (
        ENGINE.why_unavailable(spec(str(tmp_path), device="cpu")) or ""
    )


def test_a_driver_that_is_too_old_for_torch_is_refused(machine: Machine) -> None:
    machine.sees(A100, cuda=(12, 4))
    assert "runs CUDA up to 12.4, but the installed torch needs 13.0" in (
        ENGINE.why_unavailable(spec()) or ""
    )


def test_a_gpu_that_torch_has_no_code_for_is_refused_and_the_cpu_is_offered(
    machine: Machine,
) -> None:
    machine.sees(V100)
    refused = ENGINE.why_unavailable(spec()) or ""
    assert "needs compute capability 7.5; found Tesla V100 (7.0)" in refused
    assert "device='cpu'" in refused
    machine.installed(cuda="'12.8'")
    assert ENGINE.why_unavailable(spec()) is None


def test_torch_without_cuda_is_not_used_on_a_gpu(machine: Machine) -> None:
    machine.sees(A100)
    machine.installed(cuda="None")
    assert "built without CUDA" in (ENGINE.why_unavailable(spec(device="cuda")) or "")
    assert ENGINE.plan(spec(device="cpu"), LAUNCH).device == "cpu"


def test_missing_environment_is_reported_with_the_install_command(machine: Machine) -> None:
    machine.installed(None)
    wanted = spec(device="cpu")
    assert "`emberd engine install transformers`" in (ENGINE.why_unavailable(wanted) or "")
    assert ENGINE.installable_environment(wanted) == "transformers"
    assert ENGINE.installable_environment(spec()) is None
    with pytest.raises(StartError, match="no longer installed"):
        ENGINE.plan(wanted, LAUNCH)


def test_a_version_that_is_too_old_is_named(machine: Machine) -> None:
    machine.installed("4.57.1")
    assert "transformers 4.57.1 (/opt/t/bin/python: a test) is older than 5.0" in (
        ENGINE.why_unavailable(spec(device="cpu")) or ""
    )


def test_untested_version_gets_a_note(machine: Machine) -> None:
    machine.installed("5.23.0")
    (note,) = ENGINE.plan(spec(device="cpu"), LAUNCH).notes
    assert note == "emberd is tested with transformers 5.19.0, but /opt/t/bin/python has 5.23.0"


@pytest.mark.parametrize(
    ("native", "free_gib", "fits"), [(True, 9, True), (True, 7, False), (False, 9, False)]
)
def test_weights_that_do_not_fit_into_memory_are_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, native: bool, free_gib: int, fits: bool
) -> None:
    """4B in bfloat16 takes 7.9 GiB with what goes with it; in float32 twice that."""
    monkeypatch.setattr(hardware, "multiplies_bfloat16", lambda: native)
    machine.has_free(free_gib * GIB)
    refused = ENGINE.why_unavailable(spec("Qwen/Qwen3-Embedding-4B", device="cpu"))
    if fits:
        assert refused is None
    else:
        assert f"but {free_gib}.0 GiB is free on this machine" in (refused or "")
        assert "Qwen/Qwen3-Embedding-0.6B" in (refused or "")


def test_a_reranker_without_memory_is_not_answered_with_an_embedding_model(
    machine: Machine,
) -> None:
    machine.has_free(GIB)
    reranker = spec("Qwen/Qwen3-Reranker-4B", device="cpu", task="rerank")
    refused = ENGINE.why_unavailable(reranker) or ""
    assert "Qwen/Qwen3-Reranker-0.6B" in refused
    assert "EMBERD_RERANK_BASE_URL=http://" in refused
    assert "Embedding" not in refused


def test_weights_that_do_not_fit_on_the_gpu_end_the_start(machine: Machine) -> None:
    """8B in float32, which a T4 gets, takes twice what it has."""
    machine.sees(T4)
    assert ENGINE.why_unavailable(spec("Qwen/Qwen3-Embedding-8B")) is None
    with pytest.raises(StartError, match=r"GiB in float32, but 15.0 GiB is free on Tesla T4"):
        ENGINE.plan(spec("Qwen/Qwen3-Embedding-8B"), LAUNCH)


# ---------------------------------------------------------------- the plan


def test_freest_gpu_is_locked_and_the_locked_one_used(
    machine: Machine,
) -> None:
    machine.sees(T4, A100, V100)
    assert ENGINE.exclusive_resources(spec(), StartOptions()) == ["GPU-a100"]
    assert ENGINE.exclusive_resources(spec(device="cpu"), StartOptions()) == ()
    held = Launch(
        7, "made-up-key", "stamp", "unused", exclusive_resources=("GPU-t4",), home="/home-of-it"
    )
    assert ENGINE.plan(spec(), held).environment["CUDA_VISIBLE_DEVICES"] == "GPU-t4"


def test_sglang_is_named_where_it_would_be_faster(machine: Machine) -> None:
    machine.sees(A100)
    assert "emberd engine install sglang" in " ".join(ENGINE.plan(spec(), LAUNCH).notes)


def test_several_gpus_are_refused(machine: Machine) -> None:
    machine.sees(T4, A100)
    launch = Launch(7, None, "stamp", "unused", StartOptions(tp_size=2), home="/home-of-it")
    with pytest.raises(StartError, match="2 GPUs"):
        ENGINE.plan(spec(), launch)


def test_command_has_every_option_and_no_key(machine: Machine) -> None:
    wanted = spec(device="cpu", revision="abc", context_tokens=1000)
    launch = Launch(
        7,
        "made-up-key",
        "stamp",
        "unused",
        StartOptions(arguments=("--x", "y")),
        home="/home-of-it",
    )
    plan = ENGINE.plan(wanted, launch)
    words = " ".join(plan.command)
    assert plan.command[0] == "/opt/t/bin/python"
    assert plan.environment["PYTHONSAFEPATH"] == "1"
    assert Path(plan.command[1]).is_file()
    assert plan.command[1].endswith("emberd/serving/bootstrap.py")
    for part in (
        f"--encoder transformers --model-path {MODEL} --served-model-name {MODEL}",
        "--host 127.0.0.1 --port 7 --weight-version stamp --device cpu",
        "--revision abc --context-tokens 1000 --x y",
    ):
        assert part in words
    assert "made-up-key" not in words
    assert plan.environment[SERVER_KEY] == "made-up-key"
    assert ENGINE.recognises(plan.command)


def test_each_word_of_the_command_has_a_reason(machine: Machine) -> None:
    plan = ENGINE.plan(spec(device="cpu"), LAUNCH)
    given = " ".join(reason.what for reason in plan.reasons)
    assert given.startswith(" ".join(plan.command))
    assert all(reason.why for reason in plan.reasons)
    assert "made-up-key" not in str(plan.reasons)


def test_server_without_a_key_gets_none(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVER_KEY, "of another server")
    launch = Launch(7, None, "stamp", "unused", home="/home-of-it")
    assert SERVER_KEY not in ENGINE.plan(spec(device="cpu"), launch).environment


def test_environment_is_inherited_without_packages_and_keys(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = (
        *("PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "OPENAI_API_KEY", "EMBERD_API_KEY"),
        "PYTHONDONTWRITEBYTECODE",  # each start would compile all modules
    )
    for name in (*dropped, "HF_HOME", "HF_TOKEN"):
        monkeypatch.setenv(name, "kept or not")
    environment = ENGINE.plan(spec(device="cpu"), LAUNCH).environment
    assert not set(dropped) & set(environment)
    assert environment["HF_HOME"] == environment["HF_TOKEN"] == "kept or not"


def test_torchs_own_cuda_is_read_from_its_files(tmp_path: Path) -> None:
    assert torch_cuda(str(tmp_path)) is None
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text("cuda: Optional[str] = '12.8'\n")
    assert torch_cuda(str(tmp_path)) == (12, 8)


def test_torch_is_found_in_another_folder_of_the_interpreters_path(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere, environment = tmp_path / "elsewhere", tmp_path / "environment"
    (elsewhere / "torch").mkdir(parents=True)
    (elsewhere / "torch" / "version.py").write_text("cuda: Optional[str] = '13.0'\n")
    described = elsewhere / "torch-2.11.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.11.0\n")
    venv.create(environment)
    packages = next(environment.glob("lib/python*/site-packages"))
    (packages / "elsewhere.pth").write_text(f"{elsewhere}\n")
    python = str(environment / "bin" / "python")
    found = Interpreter(python, "5.19.0", str(packages), "a test")
    monkeypatch.setattr(installs, "locate", lambda name, places=None: found)
    machine.sees(A100)
    assert ENGINE.why_unavailable(spec(device="cuda")) is None


# ---------------------------------------------------------------- its server


@pytest.mark.parametrize(
    ("command", "recognised"),
    [
        (["python", "-m", "emberd.serving", "--encoder", "transformers"], True),
        (["python", "-m", "emberd.serving", "--encoder=transformers"], True),
        (["python", "-P", "/a/emberd/serving/bootstrap.py", "--encoder", "transformers"], True),
        (["python", "-m", "emberd.serving", "--encoder", "demo"], False),
        (["python", "-m", "emberd.serving"], False),
        (["python", "/a/other/serving/bootstrap.py", "--encoder", "transformers"], False),
        (["vim", "transformers"], False),
        ([], False),
    ],
)
def test_only_its_own_command_lines_are_recognised(command: list[str], recognised: bool) -> None:
    assert ENGINE.recognises(command) is recognised


def test_progress_follows_the_log() -> None:
    lines = [
        "emberd: start 1",
        "2026-11-22 10:00:00,000 INFO listening on 127.0.0.1 port 4",
        "2026-11-22 10:00:00,100 INFO loading Qwen/Qwen3-Embedding-4B",
        "2026-11-22 10:00:00,100 INFO loading torch and transformers",
        "2026-11-22 10:00:00,200 INFO downloading (1.2 GB)",
        "2026-11-22 10:00:00,200 INFO device cpu, bfloat16: it multiplies it",
        "2026-11-22 10:00:00,200 INFO loading the tokenizer",
        "2026-11-22 10:00:00,200 INFO loading the weights (2.0 of 8.0 GB)",
        "2026-11-22 10:00:00,200 INFO ready: Qwen/Qwen3-Embedding-4B after 9.1 s",
    ]
    assert [ENGINE.progress("\n".join(lines[: n + 1])) for n in range(len(lines))] == [
        "starting",
        "starting",
        "loading the model",
        "loading torch and transformers",
        "downloading (1.2 GB)",
        "downloading (1.2 GB)",
        "loading the tokenizer",
        "loading the weights (2.0 of 8.0 GB)",
        "answering",
    ]


@pytest.mark.parametrize(
    ("exit_code", "log", "cause", "advice"),
    [
        (None, "", "wrote nothing for too long while starting", "disk"),
        (-signal.SIGKILL, " INFO loading the tokenizer\n", "was killed, most likely", "dmesg"),
        (-signal.SIGILL, "", "lacks an instruction", "EMBERD_BASE_URL"),
        (-signal.SIGSEGV, "", "ended by SIGSEGV", "Read its log"),
        (-99, "", "ended by signal 99", "Read its log"),
        (
            1,
            "10:00 ERROR cannot serve a/b: the weights in /m/b.c are damaged. Copy it. Again.\n",
            "the weights in /m/b.c are damaged",
            "Copy it. Again.",
        ),
        (1, "10:00 ERROR cannot serve a/b: it is not so.\n", "it is not so", "Read its log"),
        (
            1,
            "cannot serve: /usr/bin/python is Python 3.10.2. emberd needs 3.11 or newer.\n",
            "/usr/bin/python is Python 3.10.2",
            "emberd needs 3.11",
        ),
        (
            1,
            "10:00 ERROR cannot serve a/b: KeyError, raised at\n  File x\n",
            "could not be loaded (KeyError)",
            "Read its log",
        ),
        (1, "ModuleNotFoundError: No module named 'uvicorn'\n", "incomplete: No mod", "engine rem"),
        (2, "usage: x\nx: error: unrecognized arguments: --q 7\n", "the option --q", "ENGINE_ARGS"),
        (2, "x: error: argument --port: invalid int value: 'a'\n", "argument --port", "Correct"),
        (1, "OSError: [Errno 28] No space left on device\n", "a disk is full", "df -h"),
        (1, "RuntimeError: MPS backend out of memory (x)\n", "ran out of memory", "smaller model"),
        (7, "one\n\ntwo  \n\n", "exited with code 7; its last line: two", "Read its log"),
        (7, "", "exited with code 7; its last line: it wrote nothing", "Read its log"),
    ],
)
def test_exit_is_diagnosed(exit_code: int | None, log: str, cause: str, advice: str) -> None:
    told = ENGINE.diagnose(exit_code, log)
    assert cause in told.cause
    assert advice in told.advice
    assert not told.port_taken
    assert told.killed is (exit_code == -signal.SIGKILL)


def test_lost_port_allows_another_try() -> None:
    log = "ERROR cannot listen on 127.0.0.1 port 4: address already in use\n"
    assert ENGINE.diagnose(3, log).port_taken


def test_failed_request_is_not_the_reason_for_a_later_kill() -> None:
    log = "RuntimeError: out of memory\n10:00 INFO ready: a/b after 1 s\n10:01 INFO x\n"
    assert ENGINE.diagnose(-signal.SIGKILL, log).killed
