"""Shapes of models, read from their files or known for the catalog's."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoints_made import QWEN, write
from emberd.catalog import MODELS, RERANK, lookup
from emberd.engines.model_shape import KNOWN, ModelShape, shape_of

TENSORS = {"model.embed_tokens.weight": (500, 64), "model.layers.0.mlp.up_proj.weight": (96, 64)}
STORED = 500 * 64 + 96 * 64


def test_shape_of_a_folder_is_read_from_file_headers(tmp_path: Path) -> None:
    found = shape_of(write(tmp_path, tensors=TENSORS))
    assert found == ModelShape(
        architecture="Qwen3ForCausalLM",
        layers=3,
        hidden=64,
        intermediate=96,
        kv_heads=2,
        head_dim=32,
        vocabulary=500,
        tables=1,
        parameters=STORED,
        context_tokens=4096,
    )
    assert found.weights_bytes() == 2 * STORED


def test_a_head_that_the_checkpoint_lacks_is_counted_unless_it_is_tied(tmp_path: Path) -> None:
    untied = {**QWEN, "tie_word_embeddings": False}
    found = shape_of(write(tmp_path / "lacks", untied, TENSORS))
    has = shape_of(write(tmp_path / "has", untied, {**TENSORS, "lm_head.weight": (500, 64)}))
    bare = shape_of(write(tmp_path / "m", {**untied, "architectures": ["Qwen3Model"]}, TENSORS))
    assert found
    assert has
    assert bare
    assert found.parameters == has.parameters == STORED + 500 * 64
    assert found.tables == has.tables == 2
    assert (bare.parameters, bare.tables) == (STORED, 1)


def test_size_of_old_weights_is_the_file_size(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(3000))
    found = shape_of(folder)
    assert found
    assert found.parameters == 1500


def test_weights_quantised_on_disk_keep_their_size(tmp_path: Path) -> None:
    folder = write(tmp_path, {**QWEN, "quantization_config": {"quant_method": "awq"}}, TENSORS)
    found = shape_of(folder)
    assert found
    assert found.weights_bytes() == (tmp_path / "model.safetensors").stat().st_size


@pytest.mark.parametrize(("size", "tables"), [("4B", 1), ("8B", 2)])
def test_fp8_halves_all_but_the_token_table_and_the_head(size: str, tables: int) -> None:
    model = KNOWN[f"Qwen/Qwen3-Embedding-{size}"]
    unquantised = tables * model.vocabulary * model.hidden
    assert model.weights_bytes("fp8") == model.parameters + unquantised


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"max_position_embeddings": 8192}, 8192),
        ({"model_max_length": 100}, 100),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 8192),
        ({"rope_scaling": {"factor": 2.0, "original_max_position_embeddings": 9}}, 4096),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 4096),
    ],
)
def test_the_context_is_derived_as_sglang_does(
    tmp_path: Path, told: dict[str, object], expected: int
) -> None:
    found = shape_of(write(tmp_path, {**QWEN, **told}, TENSORS))
    assert found
    assert found.context_tokens == expected


def test_encoder_without_grouped_heads_is_recognised(tmp_path: Path) -> None:
    bert = {key: value for key, value in QWEN.items() if key != "num_key_value_heads"}
    bert |= {"architectures": ["BertModel"], "head_dim": None}
    found = shape_of(write(tmp_path, bert, TENSORS))
    assert found
    assert found.is_encoder
    assert (found.kv_heads, found.head_dim) == (4, 16)
    assert not KNOWN["Qwen/Qwen3-Embedding-4B"].is_encoder


@pytest.mark.parametrize(
    "architecture", ["Contriever", "Lfm2BidirectionalModel", "EmbeddingGemma2Model"]
)
def test_other_encoders_are_known_as_such(tmp_path: Path, architecture: str) -> None:
    found = shape_of(write(tmp_path, {**QWEN, "architectures": [architecture]}, TENSORS))
    assert found
    assert found.is_encoder


@pytest.mark.parametrize(
    "damage",
    [{"rope_scaling": [1]}, {"max_position_embeddings": None}, {"max_position_embeddings": 1e999}],
)
def test_damaged_config_gives_no_shape(tmp_path: Path, damage: dict[str, object]) -> None:
    assert shape_of(write(tmp_path, {**QWEN, **damage}, TENSORS)) is None


@pytest.mark.parametrize(
    "missing", ["hidden_size", "architectures", "vocab_size", "max_position_embeddings"]
)
def test_incomplete_config_gives_no_shape(tmp_path: Path, missing: str) -> None:
    config = {key: value for key, value in QWEN.items() if key != missing}
    assert shape_of(write(tmp_path, config, TENSORS)) is None


def test_missing_or_broken_weights_give_no_shape(tmp_path: Path) -> None:
    folder = write(tmp_path)
    assert shape_of(folder) is None
    for content in (b"\xff" * 64, _header(b"[]"), _header(b"[" * 10_000)):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert shape_of(folder) is None


def _header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def test_unknown_name_has_no_shape() -> None:
    assert shape_of("somebody/some-model") is None


def test_every_qwen_of_the_catalog_has_a_shape() -> None:
    assert all(model.name in KNOWN for model in MODELS if model.name.startswith("Qwen/"))


@pytest.mark.parametrize("name", KNOWN)
def test_a_shape_agrees_with_its_entry(name: str) -> None:
    model, shape = lookup(name), KNOWN[name]
    assert model.shape is not None
    assert (shape.hidden, shape.context_tokens) == (model.shape.hidden, model.context_tokens)
    assert shape.reranks == (model.task == RERANK)
    assert shape.reranks or shape.hidden == model.dimensions


@pytest.mark.parametrize(
    ("name", "query_heads", "tables"),
    [("0.6B", 16, 1), ("4B", 32, 1), ("8B", 32, 2)],
)
def test_the_parameters_follow_from_the_shapes(name: str, query_heads: int, tables: int) -> None:
    model = KNOWN[f"Qwen/Qwen3-Embedding-{name}"]
    attention = 2 * model.hidden * (query_heads + model.kv_heads) * model.head_dim
    norms = 2 * (model.hidden + model.head_dim)
    layer = attention + 3 * model.hidden * model.intermediate + norms
    table = tables * model.vocabulary * model.hidden
    assert model.parameters == model.layers * layer + model.hidden + table


def test_keys_and_values_of_4b_take_144_kib_a_token() -> None:
    model = KNOWN["Qwen/Qwen3-Embedding-4B"]
    assert model.kv_bytes_per_token() == 144 * 1024
    assert model.kv_bytes_per_token(tp_size=2) == 72 * 1024
    assert model.kv_bytes_per_token(tp_size=16) == 18 * 1024
