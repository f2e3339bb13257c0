"""Names of models, and the fields that say the same."""

from __future__ import annotations

import time
from typing import Any

import pytest

from emberd import Embedder
from emberd.errors import SettingError
from emberd.gateway.names import Asked, of_fields, split
from emberd.gateway.served_models import ServedModels
from emberd.serving.bodies import RefusedError

QWEN = "Qwen/Qwen3-Embedding-4B"
FOLDER = "/models/my:query"
KNOWN = {QWEN.casefold(): QWEN, "qwen3-embedding-4b": QWEN, FOLDER: FOLDER}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("qwen3-embedding-4b", Asked()),
        ("Qwen/Qwen3-Embedding-4B", Asked()),
        ("QWEN3-Embedding-4B:query", Asked("query")),
        ("qwen3-embedding-4b:document", Asked("document")),
        ("qwen3-embedding-4b@768", Asked(dimensions=768)),
        ("qwen3-embedding-4b@768:query", Asked("query", dimensions=768)),
        ("qwen3-embedding-4b:query@768", Asked("query", dimensions=768)),
        ("qwen3-embedding-4b:query?task=code", Asked("query", "code")),
        ("qwen3-embedding-4b@8?task=similarity", Asked(None, "similarity", 8)),
        ("qwen3-embedding-4b:query?task=Find%20the%20law", Asked("query", "Find the law")),
        ("qwen3-embedding-4b?task=code.query", Asked("query", "code")),
        ("qwen3-embedding-4b:query?task=Find+C++ code", Asked("query", "Find+C++ code")),
        ("qwen3-embedding-4b:query?task=C%2B%2B %26 C", Asked("query", "C++ & C")),
        ("qwen3-embedding-4b?truncate=true", Asked(truncate=True)),
        (
            "qwen3-embedding-4b:query?task={text}&truncate=false",
            Asked("query", "{text}", None, False),
        ),
    ],
)
def test_a_name_says_model_role_task_and_dimensions(given: str, expected: Asked) -> None:
    assert split(given, KNOWN) == (QWEN, expected)


def test_a_folder_whose_name_looks_like_a_suffix_is_not_split() -> None:
    assert split(FOLDER, KNOWN) == (FOLDER, Asked())
    assert split(f"{FOLDER}:query", KNOWN) == (FOLDER, Asked("query"))


@pytest.mark.parametrize("folder", ["/models/what?", "/a?b:query@8", "/a?task=x", "/a@b:c?", "/a?"])
def test_the_name_of_a_folder_may_contain_what_separates_the_parts(folder: str) -> None:
    known = {**KNOWN, folder: folder, "/a": "/a"}
    for more, asked in [
        ("", Asked()),
        (":query", Asked("query")),
        ("@8", Asked(dimensions=8)),
        ("?task=code", Asked(None, "code")),
        ("@8:query?task=Why? Who?", Asked("query", "Why? Who?", 8)),
    ]:
        assert split(folder + more, known) == (folder, asked)
    assert split("/a:query?task=Who?", known) == ("/a", Asked("query", "Who?"))


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("", 404),
        ("Qwen/Qwen3-Embedding-8B", 404),
        ("other/qwen3-embedding-4b", 404),
        ("qwen3-embedding-4b:latest", 404),
        ("qwen3-embedding-4b@x", 404),
        ("../../etc/passwd", 404),
        ("qwen3-embedding-4b:query:document", 400),
        ("qwen3-embedding-4b@8@16", 400),
        ("qwen3-embedding-4b?size=8", 400),
        ("qwen3-embedding-4b?task", 400),
        ("qwen3-embedding-4b?task=", 400),
        ("qwen3-embedding-4b:query?task=code&task=web", 400),
        ("qwen3-embedding-4b:query?task=%20", 400),
        ("qwen3-embedding-4b?truncate=", 400),
        ("qwen3-embedding-4b?truncate=END", 400),
        ("qwen3-embedding-4b?truncate=true&truncate=false", 400),
        ("qwen3-embedding-4b:query?task=%ff", 400),
        ("qwen3-embedding-4b:query:query", 400),
        ("qwen3-embedding-4b@8:query@8", 400),
        ("qwen3-embedding-4b" + ":query" * 700, 400),
    ],
)
def test_other_names_are_refused(given: str, status: int) -> None:
    with pytest.raises(RefusedError) as refused:
        split(given, KNOWN)
    assert refused.value.status == status


def test_a_long_name_is_refused_at_once() -> None:
    before = time.process_time()
    with pytest.raises(RefusedError) as refused:
        split("x" + ":query" * 100_000, KNOWN)
    assert refused.value.status == 400
    assert time.process_time() - before < 1  # quadratic time would be many seconds


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Asked()),
        ({"input_type": None, "task": None, "dimensions": None}, Asked()),
        ({"input_type": "search_query"}, Asked("query")),
        ({"input_type": "search_document"}, Asked("document")),
        ({"input_type": "query"}, Asked("query")),
        ({"input_type": "passage"}, Asked("document")),
        ({"input_type": "clustering"}, Asked(task="clustering")),
        ({"task": "retrieval.query"}, Asked("query")),
        ({"task": "retrieval.passage"}, Asked("document")),
        ({"task": "text-matching"}, Asked(task="similarity")),
        ({"task": "Retrieval.Query"}, Asked("query")),
        ({"task": "separation"}, Asked(task="clustering")),
        ({"input_type": "query", "task": "code"}, Asked("query", "code")),
        ({"dimensions": 8}, Asked(dimensions=8)),
        ({"dimensions": 8.0, "output_dimension": 8}, Asked(dimensions=8)),
        ({"output_dimension": 8}, Asked(dimensions=8)),
        ({"truncate": True}, Asked(truncate=True)),
        ({"truncate": "NONE"}, Asked(truncate=False)),
    ],
)
def test_fields_of_other_clients_say_role_and_task(fields: dict[str, Any], expected: Asked) -> None:
    assert of_fields(fields) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"input_type": "image"},
        {"input_type": 1},
        {"task": ["code"]},
        {"task": "x" * 2001},
        {"task": ""},
        {"task": " "},
        {"task": "{text} {text}"},
        {"dimensions": 0},
        {"dimensions": 0.0},
        {"dimensions": 8.5},
        {"dimensions": float("inf")},
        {"dimensions": True},
        {"dimensions": "8"},
        {"truncate": "START"},
        {"truncate": 1.5},
        {"dimensions": 8, "output_dimension": 16},
        {"input_type": "document", "task": "retrieval.query"},
    ],
)
def test_other_values_and_contradictions_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as refused:
        of_fields(fields)
    assert refused.value.status == 400


@pytest.mark.parametrize("names", [("org/Model", "org/model"), ("org/model", "org/model")])
def test_models_whose_names_differ_only_in_case_are_refused(names: tuple[str, str]) -> None:
    bare: dict[str, Any] = {"query_instruction": "", "document_instruction": ""}
    users = [Embedder(name, base_url="http://127.0.0.1:9", **bare) for name in names]
    with pytest.raises(SettingError):
        ServedModels(users)


def test_name_and_field_must_not_contradict_each_other() -> None:
    assert Asked("query").joined(Asked("query", dimensions=8)) == Asked("query", None, 8)
    with pytest.raises(RefusedError):
        Asked("query").joined(Asked("document"))
