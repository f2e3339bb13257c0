"""The interface of sentence-transformers gives the numbers of the library itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import semantic_search

from adapters import page
from emberd import Embedder
from emberd.adapters.sentence_transformers import EmberdSentenceTransformer
from managed import MODEL, PASSAGES, QUERIES
from real import make_tiny

_TEXTS = ["Why is the sky blue?", "向量检索 and 123", "  spaces  ", "a" * 50]
_CLOSE = 5e-6

Both = tuple[EmberdSentenceTransformer, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-Embedding checkpoint with several prompts."""
    made = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny.main(made, 2, 128)
    prompts = {"query": make_tiny.QUERY_PROMPT, "document": "", "facts": "Fact: "}
    (made / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    return made


@pytest.fixture(scope="module")
def both(folder: Path) -> Iterator[Both]:
    """The interface over a server of the checkpoint, and the library with it in this process."""
    theirs = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    ours = EmberdSentenceTransformer(folder, engine="transformers", device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBERD_ENGINE_ARGS", "--dtype float32")
        ours.embedder.ensure()
    yield ours, theirs
    ours.embedder.close()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("encode", {}),
        ("encode", {"prompt_name": "query"}),
        ("encode", {"prompt_name": "facts"}),
        ("encode", {"prompt": "Something else: "}),
        ("encode", {"prompt": "Something else: ", "prompt_name": "facts"}),
        ("encode", {"truncate_dim": 32}),
        ("encode", {"truncate_dim": 32, "normalize_embeddings": True}),
        ("encode", {"truncate_dim": 1000}),
        ("encode", {"batch_size": 1, "show_progress_bar": False}),
        ("encode", {"convert_to_tensor": True}),
        ("encode", {"convert_to_numpy": False}),
        ("encode_query", {}),
        ("encode_query", {"prompt_name": "facts"}),
        ("encode_query", {"prompt": ""}),
        ("encode_document", {}),
        ("encode_document", {"normalize_embeddings": True}),
    ],
)
def test_vectors_are_those_of_the_library(name: str, arguments: dict[str, Any], both: Both) -> None:
    ours, theirs = (getattr(each, name)(_TEXTS, **arguments) for each in both)
    assert type(ours) is type(theirs)
    assert np.shape(ours) == np.shape(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert type(one) is type(other)
        assert np.abs(np.asarray(one) - np.asarray(other)).max() < _CLOSE


@pytest.mark.parametrize("inputs", ["one text", [], ("a", "b"), np.array(["a", "b"])])
def test_the_shape_is_that_of_the_library(inputs: Any, both: Both) -> None:
    ours, theirs = (each.encode(inputs) for each in both)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype) or not len(inputs)
    assert ours.shape == theirs.shape


def test_lengths_prompts_and_defaults_are_those_of_the_library(both: Both) -> None:
    ours, theirs = both
    assert ours.get_embedding_dimension() == theirs.get_embedding_dimension() == 128
    assert ours.prompts == theirs.prompts
    assert ours.default_prompt_name is theirs.default_prompt_name is None
    assert ours.similarity_fn_name == theirs.similarity_fn_name
    with ours.truncate_embeddings(16), theirs.truncate_embeddings(16):
        assert ours.get_embedding_dimension() == theirs.get_embedding_dimension() == 16
        assert np.abs(ours.encode(_TEXTS) - theirs.encode(_TEXTS)).max() < _CLOSE


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
@pytest.mark.parametrize("make", [np.asarray, torch.tensor, list], ids=["numpy", "torch", "list"])
def test_similarities_are_those_of_the_library(
    name: str, make: Callable[[Any], Any], folder: Path
) -> None:
    random = np.random.default_rng(3)
    one, other = (random.standard_normal((4, 16)).astype(np.float32) for _ in range(2))
    ours = EmberdSentenceTransformer(folder, similarity_fn_name=name)
    theirs: Any = SentenceTransformer(str(folder), similarity_fn_name=name, device="cpu")
    for method in ("similarity", "similarity_pairwise"):
        found = getattr(ours, method)(make(one), make(other))
        wanted = getattr(theirs, method)(make(one), make(other))
        assert isinstance(found, torch.Tensor) == (make is torch.tensor)
        assert np.abs(np.asarray(found) - np.asarray(wanted)).max() < 1e-4


def test_search_and_an_evaluator_of_the_library_take_it() -> None:
    model: Any = EmberdSentenceTransformer(MODEL)
    passages = list(PASSAGES.values())
    found = semantic_search(
        model.encode_query(list(QUERIES), convert_to_tensor=True),
        model.encode_document(passages, convert_to_tensor=True),
        top_k=1,
    )
    assert [list(PASSAGES)[each[0]["corpus_id"]] for each in found] == list(QUERIES.values())
    evaluator = InformationRetrievalEvaluator(
        {str(place): text for place, text in enumerate(QUERIES)},
        PASSAGES,
        {str(place): {answer} for place, answer in enumerate(QUERIES.values())},
        score_functions={"cosine": model.similarity},
        write_csv=False,
    )
    scores = evaluator.compute_metrices(model)
    assert scores["cosine"]["accuracy@k"][1] == 1.0


def test_an_embedders_vectors_are_not_changed() -> None:
    embedder = Embedder(MODEL, dimensions=64)
    model = EmberdSentenceTransformer(embedder)
    assert np.allclose(model.encode_document(["one"]), embedder.embed_documents(["one"]), atol=1e-6)


def test_the_code_of_the_page_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = page.run("sentence-transformers", monkeypatch)
    assert made["model"].similarity(made["queries"], made["documents"]).shape == (1, 2)
