"""The short text that is kept beside an index."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emberd import Embedder, IdentityError, SettingError

QWEN = "Qwen/Qwen3-Embedding-4B"


def _of(**settings: Any) -> str:
    return Embedder(**{"model": QWEN, **settings}).identity


def _folder(place: Path, hidden_size: int = 64) -> Path:
    place.mkdir(parents=True)
    config = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": hidden_size}
    (place / "config.json").write_text(json.dumps(config))
    prompts = {"prompts": {"query": "", "document": ""}}
    (place / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return place


def test_an_identity_can_be_read_by_people_and_is_short() -> None:
    made = _of(dimensions=1024, revision="0123abc", query_instruction="")
    assert made == f"emberd:{QWEN}?revision=0123abc&dimensions=1024&query=bare&document=bare"
    assert len(_of()) < 120


def test_an_identity_names_the_quantisation() -> None:
    query = "quantization=fp8&dimensions=2560&query=67aa60b382aff44f&document=bare"
    assert _of(quantization="fp8") == f"emberd:{QWEN}?{query}"
    with pytest.raises(IdentityError, match="quantization fp8 there, None here"):
        Embedder(QWEN).check_identity(_of(quantization="fp8"))


def test_an_identity_is_the_same_in_every_process_and_release() -> None:
    """What was kept beside an index years ago must still fit."""
    assert _of() == f"emberd:{QWEN}?dimensions=2560&query=67aa60b382aff44f&document=bare"


@pytest.mark.parametrize(
    "given",
    [
        {"model": "Qwen/Qwen3-Embedding-8B"},
        {"revision": "0123abc"},
        {"quantization": "fp8"},
        {"dimensions": 1024},
        {"query_instruction": "code"},
        {"document_instruction": "body: {text}"},
        {"symmetric": True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_decides_a_vector_makes_another_identity(given: dict[str, Any]) -> None:
    assert _of(**given) != _of()


@pytest.mark.parametrize(
    "given",
    [
        {"dimensions": 2560},
        {"query_instruction": "web"},
        {"document_instruction": ""},
        {"base_url": "http://127.0.0.1:9", "api_key": "made-up-key"},
        {"engine": "sglang", "device": "cuda", "context_tokens": 300},
        {"batch_size": 3, "max_concurrency": 2, "timeout": 9, "idle_timeout": None},
        {"server_dimensions": True, "truncate": True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_comes_to_the_same_vectors_has_the_same_identity(given: dict[str, Any]) -> None:
    assert _of(**given) == _of()


def test_a_folder_is_known_by_its_files_wherever_it_lies(tmp_path: Path) -> None:
    one = _folder(tmp_path / "here" / "tiny model")
    copied = shutil.copytree(one, tmp_path / "there" / "tiny model")
    other = _folder(tmp_path / "other" / "tiny model", hidden_size=128)
    assert _of(model=str(one)) == _of(model=str(copied)) != _of(model=str(other))
    assert _of(model=str(one)).startswith("emberd:tiny%20model?content=")


def test_an_identity_of_a_model_that_nobody_described_says_native() -> None:
    assert "dimensions=native" in _of(
        model="some/model", query_instruction="", document_instruction=""
    )


@pytest.mark.parametrize("model", ["BAAI/bge-m3", "thenlper/gte-large-zh"])
def test_an_index_from_before_the_model_was_known_still_fits(model: str) -> None:
    bare: dict[str, Any] = {"query_instruction": "", "document_instruction": ""}
    kept = f"emberd:{model}?dimensions=native&query=bare&document=bare"
    Embedder(model, **bare).check_identity(kept)
    Embedder(model, dimensions=1024, **bare).check_identity(kept)
    with pytest.raises(IdentityError, match="dimensions 1024 there, 512 here"):
        Embedder(model, dimensions=512, **bare).check_identity(kept)


def test_the_same_identity_passes_and_another_is_refused_by_both_names() -> None:
    embedder = Embedder(QWEN, dimensions=1024)
    embedder.check_identity(_of(dimensions=1024))
    kept = _of(dimensions=512)
    with pytest.raises(IdentityError) as caught:
        embedder.check_identity(kept)
    assert repr(kept) in str(caught.value)
    assert repr(embedder.identity) in str(caught.value)
    assert "dimensions 512 there, 1024 here" in str(caught.value)
    assert (caught.value.kept, caught.value.now) == (kept, embedder.identity)


def test_every_difference_is_told() -> None:
    with pytest.raises(IdentityError) as caught:
        Embedder("emberd/demo").check_identity(_of(revision="0123abc"))
    told = str(caught.value)
    for name in ("model", "revision", "dimensions", "query", "document"):
        assert f"{name} " in told.partition(": ")[2]
    assert "revision 0123abc there, None here" in told
    assert "document bare there, 'passage: {text}' here" in told, "a hash would tell nobody"


def test_another_question_for_the_same_documents_is_told_to_be_harmless_where_it_is() -> None:
    with pytest.raises(IdentityError, match="Only queries differ"):
        Embedder(QWEN, query_instruction="code").check_identity(_of())
    with pytest.raises(IdentityError) as caught:
        Embedder(QWEN, symmetric=True, document_instruction="similarity").check_identity(_of())
    assert "Only queries differ" not in str(caught.value)


def test_white_space_and_order_do_not_count() -> None:
    """As of a file that ``echo`` wrote, or a database that sorts."""
    embedder = Embedder(QWEN, dimensions=1024)
    model, _, rest = embedder.identity.partition("?")
    embedder.check_identity(f" {model}?{'&'.join(sorted(rest.split('&')))}\n")
    Embedder("qwen/qwen3-embedding-4b").check_identity(_of())


def test_an_object_keeps_its_identity_and_never_serves_what_a_folder_holds_later(
    tmp_path: Path,
) -> None:
    folder = _folder(tmp_path / "tiny")
    embedder = Embedder(str(folder))
    before = embedder.identity
    (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "trained": "again"}))
    assert embedder.identity == embedder.using(truncate=True).identity == before
    assert Embedder(str(folder)).identity != before
    with pytest.raises(SettingError, match="have changed since this object was made"):
        embedder.embed_query("a")


@pytest.mark.parametrize("kept", ["", "text-embedding-3-small", None, 1024])
def test_what_is_no_identity_is_refused(kept: Any) -> None:
    with pytest.raises(IdentityError, match="is not an identity of emberd"):
        Embedder(QWEN).check_identity(kept)


def test_the_error_crosses_processes() -> None:
    with pytest.raises(IdentityError) as caught:
        Embedder(QWEN).check_identity(_of(dimensions=64))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.kept) == (str(caught.value), caught.value.kept)


def test_no_hash_of_this_process_is_in_an_identity() -> None:
    code = f"import emberd; print(emberd.Embedder({QWEN!r}).identity)"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {_of()}
