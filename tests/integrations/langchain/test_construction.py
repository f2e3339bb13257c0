"""``EmberdEmbeddings`` before its first use: fields, secrets, copies, pickles."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import logging
import pickle
from typing import Any

import pytest
from langchain_core.embeddings import Embeddings
from pydantic import SecretStr, ValidationError

from emberd import EmberdError, IdentityError, Settings
from langchain_emberd import EmberdEmbeddings

KEY = "sk-made-up"
SECRET = SecretStr(KEY)
NOWHERE = "http://127.0.0.1:9"
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def test_the_fields_are_all_settings_of_emberd_under_langchain_names() -> None:
    settings = {field.name for field in dataclasses.fields(Settings)}
    assert set(EmberdEmbeddings.model_fields) == settings - {"show_progress"} | {
        "show_progress_bar"
    }


def test_the_defaults_are_those_of_emberd() -> None:
    embeddings, plain = EmberdEmbeddings(), Settings()
    shown = embeddings.model_dump(exclude={"query_instruction", "document_instruction"})
    assert shown.pop("show_progress_bar") is plain.show_progress
    assert shown == {name: getattr(plain, name) for name in shown}
    assert isinstance(embeddings, Embeddings)


def test_instruction_fields_show_the_templates_in_use() -> None:
    embeddings = EmberdEmbeddings()
    assert embeddings.query_instruction == f"Instruct: {TASK}\nQuery:{{text}}"
    assert embeddings.document_instruction == "{text}"
    assert f"Instruct: {TASK}" in repr(embeddings)


def test_an_instruction_that_was_given_shows_as_it_was_given() -> None:
    embeddings = EmberdEmbeddings(query_instruction="code", document_instruction="")
    assert (embeddings.query_instruction, embeddings.document_instruction) == ("code", "")


def test_a_field_may_be_given_as_none_for_not_given() -> None:
    assert EmberdEmbeddings(dimensions=None, batch_size=None).batch_size == 256  # type: ignore[arg-type]
    assert EmberdEmbeddings(idle_timeout=None).idle_timeout is None


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_MODEL", "emberd/demo")
    monkeypatch.setenv("EMBERD_DIMENSIONS", "64")
    embeddings = EmberdEmbeddings(dimensions=32)
    assert (embeddings.model, embeddings.dimensions) == ("emberd/demo", 32)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model_name": "x"}, "no field 'model_name'; it is called model here. It has: api_key"),
        ({"skip_empty": True}, "no field 'skip_empty'. It has: api_key, base_url"),
        ({"dimensions": 31}, "at least 32 and at most 2560"),
        ({"query_instruction": "Instruct: Find x\nQuery:"}, "Give only the task"),
        ({"base_url": "localhost:30000"}, "http://127.0.0.1:30000/v1"),
        ({"truncate": "no"}, "must be True or False"),
        ({"timeout": 0}, "greater than 0"),
        ({"query_instruction": 5}, "must be a string: a task, its name, or a template"),
    ],
)
def test_what_cannot_be_used_is_refused_at_construction(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EmberdEmbeddings(**{"api_key": KEY, **given})
    assert told in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_key_may_be_given_as_text_and_is_a_secret_from_then_on() -> None:
    assert EmberdEmbeddings.model_validate({"api_key": KEY}).api_key == SECRET
    assert EmberdEmbeddings(api_key=SECRET).embedder.settings.api_key == KEY


def test_a_subclass_may_have_fields_of_its_own() -> None:
    class Labelled(EmberdEmbeddings):
        label: str = ""

    labelled = Labelled(label="mine", dimensions=32)
    assert (labelled.label, labelled.embedder.settings.dimensions) == ("mine", 32)
    assert labelled.model_copy(update={"dimensions": 64}).label == "mine"


def test_a_field_cannot_be_changed_behind_the_back_of_the_embedder() -> None:
    embeddings = EmberdEmbeddings(model="emberd/demo")
    with pytest.raises(ValidationError, match="frozen"):
        embeddings.dimensions = 32


def test_model_copy_with_an_update_is_a_new_object_that_is_checked() -> None:
    embeddings = EmberdEmbeddings(dimensions=32, api_key=SECRET, idle_timeout=None)
    changed = embeddings.model_copy(update={"model": "emberd/demo"})
    assert (changed.dimensions, changed.idle_timeout) == (32, None)
    assert changed.query_instruction == "query: {text}", "the default follows the model"
    assert changed.embedder.settings.model == "emberd/demo"
    assert changed.embedder.settings.api_key == KEY
    with pytest.raises(ValidationError, match="at most 384"):
        changed.model_copy(update={"dimensions": 385})


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, EmberdEmbeddings.model_copy], ids=lambda how: how.__name__
)
def test_a_copy_uses_the_same_connections(copied: Any) -> None:
    embeddings = EmberdEmbeddings(api_key=SECRET)
    twin = copied(embeddings)
    assert twin is not embeddings
    assert twin.embedder is embeddings.embedder
    assert twin.api_key == embeddings.api_key


def test_a_pickle_holds_every_setting_but_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = EmberdEmbeddings(
        model="emberd/demo", dimensions=32, api_key=SECRET, base_url=NOWHERE, idle_timeout=None
    )
    packed = pickle.dumps(embeddings)
    monkeypatch.setenv("EMBERD_DIMENSIONS", "64")
    monkeypatch.setenv("EMBERD_QUERY_INSTRUCTION", "")
    back = pickle.loads(packed)
    assert KEY.encode() not in packed
    assert back.model_dump() == embeddings.model_dump()
    assert back.embedder.settings == dataclasses.replace(embeddings.embedder.settings, api_key=None)
    with pytest.raises(EmberdError, match="EMBERD_API_KEY"):
        back.embed_query("x")


def test_an_unpickled_object_takes_the_key_of_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = pickle.dumps(EmberdEmbeddings(api_key=SECRET, base_url=NOWHERE))
    monkeypatch.setenv("EMBERD_API_KEY", "another-made-up-key")
    back = pickle.loads(packed)
    assert back.embedder.settings.api_key == "another-made-up-key"
    assert back.api_key.get_secret_value() == "another-made-up-key"


def test_the_key_is_printed_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    embeddings = EmberdEmbeddings(api_key=SECRET, base_url=NOWHERE)
    shown = [
        repr(embeddings),
        str(embeddings),
        repr(embeddings.embedder),
        repr(embeddings.model_dump()),
        embeddings.model_dump_json(),
        json.dumps(EmberdEmbeddings.model_json_schema()),
        str(pickle.dumps(embeddings.model_dump())),
        caplog.text,
    ]
    assert [text for text in shown if KEY in text] == []


def test_a_quantisation_is_part_of_the_identity_and_checked_at_construction() -> None:
    embeddings = EmberdEmbeddings(quantization="fp8")
    assert embeddings.embedder.settings.spec.quantization == "fp8"
    assert "quantization=fp8" in embeddings.identity
    with pytest.raises(ValidationError, match="must be 'fp8'"):
        EmberdEmbeddings(quantization="int4")


def test_an_empty_list_needs_no_server() -> None:
    embeddings = EmberdEmbeddings(model="emberd/demo", base_url=NOWHERE)
    assert embeddings.embed_documents([]) == []
    assert asyncio.run(embeddings.aembed_documents([])) == []


@pytest.mark.parametrize(
    "wrong", [{"dimensions": 31}, {"openai_api_key": KEY}, {"truncate": "no"}, {"timeout": 0}]
)
def test_no_part_of_a_validation_error_holds_the_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        EmberdEmbeddings(**{"api_key": KEY, **wrong})
    assert KEY not in f"{caught.value.errors()} {caught.value.json()} {caught.value!r}"
    assert caught.value.errors()[0]["type"] == "value_error"


def test_a_default_of_a_subclass_stands_between_arguments_and_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Small(EmberdEmbeddings):
        model: str = "emberd/demo"
        dimensions: int | None = 128

    class Smaller(Small):
        dimensions: int | None = 64

    monkeypatch.setenv("EMBERD_MODEL", "Qwen/Qwen3-Embedding-8B")
    monkeypatch.setenv("EMBERD_DIMENSIONS", "256")
    monkeypatch.setenv("EMBERD_MAX_CONCURRENCY", "3")
    small = Small()
    assert (small.model, small.dimensions, small.max_concurrency) == ("emberd/demo", 128, 3)
    assert small.embedder.settings.dimensions == 128
    assert Smaller().dimensions == 64
    assert Smaller().embedder.settings.model == "emberd/demo"
    assert Small(dimensions=32).embedder.settings.dimensions == 32


def test_objects_of_equal_settings_are_equal() -> None:
    one, same = (EmberdEmbeddings(dimensions=64, api_key=SECRET) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != EmberdEmbeddings(dimensions=32, api_key=SECRET)
    assert one != EmberdEmbeddings(dimensions=64)
    assert one != "another thing"


def test_an_identity_is_that_of_the_embedder_and_is_checked() -> None:
    embeddings = EmberdEmbeddings(dimensions=1024)
    assert embeddings.identity == embeddings.embedder.identity
    embeddings.check_identity(embeddings.identity)
    with pytest.raises(IdentityError, match="dimensions 2560 there, 1024 here"):
        embeddings.check_identity(EmberdEmbeddings().identity)
