from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from docs_table import DocsTable
from emberd import catalog
from emberd.catalog import DEMO_MODEL, EMBED, MODELS, Model, is_unit, lookup
from emberd.engines.model_shape import shape_of
from emberd.engines.sglang import support
from emberd.engines.transformers import TransformersEngine
from emberd.settings import ServerSpec, Settings

_TABLE: Final = DocsTable(
    "models.md",
    "the catalog",
    (
        *("model", "query", "document", "dimensions"),
        *("tokens", "shorter vectors", "pooling", "engines"),
    ),
)


@pytest.mark.parametrize(("size", "dimensions"), [("0.6B", 1024), ("4B", 2560), ("8B", 4096)])
def test_qwen3_embeddings_are_described(size: str, dimensions: int) -> None:
    model = lookup(f"Qwen/Qwen3-Embedding-{size}")
    assert (model.dimensions, model.context_tokens, model.end_of_text_id) == (
        dimensions,
        32768,
        151643,
    )
    assert (model.matryoshka, model.min_dimensions) == (True, 32)


def test_the_demo_is_e5_and_was_not_trained_to_be_cut() -> None:
    model = lookup(DEMO_MODEL)
    assert (model.dimensions, model.context_tokens, model.matryoshka) == (384, 512, False)
    assert (model.query_template, model.document_template) == ("query: {text}", "passage: {text}")


@pytest.mark.parametrize(
    ("name", "dimensions", "query"),
    [
        ("bge-small-en-v1.5", 384, "Represent this sentence for searching relevant passages: "),
        ("bge-large-zh-v1.5", 1024, "为这个句子生成表示以用于检索相关文章："),
        ("bge-m3", 1024, ""),
    ],
)
def test_bge_takes_the_prompts_of_its_model_card(name: str, dimensions: int, query: str) -> None:
    settings = Settings.resolve(model=f"BAAI/{name}")
    assert settings.known.dimensions == dimensions
    assert (settings.query_template, settings.document_template) == (f"{query}{{text}}", "{text}")
    assert settings.known.pooling == "cls"


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("bge-small-en-v1.5", ((101,), 102)),
        ("bge-large-zh-v1.5", ((101,), 102)),
        ("bge-m3", ((0,), 2)),
    ],
)
def test_a_bge_model_knows_what_its_tokenizer_puts_around_a_text(
    name: str, ids: tuple[tuple[int, ...], int]
) -> None:
    known = lookup(f"BAAI/{name}")
    assert (known.start_ids, known.end_of_text_id) == ids


_EMBEDDING: Final = [model for model in MODELS if model.task == EMBED]


@pytest.mark.parametrize("model", _EMBEDDING, ids=lambda model: model.name)
def test_an_engine_serves_each_model_with_the_pooling_that_it_was_trained_with(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert _engines(model)
    assert "sglang" not in _engines(replace(model, name="emberd/another", pooling="max"))


def test_the_table_of_models_is_made_of_the_catalog(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To write it again: PYTHONPATH=tests python -c 'import test_catalog as t; t.write()'."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert _TABLE.has(map(_row, _EMBEDDING))


def write() -> None:
    """Write the table of the documentation; the hub's cache should not have these models."""
    _TABLE.write(map(_row, _EMBEDDING))


def _row(model: Model) -> tuple[str, ...]:
    settings = Settings.resolve(model=model.name)
    return (
        f"`{model.name}`",
        *(_code(text) for text in (settings.query_template, settings.document_template)),
        f"{model.dimensions:,}",
        f"{model.context_tokens:,}",
        f"from {model.min_dimensions}" if model.matryoshka else "no",
        {"lasttoken": "last token", "cls": "first token", "mean": "mean"}[str(model.pooling)],
        ", ".join(f"`{name}`" for name in _engines(model)),
    )


def _code(template: str) -> str:
    shown = template.replace("\n", "\\n")
    return "the text" if shown == "{text}" else f"`{shown}`"


def _engines(model: Model) -> list[str]:
    if model.name == DEMO_MODEL:
        return ["demo"]
    served = []
    if support.why_entry_unservable(model) is None:
        served.append("sglang")
    if TransformersEngine().why_unsupported(ServerSpec(model.name)) is None:
        served.append("transformers")
    return served


@pytest.mark.parametrize(
    "name", ["/models/Qwen3-Embedding-4B", "qwen3-embedding-4b", "/a/b/QWEN3-EMBEDDING-4B/"]
)
def test_a_folder_named_like_a_model_is_that_model(name: str) -> None:
    assert lookup(name).name == "Qwen/Qwen3-Embedding-4B"


@pytest.mark.parametrize("name", ["mycompany/demo", "demo", "/models/demo", "Emberd/demo"])
def test_nothing_but_its_name_is_the_demo(name: str) -> None:
    assert lookup(name) == Model(name=name)


def test_a_model_of_somebody_else_with_the_same_last_name_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "mycompany/Qwen3-Embedding-4B"
    assert lookup(name) == Model(name=name)
    (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert lookup(name).name == "Qwen/Qwen3-Embedding-4B", "it is a folder now"


def test_of_an_unknown_model_only_its_name_is_known() -> None:
    assert lookup("some/model") == Model(name="some/model")
    assert lookup("some/model").document_template == "{text}"


def test_no_two_models_answer_to_one_name() -> None:
    names = [model.name.rsplit("/", 1)[-1].casefold() for model in MODELS]
    assert len(set(names)) == len(names)


def test_an_entry_is_all_that_a_new_model_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates, dimensions and the memory plan of one model follow from its entry."""
    known = lookup("Qwen/Qwen3-Embedding-0.6B")
    new = replace(known, name="somebody/new", query_template="q: {text}", query_task=None)
    monkeypatch.setattr(catalog, "MODELS", (*MODELS, new))
    settings = Settings.resolve(model="somebody/new", dimensions=64)
    assert settings.known.dimensions == 1024
    assert settings.query_template == "q: {text}"
    assert shape_of("somebody/new") == shape_of("Qwen/Qwen3-Embedding-0.6B")
    assert shape_of("emberd/demo") is None


@pytest.mark.parametrize(
    ("norm", "expected"),
    [(1.0, True), (0.995, True), (1.005, True), (0.98, False), (1.02, False), (0.0, False)],
)
def test_norms_close_to_one_are_accepted(norm: float, expected: bool) -> None:
    assert is_unit(norm) is expected
    assert is_unit(np.array([norm, 1.0])).tolist() == [expected, True]


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_norms_that_are_not_finite_are_refused(norm: float) -> None:
    assert not is_unit(norm)
    assert not is_unit(np.array([norm])).any()


def test_the_catalog_imports_no_numpy() -> None:
    """A supervisor uses it."""
    program = "import emberd.catalog, sys; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("size", ["0.6B", "4B", "8B"])
def test_the_vocabulary_of_a_reranker_has_all_tokens_of_its_prompt(size: str) -> None:
    known = catalog.find(f"Qwen/Qwen3-Reranker-{size}")
    assert known is not None
    assert known.shape is not None
    ids = dict(known.special_tokens)
    for token in ("<|im_start|>", "<|im_end|>", "<think>", "</think>"):
        assert ids[token] < known.shape.vocabulary
