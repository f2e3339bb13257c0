"""The examples run unmodified and find the expected passages."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pytest

import managed
from command import TIMEOUT_S, Outcome, run_program
from emberd import Embedder
from fake_reranker import MODEL as RERANKER
from fake_reranker import FakeReranker, score_of, tokenize
from fake_server import FakeServer
from homes import home, manager
from managed import MODEL, stopped_at_the_end
from source_tree import ROOT

__all__ = ["home", "manager", "stopped_at_the_end"]

EXAMPLES: Final = ROOT / "examples"
QWEN: Final = "Qwen/Qwen3-Embedding-4B"

_FOUND = [
    ("Why is the Baltic almost fresh water?", "The Baltic Sea has little salt"),
    ("¿Quién ganó el Nobel en dos ciencias?", "Marie Curie"),
    ("面团要发酵多久？", "Sourdough rises slowly"),
]
_FOUND_ACROSS_LANGUAGES = [
    ("Como as abelhas indicam onde estão as flores?", "蜜蜂用舞蹈"),
    ("У кого две Нобелевские премии?", "Marie Curie"),
    ("Perché il Baltico è così poco salato?", "The Baltic Sea"),
    ("How long does bread dough take to rise?", "Sauerteig"),
    ("¿Cuándo abrió el metro de la capital rusa?", "Метро в Москве"),
    ("如果持有锁的进程已经退出怎么办？", "Un verrou est périmé"),
]
_ANSWERED = [
    ("Why is my espresso unpleasant?", "Coffee tastes bitter", "kitchen.md"),
    ("When is the best time to water the vegetables?", "Tomatoes are watered", "garden.md"),
    ("Warum quietscht mein Rad?", "A bicycle chain squeaks", "garage.md"),
]
_FUNCTIONS = [
    ("strip the common leading whitespace from lines", "textwrap", "dedent"),
    ("is this a leap year", "calendar", "isleap"),
    ("quote an argument so that the shell takes it as one word", "shlex", "quote"),
    ("Wie kürze ich einen Text auf eine Höchstlänge?", "textwrap", "shorten"),
]


def _run(*command: object, **more: str) -> Outcome:
    """Run a program in a fork of a process that has imported both frameworks."""
    return run_program(*map(str, command), environment=managed.environment(**more))


def _output_of(*command: object, **more: str) -> str:
    """Run a program, check that it succeeds without messages, and return its output."""
    return _checked_output(_run(*command, **more))


def _output_of_new_interpreter(example: Path) -> str:
    """Return the same for an example in a new interpreter, which has imported nothing."""
    done = subprocess.run(
        [sys.executable, str(example)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=managed.environment(PYTHONIOENCODING="utf-8"),
        timeout=TIMEOUT_S,
    )
    return _checked_output(Outcome(done.returncode, done.stdout, done.stderr))


def _checked_output(done: Outcome) -> str:
    assert (done.code, done.err) == (0, "")
    return done.out


# ---------------------------------------------------------------- search


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("langchain_search.py", _FOUND),
        ("llama_index_search.py", _FOUND),
        ("cross_lingual.py", _FOUND_ACROSS_LANGUAGES),
    ],
)
def test_a_search_finds_the_passages(name: str, found: list[tuple[str, str]]) -> None:
    output = _output_of_new_interpreter(EXAMPLES / name)  # one with each framework, one with none
    hits = re.findall(r"^(\S.*)\n  0\.\d{3}  (.*)$", output, re.MULTILINE)
    assert [query for query, _ in hits] == [query for query, _ in found]
    assert all(hit.startswith(start) for (_, hit), (_, start) in zip(hits, found, strict=True))


def test_code_search_finds_functions_by_description() -> None:
    output = _output_of(EXAMPLES / "code_search.py")
    assert "a query is sent as 'query: {text}'" in output
    hits = re.findall(r"^(\S.*)\n  0\.\d{3}  (\w+)\.py:\d+ (\w+)$", output, re.MULTILINE)
    assert hits == _FUNCTIONS


def test_code_queries_have_the_code_task_if_the_model_takes_one() -> None:
    with FakeServer(model=QWEN, dimensions=2560, context_tokens=5000) as server:
        _output_of(EXAMPLES / "code_search.py", QWEN, EMBERD_BASE_URL=server.url)
        sent = [text for texts in server.embedded for text in texts]
    queries = [text for text in sent if text.startswith("Instruct: Given a question about coding,")]
    assert {text.partition("\nQuery:")[2] for text in queries} == {
        query for query, *_ in _FUNCTIONS
    }
    assert any(text.startswith("def dedent(") for text in sent), "documents are sent unmodified"


# ---------------------------------------------------------------- answers and agents


@pytest.mark.parametrize("name", ["langchain_rag.py", "llama_index_query_engine.py"])
def test_answer_comes_from_the_retrieved_passage(name: str) -> None:
    answers = re.findall(
        r"^(\S.*)\n  (.*) \((\w+\.md)\b.*\)$", _output_of(EXAMPLES / name), re.MULTILINE
    )
    assert [(query, file) for query, _, file in answers] == [(q, file) for q, _, file in _ANSWERED]
    assert all(
        answer.startswith(start)
        for (_, answer, _), (_, start, _) in zip(answers, _ANSWERED, strict=True)
    )


def test_an_agent_looks_up_each_part_of_the_question() -> None:
    *calls, answer = _output_of(EXAMPLES / "langchain_agent.py").splitlines()
    assert calls == [
        "tool    What do I do with a laptop that fell down?",
        "tool    When can I have lunch?",
    ]
    assert re.fullmatch(r"answer  Broken equipment .*\. The canteen serves .*\.", answer)


# ---------------------------------------------------------------- reranking


@pytest.mark.parametrize("name", ["langchain_rerank.py", "llama_index_rerank.py"])
def test_the_best_five_of_fifty_retrieved_passages_are_shown(name: str) -> None:
    with FakeReranker() as server:
        output = _output_of(EXAMPLES / name, **_reranker_at(server))
        scores = {
            item: score_of([*tokenize(item), server.weights])
            for items in server.scored
            for item in items
        }
    (query, *_), *found = (line.split("  ") for line in output.splitlines())
    own = [score for item, score in scores.items() if f"<Query>: {query}\n" in item]
    assert len(own) == 50
    assert [float(score) for _, score, _ in found] == pytest.approx(
        sorted(own, reverse=True)[:5], abs=0.0005
    )
    assert all(re.fullmatch(r"[a-z.]+\.\w+", function) for *_, function in found)


def _reranker_at(server: FakeReranker) -> dict[str, str]:
    return {"EMBERD_RERANK_MODEL": RERANKER, "EMBERD_RERANK_BASE_URL": server.url}


# ---------------------------------------------------------------- saved indexes


@pytest.mark.parametrize("name", ["langchain_saved_index.py", "llama_index_saved_index.py"])
def test_saved_index_can_be_reopened_and_rejects_another_identity(name: str) -> None:
    saved, found, refused = _output_of(EXAMPLES / name).splitlines()
    own = Embedder(MODEL).identity
    other = Embedder(MODEL, document_instruction="query: {text}").identity
    assert saved == f"saved   {own}"
    assert found.startswith("found   Marie Curie")
    assert refused.startswith("refused ")
    assert refused.index(repr(own)) < refused.index(repr(other))


# ---------------------------------------------------------------- dimensions


def _table(output: str) -> dict[int, list[float]]:
    """Return the rows: dimensions, then recall at 1, 5, 10, and megabytes."""
    rows = re.findall(
        r"^ *(\d+) +(\d\.\d\d) +(\d\.\d\d) +(\d\.\d\d) +([\d,]+)$", output, re.MULTILINE
    )
    return {int(n): [float(figure.replace(",", "")) for figure in row] for n, *row in rows}


def test_recall_is_measured_at_each_length_of_vectors() -> None:
    output = _output_of(EXAMPLES / "choose_dimensions.py")
    rows = _table(output)
    assert list(rows) == [32, 64, 128, 256, 384]
    assert [row[-1] for row in rows.values()] == [128, 256, 512, 1024, 1536]
    assert all(at_1 <= at_5 <= at_10 for at_1, at_5, at_10, _ in rows.values())
    assert rows[384][1] >= 0.9, "nearly all answers are among the five nearest, at native length"
    assert rows[32][1] < rows[384][1]
    assert "E5 was not trained to be cut. Qwen3-Embedding was" in output


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small data set in which each query is the text of its answer."""
    texts = managed.PASSAGES.items()
    small = {
        "passages": [{"id": name, "text": text} for name, text in texts],
        "queries": [{"text": text, "answer": name} for name, text in texts],
    }
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(small))
    return file


