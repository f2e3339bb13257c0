"""The interface of sentence-transformers: which prompt a text gets, and what is refused.

``tests/adapters`` compares the numbers with those of the library.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emberd import TASKS, Embedder, SettingError, TextTooLongError
from emberd.adapters.sentence_transformers import EmberdSentenceTransformer
from fake_server import QWEN, FakeServer, vectors_of

_WEB = f"Instruct: {TASKS['web']}\nQuery:"
_LENGTH = 1024


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(model=QWEN, dimensions=_LENGTH) as found:
        yield found


@pytest.fixture
def make(server: FakeServer) -> Callable[..., EmberdSentenceTransformer]:
    def made(**more: Any) -> EmberdSentenceTransformer:
        return EmberdSentenceTransformer(QWEN, base_url=server.url, **more)

    return made


@pytest.fixture
def model(make: Callable[..., EmberdSentenceTransformer]) -> EmberdSentenceTransformer:
    return make(prompts={"facts": "Fact: "})


def _sent(texts: list[str]) -> Any:
    return vectors_of(texts, _LENGTH)


@pytest.mark.parametrize(
    ("name", "arguments", "prompt"),
    [
        ("encode", {}, ""),
        ("encode", {"prompt_name": "query"}, _WEB),
        ("encode", {"prompt_name": "document"}, ""),
        ("encode", {"prompt_name": "facts"}, "Fact: "),
        ("encode", {"prompt": "Own: "}, "Own: "),
        ("encode", {"prompt": "Own: ", "prompt_name": "facts"}, "Own: "),
        ("encode", {"prompt": ""}, ""),
        ("encode_query", {}, _WEB),
        ("encode_query", {"prompt_name": "facts"}, "Fact: "),
        ("encode_query", {"prompt": ""}, ""),
        ("encode_document", {}, ""),
        ("encode_document", {"prompt": "Own: "}, "Own: "),
    ],
)
def test_a_text_gets_its_prompt(
    name: str, arguments: dict[str, Any], prompt: str, model: EmberdSentenceTransformer
) -> None:
    found = getattr(model, name)(["one", "two"], **arguments)
    assert np.allclose(found, _sent([f"{prompt}one", f"{prompt}two"]), atol=1e-6)


def test_arguments_may_be_given_by_their_place(model: EmberdSentenceTransformer) -> None:
    for method in (model.encode, model.encode_query, model.encode_document):
        found = method(["one"], None, "Own: ", 8, False)
        assert np.allclose(found, _sent(["Own: one"]), atol=1e-6)


def test_a_default_prompt_is_that_of_encode_only(
    make: Callable[..., EmberdSentenceTransformer],
) -> None:
    model = make(default_prompt_name="query")
    assert np.allclose(model.encode("one"), _sent([f"{_WEB}one"])[0], atol=1e-6)
    assert np.allclose(model.encode_document("one"), _sent(["one"])[0], atol=1e-6)
    with pytest.raises(SettingError, match="absent"):
        make(default_prompt_name="absent").encode("one")


def test_the_files_of_a_model_give_prompts_and_defaults(tmp_path: Path, server: FakeServer) -> None:
    config = {
        "prompts": {"query": "q: ", "document": "d: ", "sts": "s: "},
        "default_prompt_name": "sts",
        "similarity_fn_name": "dot",
    }
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(config))
    model = EmberdSentenceTransformer(tmp_path, prompts={"sts": "own: "})
    assert model.prompts == {"query": "q: ", "document": "d: ", "sts": "own: "}
    assert (model.default_prompt_name, model.similarity_fn_name) == ("sts", "dot")


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt_name": "absent"},
        {"prompt": "about {text}: "},
        {"precision": "binary"},
        {"output_value": "token_embeddings"},
        {"device": "cuda:1"},
        {"pool": {}},
        {"chunk_size": 8},
        {"task": "query"},
        {"truncate_dim": 0},
        {"processing_kwargs": {"text": {"max_length": 8}}},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_a_server_cannot_do_is_refused(
    arguments: dict[str, Any], model: EmberdSentenceTransformer
) -> None:
    (name,) = arguments
    with pytest.raises(SettingError, match=name):
        model.encode(["one"], **arguments)


def test_arguments_that_load_a_model_are_refused() -> None:
    with pytest.raises(SettingError, match="trust_remote_code"):
        EmberdSentenceTransformer(QWEN, trust_remote_code=True)
    with pytest.raises(SettingError, match="dimensions"):
        EmberdSentenceTransformer(Embedder(QWEN), dimensions=64)
    with pytest.raises(SettingError, match="similarity_fn_name"):
        EmberdSentenceTransformer(QWEN, similarity_fn_name="maxsim")


def test_one_text_gives_a_vector_and_several_give_rows(model: EmberdSentenceTransformer) -> None:
    assert model.encode("one").shape == (_LENGTH,)
    assert model.encode(("one", "two")).shape == (2, _LENGTH)
    assert model.encode(np.array(["one", "two"])).shape == (2, _LENGTH)
    assert model.encode(sentences=["one"]).shape == (1, _LENGTH)
    assert model.encode([]).shape == (0,)
    assert model.encode(["one"]).dtype == np.float32


@pytest.mark.parametrize("again", [True, False])
def test_cut_vectors_are_normalised_again_only_if_that_is_wanted(
    again: bool, model: EmberdSentenceTransformer
) -> None:
    found = model.encode(["one"], truncate_dim=64, normalize_embeddings=again)
    cut = _sent(["one"])[:, :64]
    assert np.allclose(found, cut / np.linalg.norm(cut) if again else cut, atol=1e-6)


def test_the_length_is_that_of_what_encode_returns(
    make: Callable[..., EmberdSentenceTransformer], server: FakeServer
) -> None:
    model = make(truncate_dim=64)
    assert model.get_embedding_dimension() == 64 == model.encode("one").size
    with model.truncate_embeddings(32):
        assert model.get_sentence_embedding_dimension() == 32 == model.encode("one").size
    assert model.get_embedding_dimension() == 64
    given = EmberdSentenceTransformer(Embedder(QWEN, base_url=server.url, dimensions=256))
    assert given.get_embedding_dimension() == 256 == given.encode("one").size


def test_a_longest_text_can_be_read_and_not_set(model: EmberdSentenceTransformer) -> None:
    model.embedder.ensure()
    assert model.max_seq_length == model.get_max_seq_length() == 1000
    with pytest.raises(SettingError, match="truncate=True"):
        model.max_seq_length = 512
    with pytest.raises(TextTooLongError):
        model.encode(["word " * 400])


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_of_pairs_are_those_of_the_diagonal(
    name: str, make: Callable[..., EmberdSentenceTransformer]
) -> None:
    model = make(similarity_fn_name=name)
    rows = np.random.default_rng(7).standard_normal((3, 8)).astype(np.float32)
    whole = model.similarity(rows, list(rows))
    assert whole.shape == (3, 3)
    assert np.allclose(np.diag(whole), model.similarity_pairwise(rows, rows), atol=1e-5)
    assert np.allclose(model.similarity(rows[0], rows)[0], whole[0], atol=1e-6)
    assert np.argmax(whole[1]) == 1 or name == "dot"


def test_neither_the_library_nor_torch_is_imported() -> None:
    program = (
        "import sys, emberd.adapters.sentence_transformers as a; "
        f"a.EmberdSentenceTransformer({QWEN!r}).prompts; "
        "assert not {'torch', 'sentence_transformers'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
