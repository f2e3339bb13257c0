"""Which model folders a last-token server can serve, and which prompts they ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import checkpoints_made
import folder_variants
from checkpoints_made import LAST_TOKEN
from emberd import engines, model_card
from emberd.engines.sglang import ENGINE as SGLANG
from emberd.engines.sglang import support
from emberd.engines.transformers import ENGINE as TRANSFORMERS
from emberd.errors import InstructionError, NoEngineError, StartError
from emberd.serving import transformers_encoder
from emberd.serving.hardware import DeviceChoice
from emberd.settings import ServerSpec, Settings
from folder_variants import PROMPTS

_ENDS = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<end>"}}],
    "special_tokens": {"<end>": {"id": "<end>", "ids": [7], "tokens": ["<end>"]}},
}

# As each engine asks, whatever this machine has.
UNFIT: dict[str, Callable[[str], str | None]] = {
    "sglang": lambda model: SGLANG.why_unsupported(ServerSpec(model)),
    "transformers": lambda model: TRANSFORMERS.why_unsupported(ServerSpec(model)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as sentence-transformers 6.x saves a model with last-token pooling."""
    made = Path(checkpoints_made.write(tmp_path / "model", tensors={"a": [64, 64]}))
    checkpoints_made.write_json(made / "tokenizer.json", {"post_processor": _ENDS})
    return checkpoints_made.write_modules(made)


@pytest.mark.parametrize("engine", UNFIT)
@pytest.mark.parametrize("variant", folder_variants.SERVED)
def test_last_token_pooling_is_served(folder: Path, variant: str, engine: str) -> None:
    folder_variants.SERVED[variant](folder)
    assert UNFIT[engine](str(folder)) is None


@pytest.mark.parametrize("engine", UNFIT)
@pytest.mark.parametrize("variant", folder_variants.REFUSED)
def test_what_a_last_token_server_computes_differently_is_refused(
    folder: Path, variant: str, engine: str
) -> None:
    change, file, value = folder_variants.REFUSED[variant]
    change(folder)
    _assert_names(UNFIT[engine](str(folder)), folder / file, value)


@pytest.mark.parametrize("engine", UNFIT)
@pytest.mark.parametrize("variant", folder_variants.UNREADABLE)
def test_nothing_is_assumed_about_a_folder_that_cannot_be_followed(
    folder: Path, variant: str, engine: str
) -> None:
    change, file, value = folder_variants.UNREADABLE[variant]
    change(folder)
    _assert_names(UNFIT[engine](str(folder)), folder / file, value)


def _assert_names(reason: str | None, file: Path, value: str) -> None:
    """Assert that a refusal names file and value, and says what to do."""
    assert reason is not None
    assert str(file) in reason or (file.name in reason and str(file.parent) in reason)
    assert value in reason
    _, _, advice = reason.partition(". ")
    assert advice


@pytest.mark.parametrize("engine", UNFIT)
def test_a_configuration_that_is_nested_too_deeply_is_refused(folder: Path, engine: str) -> None:
    (folder / "config.json").write_text("[" * 10_000)
    assert UNFIT[engine](str(folder)) is not None


@pytest.mark.parametrize("engine", UNFIT)
def test_bidirectional_attention_is_refused(folder: Path, engine: str) -> None:
    checkpoints_made.write(folder, {**checkpoints_made.QWEN, "is_causal": False})
    reason = UNFIT[engine](str(folder))
    assert reason is not None
    assert "is_causal" in reason


@pytest.mark.parametrize("engine", UNFIT)
def test_embedding_gemma_is_refused_for_its_dense_modules(tmp_path: Path, engine: str) -> None:
    """SGLang has its pooling, the mean, and runs no Dense module."""
    config = {
        **checkpoints_made.QWEN,
        "architectures": ["Gemma3TextModel"],
        "use_bidirectional_attention": True,
        "sliding_window": 512,
    }
    folder = Path(checkpoints_made.write(tmp_path / "embeddinggemma-300m", config))
    old = "sentence_transformers.models."
    kinds = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    listed = [(f"{n}_{kind}" if n else "", f"{old}{kind}") for n, kind in enumerate(kinds)]
    mean = {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True}
    checkpoints_made.write_modules(folder, listed, mean)
    reason = UNFIT[engine](str(folder))
    assert reason is not None
    assert ("Dense" if engine == "sglang" else "Gemma3TextModel") in reason


@pytest.mark.parametrize("engine", [SGLANG, TRANSFORMERS], ids=lambda engine: str(engine.name))
def test_an_engine_refuses_before_anything_is_installed_or_started(
    folder: Path, engine: Any
) -> None:
    folder_variants.pooling(pooling_mode="mean")(folder)
    spec = ServerSpec(str(folder), engine=engine.name, device="cpu")
    assert engine.installable_environment(spec) is None
    with pytest.raises(NoEngineError, match="pools by mean"):
        engines.choose(spec)


@pytest.mark.parametrize("engine", UNFIT)
def test_a_language_model_that_declares_no_pooling_is_served(tmp_path: Path, engine: str) -> None:
    """sentence-transformers takes its last token."""
    folder = checkpoints_made.write(tmp_path / "plain")
    assert UNFIT[engine](folder) is None


@pytest.mark.parametrize("engine", UNFIT)
def test_another_model_that_declares_no_pooling_is_refused(tmp_path: Path, engine: str) -> None:
    """sentence-transformers takes the mean of its tokens."""
    config = {**checkpoints_made.QWEN, "architectures": ["Qwen3Model"]}
    folder = checkpoints_made.write(tmp_path / "plain", config)
    assert "declares no pooling" in (UNFIT[engine](folder) or "")
    checkpoints_made.write_json(tmp_path / "plain" / folder_variants.POOLING, LAST_TOKEN)
    assert UNFIT[engine](folder) is None


