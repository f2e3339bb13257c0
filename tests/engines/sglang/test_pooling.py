"""The pooling of SGLang, compared with what a checkpoint declares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import checkpoints_made
from emberd.engines.sglang import ENGINE, support
from emberd.settings import ServerSpec

pytestmark = pytest.mark.usefixtures("installed")


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
