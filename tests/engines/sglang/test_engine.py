"""SGLang as an engine: availability with reasons, locked GPUs, and the plan of a start."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import checkpoints_made
import emberd.engines
from emberd import installs, model_files
from emberd.engines import Launch
from emberd.engines.gpus import empty_card
from emberd.engines.sglang import ENGINE, support
from emberd.engines.sglang.support import VERSIONS
from emberd.errors import NoEngineError, StartError
from emberd.installs import Interpreter
from emberd.settings import ServerSpec, StartOptions
from emberd.system import processes
from fake_nvml import GIB, Card, Nvml

GPU = ServerSpec()
KEY = "a-made-up-key"
LAUNCH = Launch(
    port=31_000, api_key=KEY, start_id="stamp", folder="/state/of/it", home="/home-of-it"
)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """Two GPUs; the second has more free memory."""
    made = Nvml(cards=[Card("GPU-small", free=18 * GIB), Card("GPU-large", free=21 * GIB)])
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


@pytest.fixture
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())


def _installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    found = None
    if version is not None:
        found = Interpreter("/engines/python", version, "/engines/packages", "a test says so")
    monkeypatch.setattr(installs, "locate", lambda *_: found)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pinned version, at a place that does not exist."""
    _installed(monkeypatch, installs.RECIPES["sglang"].version)


def words(plan: emberd.engines.Plan) -> dict[str, str]:
    command = list(plan.command)
    return dict(zip(command, [*command[1:], ""], strict=True))


def test_gpu_and_installed_engine_are_sufficient(cards: Nvml) -> None:
    assert ENGINE.why_unavailable(GPU) is None
    assert ENGINE.installable_environment(GPU) is None


def test_without_a_gpu_the_default_model_is_an_error_that_names_every_engine(
    no_cards: None,
) -> None:
    with pytest.raises(NoEngineError) as caught:
        emberd.engines.choose(GPU)
    text = str(caught.value)
    for name in emberd.engines.NAMES:
        assert f"\n  {name}: " in text
    assert "EMBERD_BASE_URL=http://" in text
    assert "model='emberd/demo'" in text


def test_without_a_gpu_a_reranker_is_answered_with_what_it_reads(no_cards: None) -> None:
    with pytest.raises(NoEngineError) as caught:
        emberd.engines.choose(ServerSpec("Qwen/Qwen3-Reranker-4B", task="rerank"))
    text = str(caught.value)
    assert text.count("EMBERD_RERANK_BASE_URL=http://") == 2  # SGLang and transformers
    assert "EMBERD_BASE_URL=" not in text
    assert "model='emberd/demo'; device" not in text


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, None)
    assert "`emberd engine install sglang`" in (ENGINE.why_unavailable(GPU) or "")
    assert ENGINE.installable_environment(GPU) == "sglang"


def test_an_installation_does_not_help_a_machine_without_a_gpu(
    no_cards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, None)
    assert ENGINE.installable_environment(GPU) is None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ServerSpec(device="cpu", deterministic=True), "engine='transformers'"),
        (ServerSpec(quantization="fp8"), "from compute capability 8.9 on"),
        (ServerSpec(quantization="fp8", device="cpu"), "only on a GPU"),
        (ServerSpec(quantization="fp8", deterministic=True), "omit quantization='fp8'"),
        (ServerSpec(quantization="int4"), "does not support quantization='int4'; use fp8"),
        (ServerSpec("emberd/demo"), "does not serve emberd/demo"),
        (ServerSpec("/no/such/folder"), "there is no folder /no/such/folder"),
        (ServerSpec(device="tpu"), "device='tpu'"),
    ],
)
def test_what_it_cannot_serve_is_refused_with_the_reason(
    cards: Nvml, spec: ServerSpec, reason: str
) -> None:
    assert reason in (ENGINE.why_unavailable(spec) or "")


def test_a_folder_without_a_configuration_is_no_checkpoint(cards: Nvml, tmp_path: Path) -> None:
    assert "contains no config.json" in (ENGINE.why_unavailable(ServerSpec(str(tmp_path))) or "")


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