def test_recall_is_measured_on_user_data(data: Path) -> None:
    with FakeServer(model=QWEN, dimensions=2560) as server:
        # The fake server's vectors only show whether two texts are equal.
        environment = {"EMBERD_BASE_URL": server.url, "EMBERD_QUERY_INSTRUCTION": "{text}"}
        arguments = ("--model", QWEN, "--data", data)
        output = _output_of(EXAMPLES / "choose_dimensions.py", *arguments, **environment)
    assert output.startswith(f"{QWEN}: 4 passages, 4 questions\n")
    assert list(_table(output)) == [32, 64, 128, 256, 512, 1024, 2000, 2560]
    assert {tuple(row[:3]) for row in _table(output).values()} == {(1.0, 1.0, 1.0)}
    assert "E5" not in output


def test_the_example_cuts_vectors_as_the_embedder_does() -> None:
    cut = runpy.run_path(str(EXAMPLES / "choose_dimensions.py"))["cut"]
    embedder, texts = Embedder(MODEL), list(managed.PASSAGES.values())
    with pytest.warns(UserWarning, match="not trained"):
        short = embedder.using(dimensions=64).embed_documents(texts)
    assert managed.same(cut(embedder.embed_documents(texts), 64), short)
    assert np.shape(short) == (4, 64)


