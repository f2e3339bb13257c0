"""Checkpoints of all kinds: equal to sentence-transformers, or refused before anything starts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from checkpoint_matrix import ENGINES, REFUSED, SERVED, Checkpoint
from emberd import Embedder
from emberd.errors import InstructionError, NoEngineError, StartError
from emberd.verified_manager import Manager
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding
from real.engines import HERE, START_S, EngineSide, run
from real.traces import all_gone

Rows = NDArray[np.float64]

_FAR: Final = 1e-4  # of a number of a vector in float32
_CLEARLY: Final = 1e-2
_FLOORS: Final = 2
_ROUNDING: Final = 1e-6

# Several in one request. The first differs in case, the second by NFC; a special token is found
# before the mark that follows it could be composed with its last character.
_TEXTS: Final = (
    "Why is the Sky BLUE at noon?",
    "Cafe\u0301 re\u0301sume\u0301 A\u030angstro\u0308m",
    "a",
    "A",
    "  spaces before and after  ",
    "你好，世界",
    "<|endoftext|>\u0338 in the middle <|endoftext|> of a text",
    " ".join(f"word {number}" for number in range(40)),
    "  ",
    "",
)


@dataclass(frozen=True)
class Made:
    """A checkpoint that was made, and what sentence-transformers does with it.

    Attributes:
        folder: Its files.
        texts: What was embedded.
        prompts: The prompts of queries and documents; None if the library does not load it.
        exact: Vectors of queries, then of documents, in float32.
        rough: The same in bfloat16.
    """

    folder: Path
    texts: list[str]
    prompts: tuple[str, str] | None
    exact: Rows
    rough: Rows


Make = Callable[[Checkpoint], Made]


@pytest.fixture(scope="module")
def make(sentences_side: EngineSide, tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[int, Made] = {}

    def get(checkpoint: Checkpoint) -> Made:
        if (key := id(checkpoint)) not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / "model"
            made[key] = _make(checkpoint, sentences_side, folder)
        return made[key]

    return get


def _make(checkpoint: Checkpoint, side: EngineSide, folder: Path) -> Made:
    side.make_shape(folder, checkpoint.architecture, checkpoint.habits, checkpoint.config)
    for path, kind in checkpoint.weights.items():
        side.make_module(folder / path, kind)
    checkpoint.write(folder)
    # What an empty text is for a tokenizer that appends nothing is not defined.
    is_ended = "end" in checkpoint.habits
    texts = [text for text in _TEXTS if text or is_ended]
    exact, rough = side.sentences(
        [
            {"folder": str(folder), "text": texts, "dtype": dtype}
            for dtype in ("float32", "bfloat16")
        ]
    )
    if "error" in exact:
        return Made(folder, texts, None, np.empty((0, 0)), np.empty((0, 0)))
    query, document = exact["prompts"]
    vectors = [np.concatenate(each["vectors"]) for each in (exact, rough)]
    return Made(folder, texts, (query, document), *vectors)


def _unit(rows: Rows) -> Rows:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms, norms, 1)  # sentence-transformers has zeros for some


def _cases(kinds: Sequence[Checkpoint], *, per_engine: bool) -> list[Any]:
    """Return parameters; a start of SGLang takes too long for ``make test-sglang``."""
    found = []
    for number, each in enumerate(kinds):
        name = f"{number}-{each.architecture}"
        if not per_engine:
            marks = [] if each.is_quick else [pytest.mark.full]
            found.append(pytest.param(each, marks=marks, id=name))
            continue
        for engine in [one for one in ENGINES if one not in {*each.refused, *each.like}]:
            marks = [] if each.is_quick and engine != "sglang" else [pytest.mark.full]
            found.append(pytest.param(each, engine, marks=marks, id=f"{name}-by-{engine}"))
    return found


@contextmanager
def _engine(engine: str, home: Path) -> Iterator[None]:
    """Let every class start its own server by this engine; none is left afterwards."""
    with pytest.MonkeyPatch.context() as patch, all_gone(home), warnings.catch_warnings():
        # That emberd has not compared the architecture with a reference; this does.
        warnings.simplefilter("ignore", UserWarning)
        patch.setenv("EMBERD_HOME", str(home))
        patch.setenv("EMBERD_ENGINE", engine)
        patch.setenv("EMBERD_DEVICE", "cpu")
        patch.setenv("EMBERD_START_TIMEOUT", f"{START_S}s")
        if engine == "transformers":
            patch.setenv("EMBERD_ENGINE_ARGS", "--dtype float32")
        try:
            yield
        finally:
            Manager(home).stop()


def _embed(made: Made, given: Any) -> Rows:
    """Return the vectors of queries, then of documents; both frameworks have the same."""
    model, texts = str(made.folder), made.texts
    chain = EmberdEmbeddings(model=model, **given)
    by_chain = [*map(chain.embed_query, texts), *chain.embed_documents(texts)]
    # LlamaIndex calls documents texts.
    named = {name.replace("document_", "text_"): value for name, value in given.items()}
    index = EmberdEmbedding(model_name=model, embed_batch_size=64, **named)
    by_index = [*map(index.get_query_embedding, texts), *index.get_text_embedding_batch(texts)]
    assert np.abs(np.array(by_chain) - np.array(by_index)).max() < _FAR
    return np.array(by_chain)


@pytest.mark.parametrize(("checkpoint", "engine"), _cases(SERVED, per_engine=True))
def test_what_is_served_has_the_vectors_of_sentence_transformers(
    make: Make,
    checkpoint: Checkpoint,
    engine: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = make(checkpoint)
    assert made.prompts is not None
    with _engine(engine, tmp_path / "home"):
        ours = _unit(_embed(made, checkpoint.given))
    exact, rough = _unit(made.exact), _unit(made.rough)
    far = np.abs(ours - exact).max()
    apart, floor = (1 - np.sum(rows * exact, axis=1) for rows in (ours, rough))
    with capsys.disabled():
        print(
            f"\n{checkpoint.architecture} by {engine}: greatest difference {far:.2e}, 1 - cosine "
            f"{apart.max():.2e}, of bfloat16 {floor.max():.2e} ({checkpoint.says[:50]})"
        )
    if engine == "transformers":
        assert far < _FAR
        return
    for most in (np.max, np.median):
        assert most(apart) <= _FLOORS * most(floor) + _ROUNDING
    # Two texts must not be alike, or the comparison would prove nothing.
    assert _ROUNDING < floor.max() < _CLEARLY


@pytest.mark.parametrize("checkpoint", _cases((*SERVED, *REFUSED), per_engine=False))
def test_a_refusal_names_its_reason_before_anything_starts(
    make: Make, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    made = make(checkpoint)
    for engine, reason in checkpoint.refused.items():
        # Only the tokenizer itself shows what it appends: the server refuses, at its start.
        kinds = (StartError,) if "does not end" in reason else (NoEngineError, InstructionError)
        home = tmp_path / engine
        with _engine(engine, home), pytest.raises(kinds, match=reason) as raised:
            Embedder(made.folder, **checkpoint.given).ensure()
        assert raised.type in kinds
        if StartError not in kinds:
            assert not list(home.rglob("record.json"))


@pytest.mark.parametrize(
    "checkpoint",
    # What else is shown is SGLang's.
    _cases([each for each in REFUSED if each.shown not in {"batch", "start"}], per_engine=False),
)
def test_a_refusal_is_necessary_or_said_to_be_conservative(
    make: Make,
    sentences_side: EngineSide,
    checkpoint: Checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = make(checkpoint)
    if made.prompts is None:
        assert checkpoint.shown == "fails"
        return
    prompted = [prompt + text for prompt in made.prompts for text in made.texts]
    rows = [row for row, text in enumerate(prompted) if text]
    engines = sentences_side.pooled(
        made.folder, [prompted[row] for row in rows], checkpoint.pooled_token, checkpoint.computed
    )
    exact = made.exact[rows]
    is_unit = np.allclose(np.linalg.norm(exact, axis=1), 1, atol=1e-3)
    same_size = exact.shape == engines.shape
    far = np.abs(_unit(exact) - engines).max() if same_size else np.inf
    with capsys.disabled():
        print(
            f"\n{checkpoint.architecture}: greatest difference between sentence-transformers and "
            f"what the engines compute {far:.2e} ({checkpoint.says[:60]})"
        )
    found = "differs" if far > _CLEARLY else "norm" if not is_unit else "same"
    assert found == checkpoint.shown


@pytest.mark.full
def test_the_mean_of_sglang_depends_on_the_batch(
    sglang_python: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Why ``sglang`` serves no mean: should this fail one day, it may."""
    least = json.loads(run(sglang_python, HERE / "sglang_mean.py"))
    with capsys.disabled():
        print(f"\nleast cosine of SGLang's mean with the exact one: {least}")
    assert least["alone"] > 0.9999
    assert least["batch"] < 0.99