def test_a_reranker_needs_memory_for_its_answers(cards: Nvml) -> None:
    specs = (
        ServerSpec("Qwen/Qwen3-Embedding-4B"),
        ServerSpec("Qwen/Qwen3-Reranker-4B", task="rerank"),
    )
    embeds, reranks = (
        ENGINE.estimate(spec, StartOptions(), empty_card(24, (8, 6))) for spec in specs
    )
    assert embeds is not None
    assert reranks is not None
    # Of 128 prompts in a batch of 4,096 tokens: the vocabulary in ten bytes a token.
    assert reranks.activation_bytes - embeds.activation_bytes == 128 * 151_665 * 10


def test_a_reranker_that_does_not_fit_is_not_answered_with_an_embedding_model(cards: Nvml) -> None:
    spec = ServerSpec("Qwen/Qwen3-Reranker-8B", task="rerank")
    with pytest.raises(StartError) as caught:
        ENGINE.estimate(spec, StartOptions(), empty_card(16, (8, 6)))
    assert "Qwen/Qwen3-Reranker-0.6B" in str(caught.value)
    assert "Embedding" not in str(caught.value)


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
    _installed(monkeypatch, version)
    given = ENGINE.plan(GPU, LAUNCH).environment.get("SGLANG_USE_PICKLE_IPC")
    assert given == ("0" if version == "0.5.23" else None)