def test_recall_is_plotted(data: Path, tmp_path: Path) -> None:
    picture = tmp_path / "recall.svg"
    arguments = ("--data", data, "--plot", picture)
    _output_of(EXAMPLES / "choose_dimensions.py", *arguments, MPLCONFIGDIR=str(tmp_path))
    svg = picture.read_text()
    assert all(f"<!-- {text} -->" in svg for text in ("recall@1", "recall@10", "1.5 GB"))


def test_missing_matplotlib_prints_the_table_and_what_to_install(data: Path) -> None:
    program = (
        "import runpy, sys; sys.modules['matplotlib'] = None; del sys.argv[0]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = ("--data", data, "--plot", "nowhere.png")
    done = _run("-c", program, EXAMPLES / "choose_dimensions.py", *arguments)
    assert done.code == 1
    assert done.err == "--plot needs matplotlib: pip install matplotlib\n"
    assert len(_table(done.out)) == 5


# ---------------------------------------------------------------- all of them


def test_list_of_examples_is_complete() -> None:
    listed = re.findall(r"^\| \[`(.+)`\]\(\1\) \|", _text(EXAMPLES / "README.md"), re.MULTILINE)
    there = {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"}
    assert sorted(listed) == sorted({*there, "demo/"})
    tests = _text(Path(__file__))
    assert [name for name in there if f'"{name}"' not in tests] == [], (
        "each example has a test in this file"
    )


def test_each_example_is_short() -> None:
    lines = {path.name: len(_text(path).splitlines()) for path in EXAMPLES.glob("*.py")}
    assert {name: count for name, count in lines.items() if count > 120} == {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