@pytest.mark.parametrize("engine", UNFIT)
def test_the_catalog_knows_the_pooling_of_a_folder_that_declares_none(
    tmp_path: Path, engine: str
) -> None:
    config = {**checkpoints_made.QWEN, "architectures": ["Qwen3Model"]}
    folder = checkpoints_made.write(tmp_path / "Qwen3-Embedding-0.6B", config)
    assert UNFIT[engine](folder) is None


@pytest.mark.parametrize("engine", UNFIT)
@pytest.mark.parametrize(
    ("window", "is_served"),
    [
        ({"use_sliding_window": True, "sliding_window": 16}, False),
        ({"use_sliding_window": True, "max_position_embeddings": 8192}, False),  # 4,096 by default
        ({"use_sliding_window": True, "sliding_window": 4096}, True),  # the longest text
        ({"use_sliding_window": False, "sliding_window": 16}, True),
        ({"sliding_window": 16}, True),  # not used by default
        ({"use_sliding_window": True, "sliding_window": None}, True),
    ],
)
def test_attention_within_a_window_is_refused(
    folder: Path, window: dict[str, Any], is_served: bool, engine: str
) -> None:
    checkpoints_made.write(folder, {**checkpoints_made.QWEN, **window})
    reason = UNFIT[engine](str(folder))
    assert (reason is None) is is_served
    assert is_served or "sliding_window=" in str(reason)


@pytest.mark.parametrize("engine", UNFIT)
def test_a_prompt_is_excluded_only_from_a_text_that_ends_with_a_token_of_its_own(
    folder: Path, engine: str
) -> None:
    folder_variants.SERVED["pooling without the prompt"](folder)
    checkpoints_made.write_json(folder / "tokenizer.json", {"post_processor": None})
    reason = UNFIT[engine](str(folder)) or ""
    assert "include_prompt=false" in reason
    assert "tokenizer.json" in reason


@pytest.mark.parametrize("engine", UNFIT)
def test_pooling_without_a_list_of_modules_is_read(tmp_path: Path, engine: str) -> None:
    folder = checkpoints_made.write(tmp_path / "plain")
    folder_variants.pooling(pooling_mode="mean")(tmp_path / "plain")
    reason = UNFIT[engine](folder)
    assert reason is not None
    assert "pools by mean" in reason


@pytest.mark.parametrize("engine", UNFIT)
def test_a_snapshot_in_the_hubs_cache_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--owner--model"
    snapshot = kept / "snapshots" / "abc"
    checkpoints_made.write(snapshot)
    checkpoints_made.write_modules(snapshot, pooling=None)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    assert UNFIT[engine]("owner/model") is None  # its settings were not downloaded
    folder_variants.pooling(pooling_mode="mean")(snapshot)
    _assert_names(UNFIT[engine]("owner/model"), snapshot / folder_variants.POOLING, "mean")
    assert UNFIT[engine]("owner/other") is None


@pytest.mark.parametrize("variant", ["6.x, mean", "no Normalize", "Dense"])
def test_the_server_refuses_what_was_only_known_after_a_download(
    folder: Path, variant: str
) -> None:
    change, file, value = folder_variants.REFUSED[variant]
    change(folder)
    with pytest.raises(StartError) as raised:
        transformers_encoder.load_checkpoint(folder, DeviceChoice("cpu", "float32", ""), None)
    assert str(folder / file) in raised.value.cause
    assert value in raised.value.cause
    assert raised.value.advice


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("variant", folder_variants.PROMPT_FILES)
def test_prompts_stand_before_the_text_as_they_are(folder: Path, variant: str) -> None:
    """Compared with the real library in ``tests/sglang/test_sentence_transformers.py``."""
    described = folder_variants.PROMPT_FILES[variant]
    checkpoints_made.write_json(folder / PROMPTS, described)
    settings = Settings.resolve(model=str(folder))
    prompts = described.get("prompts", {})
    assert settings.query_template == f"{prompts.get('query') or ''}{{text}}"
    assert settings.document_template == f"{prompts.get('document') or ''}{{text}}"


@pytest.mark.parametrize("variant", folder_variants.PROMPT_FILES_REFUSED)
def test_a_prompt_that_cannot_be_followed_is_refused_for_its_role(
    folder: Path, variant: str
) -> None:
    described, roles = folder_variants.PROMPT_FILES_REFUSED[variant]
    checkpoints_made.write_json(folder / PROMPTS, described)
    with pytest.raises(InstructionError, match=str(folder / PROMPTS)) as raised:
        Settings.resolve(model=str(folder))
    assert any(f"{role}_instruction" in str(raised.value) for role in roles)
    given = {f"{role}_instruction": "" for role in roles}
    decided = Settings.resolve(model=str(folder), **given)
    for role in roles:
        assert getattr(decided, f"{role}_template") == "{text}"


@pytest.mark.parametrize(
    ("variant", "unused"),
    [
        ("empty document, passage", ["passage='p: '"]),
        ("document and passage", ["passage='p: '"]),
        ("default", ["web='w: '"]),
        ("both", []),
        ("default query", []),
        ("Qwen", []),
    ],
)
def test_a_prompt_that_applies_to_neither_role_is_said_at_the_start(
    folder: Path, variant: str, unused: list[str]
) -> None:
    checkpoints_made.write_json(folder / PROMPTS, folder_variants.PROMPT_FILES[variant])
    notes = support.notes(str(folder))
    assert notes == model_card.unused_prompts(folder)
    assert len(notes) == len(unused)
    assert all(prompt in note for prompt, note in zip(unused, notes, strict=True))
