"""SGLang as an engine: what it needs and what it cannot serve, with reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

import emberd.engines
from emberd.engines.sglang import ENGINE
from emberd.errors import NoEngineError
from emberd.settings import ServerSpec
from fake_nvml import Nvml
from sglang_plans import GPU, set_installed

pytestmark = pytest.mark.usefixtures("installed")


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
    set_installed(monkeypatch, None)
    assert "`emberd engine install sglang`" in (ENGINE.why_unavailable(GPU) or "")
    assert ENGINE.installable_environment(GPU) == "sglang"


def test_an_installation_does_not_help_a_machine_without_a_gpu(
    no_cards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_installed(monkeypatch, None)
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
