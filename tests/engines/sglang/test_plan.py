"""The plan of a start of SGLang: GPU, command, key, environment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import checkpoints_made
from emberd import model_files
from emberd.engines import Launch
from emberd.engines.sglang import ENGINE
from emberd.engines.sglang.support import VERSIONS
from emberd.errors import StartError
from emberd.settings import ServerSpec, StartOptions
from fake_nvml import GIB, Card, Nvml
from sglang_plans import GPU, KEY, LAUNCH, set_installed, words

pytestmark = pytest.mark.usefixtures("installed")


def test_freest_gpu_is_locked_and_none_for_a_cpu(cards: Nvml) -> None:
    assert ENGINE.exclusive_resources(GPU, StartOptions()) == ["GPU-large"]
    assert ENGINE.exclusive_resources(GPU, StartOptions(dp_size=2)) == ["GPU-large", "GPU-small"]
    assert list(ENGINE.exclusive_resources(ServerSpec(device="cpu"), StartOptions())) == []


def test_fp8_is_started_on_a_gpu_that_multiplies_in_it_with_a_note(cards: Nvml) -> None:
    cards.cards = [*cards.cards, Card("GPU-ada", free=12 * GIB, capability=(8, 9))]
    spec = ServerSpec(quantization="fp8", context_tokens=8192)
    assert ENGINE.why_unavailable(spec) is None
    assert ENGINE.exclusive_resources(spec, StartOptions()) == ["GPU-ada"]
    plan = ENGINE.plan(spec, LAUNCH)
    assert words(plan)["--quantization"] == "fp8"
    assert plan.environment["CUDA_VISIBLE_DEVICES"] == "GPU-ada"
    assert any("not tried it on a GPU" in note for note in plan.notes)
    assert not any("fp8" in note for note in ENGINE.plan(GPU, LAUNCH).notes)


def test_a_checkpoint_that_is_stored_quantised_is_not_quantised_again(
    cards: Nvml, tmp_path: Path
) -> None:
    config = {"quantization_config": {"quant_method": "awq"}}
    folder = checkpoints_made.write(tmp_path / "m", config, {"a": [64, 64]})
    checkpoints_made.write_modules(Path(folder))
    cards.cards = [Card(capability=(9, 0))]
    assert ENGINE.why_unavailable(ServerSpec(folder)) is None
    reason = ENGINE.why_unavailable(ServerSpec(folder, quantization="fp8")) or ""
    assert "omit quantization='fp8'" in reason


def test_start_uses_the_locked_gpu(cards: Nvml) -> None:
    launch = Launch(
        1, KEY, "stamp", "/state", exclusive_resources=("GPU-small",), home="/home-of-it"
    )
    assert ENGINE.plan(GPU, launch).environment["CUDA_VISIBLE_DEVICES"] == "GPU-small"


def test_the_key_is_in_a_private_file_and_nowhere_else(cards: Nvml) -> None:
    plan = ENGINE.plan(GPU, LAUNCH)
    assert plan.files["sglang.yaml"] == f'port: {LAUNCH.port}\napi-key: "{KEY}"\n'
    assert "--port" not in plan.command
    assert words(plan)["--config"] == "/state/of/it/sglang.yaml"
    shown = [*plan.command, *plan.environment.values(), repr(plan)]
    shown += [f"{reason.what} {reason.why}" for reason in plan.reasons]
    assert not any(KEY in text for text in shown)


def test_without_a_key_the_file_holds_the_port_only(cards: Nvml) -> None:
    plan = ENGINE.plan(GPU, Launch(1, None, "stamp", "/state", home="/home-of-it"))
    assert plan.files["sglang.yaml"] == "port: 1\n"


def test_the_users_own_arguments_come_last_and_are_explained(cards: Nvml) -> None:
    options = StartOptions(arguments=("--schedule-policy", "fcfs"))
    plan = ENGINE.plan(GPU, Launch(1, KEY, "stamp", "/state", options, home="/home-of-it"))
    assert list(plan.command)[-2:] == ["--schedule-policy", "fcfs"]
    assert "your own arguments" in [reason.why for reason in plan.reasons]


def test_a_reranker_is_served_for_generation_with_its_prefix_cache(cards: Nvml) -> None:
    embeds = ENGINE.plan(ServerSpec("Qwen/Qwen3-Embedding-4B"), LAUNCH)
    plan = ENGINE.plan(ServerSpec("Qwen/Qwen3-Reranker-4B", task="rerank"), LAUNCH)
    given = {"--is-embedding", "--disable-radix-cache"}
    assert given <= {*embeds.command}
    assert not given & {*plan.command}
    assert "--json-model-override-args" not in plan.command
    exact = ServerSpec("Qwen/Qwen3-Reranker-4B", task="rerank", deterministic=True)
    assert "--disable-radix-cache" in ENGINE.plan(exact, LAUNCH).command
    assert not plan.notes


def test_every_word_of_the_command_has_a_reason(cards: Nvml) -> None:
    plan = ENGINE.plan(GPU, LAUNCH)
    explained = " ".join(reason.what for reason in plan.reasons)
    options = [word for word in plan.command if word.startswith("--")]
    assert len(options) > 15
    assert [option for option in options if option not in explained] == []


def test_variables_of_the_application_do_not_reach_the_engine(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "OPENAI_API_KEY", "EMBERD_API_KEY"):
        monkeypatch.setenv(name, "the-applications")
    monkeypatch.setenv("HF_HOME", "/models")
    environment = ENGINE.plan(GPU, LAUNCH).environment
    assert "the-applications" not in environment.values()
    assert environment["HF_HOME"] == "/models"


@pytest.mark.parametrize("version", VERSIONS)
def test_only_a_version_that_was_tried_with_msgpack_uses_it(
    version: str, cards: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_installed(monkeypatch, version)
    given = ENGINE.plan(GPU, LAUNCH).environment.get("SGLANG_USE_PICKLE_IPC")
    assert given == ("0" if version == "0.5.23" else None)


def test_cpu_server_finds_the_stand_in_kernels(tmp_path: Path) -> None:
    folder = checkpoints_made.write(tmp_path / "m", tensors={"a": [64, 64]})
    plan = ENGINE.plan(ServerSpec(folder, device="cpu"), LAUNCH)
    assert plan.device == "cpu"
    path = Path(plan.environment["PYTHONPATH"])
    assert (path / "sgl_kernel" / "__init__.py").is_file()
    assert words(plan)["--device"] == "cpu"


def test_a_stand_in_kernel_exists_and_raises_when_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from emberd.engines.sglang.cpu import sgl_kernel

    kernel: Any = sgl_kernel.rmsnorm
    with pytest.raises(RuntimeError, match="sgl_kernel.rmsnorm does not exist on the CPU"):
        kernel(1)
    with pytest.raises(AttributeError):
        _ = sgl_kernel.__path_hooks__


@pytest.mark.parametrize(
    ("config", "added"),
    [
        ({"architectures": ["BertModel"]}, {"position_embedding_type": "absolute"}),
        ({"architectures": ["BertModel"], "position_embedding_type": "relative_key"}, {}),
        ({"architectures": ["Qwen3ForCausalLM"]}, {}),
    ],
)
def test_a_configuration_gets_what_sglang_requires_of_it(
    tmp_path: Path, config: dict[str, Any], added: dict[str, str]
) -> None:
    folder = checkpoints_made.write(tmp_path, config)
    plan = ENGINE.plan(ServerSpec(folder, device="cpu"), LAUNCH)
    given = json.loads(words(plan)["--json-model-override-args"])
    assert given == {"is_matryoshka": True, **added}


def test_a_download_may_be_silent_for_longer_than_a_start_from_a_folder(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = checkpoints_made.write(tmp_path / "m", tensors={"a": [64, 64]})
    local = ENGINE.plan(ServerSpec(folder), LAUNCH)
    assert ENGINE.plan(GPU, LAUNCH).silence_s > local.silence_s
    monkeypatch.setattr(model_files, "is_downloaded", lambda model: True)
    assert ENGINE.plan(GPU, LAUNCH).silence_s == local.silence_s
    options = StartOptions(arguments=("--download-dir", str(tmp_path)))
    elsewhere = ENGINE.plan(GPU, replace(LAUNCH, options=options))
    assert elsewhere.silence_s > local.silence_s, "what is in the hub's cache is not used"


@pytest.mark.parametrize(
    "words",
    [
        ("--port", "31000"),
        ("--port=31000",),
        ("--api-k", "x"),
        ("--config=f",),
        ("--tp", "2"),
        ("--quantization", "fp8"),
        ("--host", "0.0.0.0"),
        ("--max-total-tokens", "1024"),
    ],
    ids=" ".join,
)
def test_reserved_argument_is_refused_before_the_start(cards: Nvml, words: tuple[str, ...]) -> None:
    options = StartOptions(arguments=words)
    with pytest.raises(StartError, match="cannot be given to SGLang through emberd") as caught:
        ENGINE.plan(GPU, Launch(1, KEY, "stamp", "/state", options, home="/home-of-it"))
    assert "EMBERD_ENGINE_ARGS" in caught.value.advice


def test_several_mig_instances_are_refused(cards: Nvml) -> None:
    cards.cards = [Card(instances=[Card("MIG-a"), Card("MIG-b")])]
    with pytest.raises(StartError, match="one MIG instance"):
        ENGINE.plan(
            GPU, Launch(1, KEY, "stamp", "/state", StartOptions(dp_size=2), home="/home-of-it")
        )


def test_several_copies_on_a_cpu_are_refused(tmp_path: Path) -> None:
    folder = checkpoints_made.write(tmp_path / "m", tensors={"a": [64, 64]})
    launch = Launch(1, KEY, "stamp", "/state", StartOptions(tp_size=2), home="/home-of-it")
    with pytest.raises(StartError, match="tp_size=2, dp_size=1 count GPUs"):
        ENGINE.plan(ServerSpec(folder, device="cpu"), launch)


def test_the_programs_of_the_engines_environment_come_first_on_the_path(cards: Nvml) -> None:
    """Kernels are compiled by a ninja that is asked for by its bare name."""
    assert ENGINE.plan(GPU, LAUNCH).environment["PATH"].startswith("/engines:")


def test_driver_library_in_ld_library_path_is_kept(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "libcuda.so.1").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f"/app/lib:{tmp_path}")
    assert ENGINE.plan(GPU, LAUNCH).environment["LD_LIBRARY_PATH"] == str(tmp_path)


def test_a_model_in_the_hubs_cache_needs_no_time_for_a_download(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    waiting_s = ENGINE.plan(GPU, LAUNCH).silence_s
    checkpoints_made.write(tmp_path / "models--Qwen--Qwen3-Embedding-4B" / "snapshots" / "abc")
    assert ENGINE.plan(GPU, LAUNCH).silence_s < waiting_s