def test_a_card_that_is_too_small_is_an_error_with_the_sum(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards.cards = [Card(free=3 * GIB)]
    with pytest.raises(StartError, match=r"need .* GiB .*3\.0 GiB of 24\.0 GiB is free") as caught:
        ENGINE.plan(GPU, LAUNCH)
    assert "Qwen3-Embedding-0.6B" not in caught.value.cause


def test_what_an_earlier_start_used_beyond_its_plan_is_planned_for(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launch = replace(LAUNCH, home=str(tmp_path))  # not EMBERD_HOME: a manager may have another home
    monkeypatch.setattr(processes, "has_pids_of_host", lambda: True)
    cards.cards = [Card("GPU-a", total=48 * GIB, free=47 * GIB)]
    first = ENGINE.plan(GPU, launch).gpu_usage
    assert first is not None
    assert list(first.gpus) == ["GPU-a"]
    used_bytes = first.planned_bytes + GIB
    cards.holders = {"GPU-a": [SimpleNamespace(pid=os.getpid(), usedGpuMemory=used_bytes)]}
    first.compare([os.getpid()])
    assert list((tmp_path / "gpu-memory").iterdir())
    plan = ENGINE.plan(GPU, launch)
    [total] = [reason.what for reason in plan.reasons if reason.what.startswith("memory ")]
    assert total == f"memory {used_bytes / GIB:.1f} GiB"
    assert any(reason.what.startswith("used ") for reason in plan.reasons)
    again = plan.gpu_usage
    assert again is not None
    assert again.planned_bytes == first.planned_bytes  # so that the difference is not added twice
    again.compare([os.getpid()])
    assert ENGINE.plan(GPU, launch).reasons[-2:] == plan.reasons[-2:]


def test_another_kind_of_start_does_not_use_the_difference(
    cards: Nvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cards.cards = [Card("GPU-a", capability=(9, 0)), Card("GPU-b", capability=(9, 0))]
    folder = checkpoints_made.write(tmp_path / "m", tensors={"a": [64, 64]})
    plain = ServerSpec("Qwen/Qwen3-Embedding-0.6B")

    def file(spec: ServerSpec, tp_size: int = 1) -> Path:
        launch = replace(LAUNCH, home=str(tmp_path), options=StartOptions(tp_size=tp_size))
        usage = ENGINE.plan(spec, launch).gpu_usage
        assert usage is not None
        return usage.earlier.file

    others = [
        file(replace(plain, model="Qwen/Qwen3-Embedding-4B", context_tokens=2048)),
        file(ServerSpec(folder)),
        file(replace(plain, quantization="fp8")),
        file(replace(plain, deterministic=True)),
        file(plain, tp_size=2),
    ]
    _installed(monkeypatch, "0.5.22")
    others.append(file(plain))
    _installed(monkeypatch, "0.5.23")
    cards.cards = [Card("GPU-a", name="NVIDIA L4", capability=(9, 0))]
    others.append(file(plain))
    cards.cards = [Card("GPU-a", capability=(9, 0))]
    assert len({*others, file(plain)}) == len(others) + 1
    assert file(replace(plain, context_tokens=2048)) == file(plain)


def test_a_start_with_own_arguments_or_on_a_cpu_is_not_compared(
    cards: Nvml, tmp_path: Path
) -> None:
    options = StartOptions(arguments=("--schedule-policy", "fcfs"))
    assert ENGINE.plan(GPU, replace(LAUNCH, options=options)).gpu_usage is None
    folder = checkpoints_made.write(tmp_path / "m", tensors={"a": [64, 64]})
    assert ENGINE.plan(ServerSpec(folder, device="cpu"), LAUNCH).gpu_usage is None


def test_with_own_arguments_the_plan_is_not_that_of_the_measured_kernels(cards: Nvml) -> None:
    cards.cards = [Card("GPU-a", total=141 * GIB, free=140 * GIB, capability=(9, 0))]
    own = replace(LAUNCH, options=StartOptions(arguments=("--attention-backend", "triton")))

    def activations(launch: Launch) -> str:
        plan = ENGINE.plan(GPU, launch)
        return next(r.what for r in plan.reasons if r.what.startswith("activations"))

    assert activations(own) != activations(LAUNCH)


def test_what_an_earlier_start_used_prevents_no_start(cards: Nvml, tmp_path: Path) -> None:
    launch = replace(LAUNCH, home=str(tmp_path))
    cards.cards = [Card("GPU-a", total=48 * GIB, free=47 * GIB)]
    planned = ENGINE.plan(GPU, launch).gpu_usage
    assert planned is not None
    file = planned.earlier.file
    file.parent.mkdir()
    content = {"kind": planned.earlier.kind, "planned_bytes": GIB, "used_bytes": 90 * GIB}
    file.write_text(json.dumps(content))
    file.chmod(0o600)
    plan = ENGINE.plan(GPU, launch)
    assert plan.gpu_usage is not None
    assert plan.gpu_usage.planned_bytes == planned.planned_bytes
    assert any(str(file) in note for note in plan.notes)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, StartOptions()),
        ({"quantization": "fp8"}, StartOptions()),
        ({"deterministic": True, "context_tokens": 2048}, StartOptions(tp_size=2)),
    ],
)
def test_an_estimate_is_the_plan_of_a_start_on_such_a_card(
    cards: Nvml, given: dict[str, Any], options: StartOptions
) -> None:
    spec = ServerSpec(**given)
    gpu = empty_card(48, (8, 9))
    estimate = ENGINE.estimate(spec, options, gpu)
    assert estimate is not None
    cards.cards = [
        Card(f"GPU-{n}", total=gpu.total_bytes, free=gpu.free_bytes, capability=(8, 9))
        for n in range(2)
    ]
    plan = ENGINE.plan(spec, replace(LAUNCH, options=options))
    [total] = [reason.what for reason in plan.reasons if reason.what.startswith("memory ")]
    assert total == f"memory {estimate.need_bytes / GIB:.1f} GiB"


def test_an_estimate_needs_neither_a_gpu_nor_the_engine(
    no_cards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, None)
    estimate = ENGINE.estimate(GPU, StartOptions(), empty_card(24, (8, 0)))
    assert estimate is not None
    with pytest.raises(StartError):
        ENGINE.estimate(GPU, StartOptions(), empty_card(8, (8, 0)))
    assert ENGINE.estimate(ServerSpec("a/b"), StartOptions(), empty_card(24, (8, 0))) is None


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
    ("architecture", "said"),
    [
        ("Qwen3ForCausalLM", []),
        ("XLMRobertaModel", ["it takes the first token"]),
        ("LlamaForCausalLM", ["not verified how SGLang pools LlamaForCausalLM"]),
    ],
)
def test_pooling_that_is_not_verified_is_said(
    tmp_path: Path, architecture: str, said: list[str]
) -> None:
    folder = checkpoints_made.write(tmp_path / "m", {"architectures": [architecture]})
    pooling = "lasttoken" if architecture.endswith("ForCausalLM") else "cls"
    checkpoints_made.write_modules(Path(folder), pooling={"pooling_mode": pooling})
    assert ENGINE.why_unsupported(ServerSpec(folder)) is None
    notes = support.notes(folder)
    assert len(notes) == len(said)
    assert all(part in note for part, note in zip(said, notes, strict=True))


