"""Scores of a model by MTEB: on four small tasks that need no download, or on tasks of MTEB.

    python examples/demo/quality.py emberd/demo
    python examples/demo/quality.py Qwen/Qwen3-Embedding-4B --tasks SciFact STSBenchmark

Needs ``pip install './backend[demo,mteb]'``. The model's server is found, or started.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import re
from typing import Any, ClassVar, Final

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskPairClassification, AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata

import passages
from emberd.adapters.mteb import EmberdEncoder

_MODULES: Final = ("ast", "codecs", "inspect", "logging", "platform", "pydoc", "tkinter")
_TRAINED_ON: Final = 6  # texts of each module
_HEADING: Final = re.compile(r"(.+)\n[*=~-]+\n")
_MOST_CHARACTERS: Final = 1000


def _metadata(name: str, kind: Any, score: str, description: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        type=kind,
        main_score=score,
        description=description,
        reference="https://emberd.invalid/docs/quality",
        dataset={"path": "NA", "revision": "NA"},
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2026-01-01", "2026-11-29"),
        dialect=[],
        domains=["Written"],
        task_subtypes=[],
        license="mit",
        annotations_creators="derived",
        modalities=["text"],
        sample_creation="found",
        bibtex_citation="",
    )


class _Retrieval(AbsTaskRetrieval):
    """A retrieval whose answers are the documents with the ids of the queries' answers."""

    def _use(self, documents: dict[str, str], queries: list[tuple[str, str]]) -> None:
        named = {f"q{number}": query for number, query in enumerate(queries)}
        split = {
            "corpus": Dataset.from_list(
                [{"id": each, "title": "", "text": text} for each, text in documents.items()]
            ),
            "queries": Dataset.from_list(
                [{"id": each, "text": text} for each, (text, _) in named.items()]
            ),
            "relevant_docs": {each: {answer: 1} for each, (_, answer) in named.items()},
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class MultilingualAnswers(_Retrieval):
    """Passages that answer questions in other languages too."""

    metadata = _metadata(
        "MultilingualAnswers",
        "Retrieval",
        "ndcg_at_10",
        "Questions in ten languages, and passages.",
    )

    def load_data(self, *_args: Any, **_kwargs: Any) -> None:
        """Take the set of the demo."""
        found = passages.multilingual()
        queries = [(question.text, str(question.answer)) for question in found.questions]
        self._use({passage.id: passage.text for passage in found.passages}, queries)


class PythonReference(_Retrieval):
    """Sections of Python's language reference, which is part of each Python, by their headings."""

    metadata = _metadata(
        "PythonReference", "Retrieval", "ndcg_at_10", "Headings and sections of the reference."
    )

    def load_data(self, *_args: Any, **_kwargs: Any) -> None:
        """Separate the headings from the sections."""
        documents, queries = {}, []
        for name, text in sorted(pydoc_data.topics.topics.items()):
            heading = _HEADING.match(text)
            if heading is not None:
                documents[name] = text[heading.end() :].strip()[:_MOST_CHARACTERS]
                queries.append((heading.group(1).replace('"', ""), name))
        self._use(documents, queries)


class PythonModules(AbsTaskClassification):
    """Docstrings of the standard library, by the module that they are of."""

    metadata = _metadata(
        "PythonModules", "Classification", "accuracy", "Docstrings of the standard library."
    )
    samples_per_label: ClassVar[int] = _TRAINED_ON

    def load_data(self, *_args: Any, **_kwargs: Any) -> None:
        """Train on the first docstrings of each module, and test on the others."""
        splits: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
        seen = dict.fromkeys(_MODULES, 0)
        for passage in passages.of_python(100_000):
            module = passage.source.partition(".")[0]
            if module in seen:
                split = "train" if seen[module] < _TRAINED_ON else "test"
                splits[split].append({"text": passage.text, "label": _MODULES.index(module)})
                seen[module] += 1
        self.dataset = DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
        self.data_loaded = True


class AnswerPairs(AbsTaskPairClassification):
    """Pairs of a question and a passage: the one that answers it, or the next one."""

    metadata = _metadata(
        "AnswerPairs", "PairClassification", "similarity_ap", "Whether a passage answers."
    )

    def load_data(self, *_args: Any, **_kwargs: Any) -> None:
        """Pair each question with its answer, and with the passage after that."""
        found = passages.multilingual()
        ids = [passage.id for passage in found.passages]
        rows: dict[str, list[Any]] = {"sentence1": [], "sentence2": [], "labels": []}
        for question in found.questions:
            place = ids.index(str(question.answer))
            for offset, label in ((0, 1), (1, 0)):
                rows["sentence1"].append(question.text)
                rows["sentence2"].append(found.passages[(place + offset) % len(ids)].text)
                rows["labels"].append(label)
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows)})
        self.data_loaded = True


TASKS: Final = (MultilingualAnswers, PythonReference, PythonModules, AnswerPairs)


def scores(encoder: EmberdEncoder, tasks: list[Any] | None = None) -> dict[str, float]:
    """Return the main score of each task, by its name."""
    chosen = [task() for task in TASKS] if tasks is None else tasks
    result = mteb.evaluate(encoder, chosen, cache=None, show_progress_bar=False)
    return {each.task_name: float(each.get_score()) for each in result.task_results}


def main() -> None:
    """Print the scores."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", help="name on the hub, or a folder")
    parser.add_argument("--dimensions", type=int)
    parser.add_argument("--tasks", nargs="+", help="tasks of MTEB, which downloads their data")
    given = parser.parse_args()
    tasks = None if given.tasks is None else list(mteb.get_tasks(tasks=given.tasks))
    settings = {"dimensions": given.dimensions} if given.dimensions else {}
    found = scores(EmberdEncoder(given.model, **settings), tasks)
    bare = scores(EmberdEncoder(given.model, query_instruction="", **settings), tasks)
    print(f"{'task':24} {'score':>6}   without the template of queries")
    for name, score in found.items():
        print(f"{name:24} {score:6.3f}   {bare[name]:.3f}")


if __name__ == "__main__":
    main()
