"""What sentence-transformers does with a folder, beside what emberd decides about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import folder_variants
from emberd import Embedder, model_pooling
from emberd.errors import InstructionError
from emberd.settings import Settings
from emberd.verified_manager import Manager
from folder_variants import PROMPTS, Change
from real import traces
from real.engines import HERE, START_S, EngineSide, python_of, run

pytestmark = pytest.mark.full  # minutes: it installs the library and asks it about many folders

_TEXT: Final = "Why is the Sky BLUE at noon?"
_LEAST_COSINE: Final = 0.999

Answer = Mapping[str, Any]
Ask = Callable[[list[dict[str, Any]]], Sequence[Answer]]


@pytest.fixture(scope="module")
def ask(sentences_side: EngineSide) -> Ask:
    """Questions to the answers of the real library."""
    return sentences_side.sentences


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-Embedding checkpoint with the files of sentence-transformers."""
    folder = tmp_path_factory.mktemp("models") / "plain"
    run(python_of("transformers"), HERE / "make_tiny.py", str(folder))
    (folder / PROMPTS).unlink()
    return folder


@pytest.fixture(scope="module")
def variant(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Change], Path]:
    """Copy ``plain``, change the copy, and return it."""

    def copy(change: Change) -> Path:
        folder = tmp_path_factory.mktemp("variant") / "model"
        shutil.copytree(plain, folder)
        change(folder)
        return folder

    return copy


@pytest.fixture(scope="module")
def reference(ask: Ask, plain: Path) -> np.ndarray[Any, Any]:
    """The vector of the text by the last token, scaled to length one."""
    [answer] = ask([{"folder": str(plain), "text": _TEXT}])
    return np.array(answer["vectors"][0])


def test_what_is_served_is_what_the_library_computes(
    ask: Ask, variant: Callable[[Change], Path], reference: np.ndarray[Any, Any]
) -> None:
    folders = [variant(change) for change in folder_variants.SERVED.values()]
    assert [model_pooling.why_unsupported(folder) for folder in folders] == [None] * len(folders)
    answers = ask([{"folder": str(folder), "text": _TEXT} for folder in folders])
    for name, answer in zip(folder_variants.SERVED, answers, strict=True):
        assert "error" not in answer, (name, answer["error"])
        assert np.abs(np.array(answer["vectors"]) - reference).max() < 1e-5, name


def test_what_is_refused_is_what_the_library_computes_otherwise(
    ask: Ask, variant: Callable[[Change], Path], reference: np.ndarray[Any, Any]
) -> None:
    folders = [variant(change) for change, _, _ in folder_variants.REFUSED.values()]
    assert all(model_pooling.why_unsupported(folder) for folder in folders)
    answers = ask([{"folder": str(folder), "text": _TEXT} for folder in folders])
    for name, answer in zip(folder_variants.REFUSED, answers, strict=True):
        if "error" in answer:  # modules that do not fit together, or without weights
            continue
        vector = np.array(answer["vectors"][1])
        same = vector.shape == reference.shape and np.abs(vector - reference).max() < 1e-3
        assert not same, name


def test_prompts_equal_those_of_the_library_to_the_byte(
    ask: Ask, variant: Callable[[Change], Path]
) -> None:
    folders = [
        variant(folder_variants.settings(PROMPTS, described))
        for described in folder_variants.PROMPT_FILES.values()
    ]
    answers = ask([{"folder": str(folder), "text": _TEXT} for folder in folders])
    for name, folder, answer in zip(folder_variants.PROMPT_FILES, folders, answers, strict=True):
        assert "error" not in answer, (name, answer["error"])
        settings = Settings.resolve(model=str(folder))
        ours = [settings.query_template, settings.document_template]
        assert ours == [f"{prompt}{{text}}" for prompt in answer["prompts"]], name


def test_the_library_applies_no_passage_prompt(ask: Ask, variant: Callable[[Change], Path]) -> None:
    """It is documented to; should it ever do so, emberd need not ask the caller any more."""
    described, _ = folder_variants.PROMPT_FILES_REFUSED["passage"]
    folder = variant(folder_variants.settings(PROMPTS, described))
    [answer] = ask([{"folder": str(folder), "text": _TEXT}])
    assert answer["prompts"] == ["q: ", ""]
    with pytest.raises(InstructionError, match="passage"):
        Settings.resolve(model=str(folder))


@contextmanager
def served(folder: Path, home: Path) -> Iterator[Embedder]:
    """Yield an embedder whose server the transformers engine starts; none is left afterwards."""
    manager = Manager(home)
    with traces.all_gone(home):
        yield Embedder(
            folder, engine="transformers", device="cpu", start_timeout=START_S, manager=manager
        )
        manager.stop()


@pytest.mark.parametrize(
    ("document", "applied"),
    [
        pytest.param({"document": "doc: "}, "doc: ", id="document"),
        # The library saves an empty "document" then, and applies that.
        pytest.param({}, "", id="passage-only"),
    ],
)
def test_a_folder_saved_by_the_library_has_its_vectors(
    ask: Ask,
    plain: Path,
    tmp_path: Path,
    document: dict[str, str],
    applied: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = tmp_path / "saved"
    prompts = {"query": "query: ", "passage": "passage: ", **document}
    asked = {"folder": str(plain), "text": _TEXT, "save": str(saved), "prompts": prompts}
    [theirs] = ask([asked])
    assert theirs["prompts"] == ["query: ", applied]
    described = json.loads((saved / folder_variants.POOLING).read_text())
    assert described["pooling_mode"] == "lasttoken"
    with (
        served(saved, tmp_path / "home") as embedder,
        pytest.warns(UserWarning, match=r"passage='passage: '"),
    ):
        ours = [embedder.embed_query(_TEXT), embedder.embed_documents([_TEXT])[0]]
    cosines = [float(np.dot(a, b)) for a, b in zip(ours, theirs["vectors"], strict=True)]
    between = float(np.dot(*ours))
    with capsys.disabled():
        print(
            f"\ncosine to sentence-transformers {theirs['version']}: query {cosines[0]:.6f}, "
            f"document {cosines[1]:.6f}; between the roles {between:.3f}"
        )
    assert min(cosines) >= _LEAST_COSINE
    assert between < _LEAST_COSINE  # or the comparison could not fail