@pytest.mark.parametrize("architecture", ["GemmaForCausalLM", "Gemma3ForCausalLM"])
def test_a_language_model_that_sglang_does_not_pool_is_refused(
    tmp_path: Path, architecture: str
) -> None:
    folder = Path(checkpoints_made.write(tmp_path, {"architectures": [architecture]}))
    checkpoints_made.write_modules(folder)
    assert "computes no embeddings" in (ENGINE.why_unsupported(ServerSpec(str(folder))) or "")


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


_ENCODERS: Sequence[tuple[dict[str, Any], str]] = [
    ({"architectures": ["BertModel"]}, "cls"),
    ({"architectures": ["XLMRobertaModel"]}, "cls"),
    ({"architectures": ["Contriever"]}, "cls"),
    ({"architectures": ["Lfm2BidirectionalModel"]}, "cls"),
    ({"architectures": ["EmbeddingGemma2Model"]}, "mean"),
    ({"architectures": ["BertModel"], "pooling_type": "mean"}, "cls"),
    ({"architectures": ["Gemma3TextModel"], "use_bidirectional_attention": True}, "mean"),
]


@pytest.mark.parametrize(("config", "pooling"), _ENCODERS)
def test_a_model_with_the_pooling_that_sglang_computes_for_its_architecture_is_served(
    tmp_path: Path, config: dict[str, Any], pooling: str
) -> None:
    checkpoints_made.write(tmp_path, config)
    checkpoints_made.write_modules(tmp_path, pooling={"pooling_mode": pooling})
    reason = ENGINE.why_unsupported(ServerSpec(str(tmp_path)))
    if pooling == "mean":  # SGLang's depends on the batch: tests/sglang/test_checkpoints.py
        assert "would depend on the batch" in str(reason)
    else:
        assert reason is None


@pytest.mark.parametrize(
    ("config", "pooling", "declared"),
    [
        (config, pooling, declared)
        for config, pooling in _ENCODERS
        for declared in ("lasttoken", "cls", "mean", "max")
        if declared != pooling
    ],
)
def test_a_refusal_names_the_pooling_that_sglang_computes(
    tmp_path: Path, config: dict[str, Any], pooling: str, declared: str
) -> None:
    checkpoints_made.write(tmp_path, config)
    checkpoints_made.write_modules(tmp_path, pooling={"pooling_mode": declared})
    reason = ENGINE.why_unsupported(ServerSpec(str(tmp_path))) or ""
    assert f"pools by {declared}" in reason
    assert {"cls": "first token", "mean": "mean of the tokens"}[pooling] in reason


@pytest.mark.parametrize(
    "config",
    [
        *(
            {"architectures": [name]}
            for name in ("BertForMaskedLM", "RobertaModel", "Gemma3TextModel", "ModernBertModel")
        ),
        {"architectures": ["GemmaForCausalLM"], "pooling_type": "CLS"},
        {"architectures": ["Qwen2Model"], "pooling_type": "mean"},
    ],
)
@pytest.mark.parametrize("declared", ["lasttoken", "cls", "mean"])
def test_a_declared_pooling_is_refused_where_the_pooling_of_sglang_is_not_known(
    tmp_path: Path, config: dict[str, Any], declared: str
) -> None:
    [architecture] = config["architectures"]
    checkpoints_made.write(tmp_path, config)
    assert architecture in (ENGINE.why_unsupported(ServerSpec(str(tmp_path))) or "")
    checkpoints_made.write_modules(tmp_path, pooling={"pooling_mode": declared})
    assert architecture in (ENGINE.why_unsupported(ServerSpec(str(tmp_path))) or "")


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlamaForCausalLM"]},
        {"architectures": ["MistralModel"]},
        {"architectures": ["Qwen2Model"]},
        {"architectures": ["Qwen3ForCausalLM"], "pooling_type": "mean"},  # not read there
    ],
)
def test_a_decoder_that_declares_the_last_token_is_served(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    checkpoints_made.write(tmp_path, config)
    checkpoints_made.write_modules(tmp_path)
    assert ENGINE.why_unsupported(ServerSpec(str(tmp_path))) is None


def test_a_mean_without_the_prompt_is_refused(tmp_path: Path) -> None:
    config, _ = next(known for known in _ENCODERS if known[1] == "mean")
    checkpoints_made.write(tmp_path, config)
    declared = {"pooling_mode": "mean", "include_prompt": False}
    checkpoints_made.write_modules(tmp_path, pooling=declared)
    assert "include_prompt=false" in (ENGINE.why_unsupported(ServerSpec(str(tmp_path))) or "")


def test_a_snapshot_is_not_refused_for_a_pooling_file_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "main"
    checkpoints_made.write(snapshot, {"architectures": ["BertModel"]})
    checkpoints_made.write_modules(snapshot, pooling=None)
    assert ENGINE.why_unsupported(ServerSpec("owner/model")) is None
    checkpoints_made.write_modules(snapshot, pooling={"pooling_mode": "cls"})
    assert ENGINE.why_unsupported(ServerSpec("owner/model")) is None
    (snapshot / "config.json").unlink()  # how SGLang pools it is not known then
    assert ENGINE.why_unsupported(ServerSpec("owner/model")) is None


def test_models_of_the_catalog_need_no_note() -> None:
    assert support.notes("Qwen/Qwen3-Embedding-8B") == []
    assert "not verified" in support.notes("somebody/embedder")[0]


def test_a_note_says_when_the_declared_pooling_of_a_hub_model_is_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "main"
    checkpoints_made.write(snapshot)  # what SGLang downloads
    assert any("hf download owner/model" in note for note in support.notes("owner/model"))
    checkpoints_made.write_modules(snapshot)
    assert not any("hf download" in note for note in support.notes("owner/model"))


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


FP8 = replace(GPU, quantization="fp8")


@pytest.mark.parametrize(
    "spec",
    [replace(FP8, deterministic=True), replace(GPU, quantization="awq")],
    ids=["deterministic", "awq"],
)
def test_what_is_never_started_is_not_estimated(cards: Nvml, spec: ServerSpec) -> None:
    cards.cards = [Card(total=141 * GIB, free=140 * GIB, capability=(9, 0))]
    assert ENGINE.why_unavailable(spec)
    with pytest.raises(NoEngineError):
        ENGINE.estimate(spec, StartOptions(), empty_card(141, (9, 0)))


@pytest.mark.parametrize(
    ("spec", "capability", "options"),
    [
        (FP8, (8, 0), StartOptions()),
        (FP8, (8, 6), StartOptions(tp_size=2)),
        (GPU, (7, 5), StartOptions()),
        (GPU, (9, 0), StartOptions(arguments=("--dtype", "float16"))),
    ],
    ids=["fp8-8.0", "fp8-8.6", "7.5", "reserved"],
)
def test_a_card_on_which_nothing_is_started_is_not_estimated(
    cards: Nvml, spec: ServerSpec, capability: tuple[int, int], options: StartOptions
) -> None:
    pair = [Card(name, total=80 * GIB, free=79 * GIB, capability=capability) for name in "ab"]
    cards.cards = pair
    with pytest.raises(StartError):
        ENGINE.plan(spec, replace(LAUNCH, options=options))
    with pytest.raises(StartError):
        ENGINE.estimate(spec, options, empty_card(80, capability))
    better = ENGINE.estimate(spec, StartOptions(tp_size=options.tp_size), empty_card(80, (8, 9)))
    assert better is not None
