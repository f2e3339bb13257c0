"""``EmberdEmbedding`` before its first use: fields, identity, secrets, copies, pickles."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import logging
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings import resolve_embed_model
from llama_index.core.rate_limiter import TokenBucketRateLimiter
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import SecretStr, ValidationError

from emberd import EmberdError, IdentityError, Settings
from llama_index.embeddings.emberd import EmberdEmbedding

KEY = "sk-made-up"
SECRET = SecretStr(KEY)
NOWHERE = "http://127.0.0.1:9"
TASK = "Given a web search query, retrieve relevant passages that answer the query"


def test_the_fields_are_the_settings_of_emberd_under_llama_index_names() -> None:
    settings = {field.name for field in dataclasses.fields(Settings)}
    theirs = {"model": "model_name", "document_instruction": "text_instruction"}
    ours = set(EmberdEmbedding.model_fields) - set(BaseEmbedding.model_fields)
    assert ours == {theirs.get(name, name) for name in settings} - {
        "model_name",  # a field of BaseEmbedding
        "batch_size",  # LlamaIndex has embed_batch_size
        "show_progress",  # and an argument of the call
    }


def test_the_defaults_are_those_of_emberd() -> None:
    embedding, plain = EmberdEmbedding(), Settings()
    assert (embedding.model_name, embedding.embed_batch_size) == (plain.model, 2048)
    same = (
        set(EmberdEmbedding.model_fields) & {field.name for field in dataclasses.fields(Settings)}
    ) - {"query_instruction"}
    assert {name: getattr(embedding, name) for name in same} == {
        name: getattr(plain, name) for name in same
    }


def test_llama_index_takes_it_for_an_embedding_of_its_own() -> None:
    embedding = EmberdEmbedding()
    assert isinstance(embedding, BaseEmbedding)
    assert resolve_embed_model(embedding, callback_manager=CallbackManager([])) is embedding
    assert EmberdEmbedding.class_name() == "EmberdEmbedding"


def test_instruction_fields_show_the_templates_in_use() -> None:
    embedding = EmberdEmbedding()
    assert embedding.query_instruction == f"Instruct: {TASK}\nQuery:{{text}}"
    assert embedding.text_instruction == "{text}"
    assert EmberdEmbedding(query_instruction="code").query_instruction == "code"


def test_a_field_may_be_given_as_none_for_not_given() -> None:
    embedding = EmberdEmbedding(dimensions=None, callback_manager=None)  # type: ignore[arg-type]
    assert embedding.callback_manager is not None
    assert EmberdEmbedding(idle_timeout=None).idle_timeout is None


def test_an_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_MODEL", "emberd/demo")
    monkeypatch.setenv("EMBERD_DIMENSIONS", "64")
    monkeypatch.setenv("EMBERD_API_KEY", KEY)
    embedding = EmberdEmbedding(dimensions=32)
    assert (embedding.model_name, embedding.dimensions) == ("emberd/demo", 32)
    assert embedding.api_key is not None
    assert embedding.api_key.get_secret_value() == KEY


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model": "x"}, "no field 'model'; it is called model_name here. It has: api_key, base"),
        ({"normalize": True}, "no field 'normalize'. It has: api_key, base_url"),
        ({"text_instruction": "passage: "}, "text_instruction='passage: {text}'"),
        ({"model_name": " "}, "model_name=' ' must be a string that is not blank"),
        ({"dimensions": 31}, "at least 32 and at most 2560"),
        ({"text_instruction": "Instruct: Find x\nQuery:"}, "Give only the task"),
        ({"base_url": "localhost:30000"}, "http://127.0.0.1:30000/v1"),
        ({"embed_batch_size": 4096}, "less than or equal to 2048"),
        ({"truncate": "no"}, "must be True or False"),
    ],
)
def test_what_cannot_be_used_is_refused_at_construction(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EmberdEmbedding(**{"api_key": KEY, **given})
    assert told in str(caught.value)
    assert KEY not in str(caught.value)


def test_the_field_of_the_cache_cannot_be_set_past_its_keys() -> None:
    embedding = EmberdEmbedding(embeddings_cache=None)
    assert embedding.embeddings_cache is None
    with pytest.raises(ValidationError, match="frozen"):
        embedding.embeddings_cache = SimpleKVStore()
    with pytest.raises((TypeError, ValidationError), match="BaseKVStore"):
        EmberdEmbedding(embeddings_cache={})


def test_a_key_may_be_given_as_text_and_is_a_secret_from_then_on() -> None:
    assert EmberdEmbedding.model_validate({"api_key": KEY}).api_key == SECRET
    assert EmberdEmbedding(api_key=SECRET).embedder.settings.api_key == KEY


def test_a_subclass_may_have_fields_of_its_own() -> None:
    class Labelled(EmberdEmbedding):
        label: str = ""

    labelled = Labelled(label="mine", dimensions=32)
    assert (labelled.label, labelled.embedder.settings.dimensions) == ("mine", 32)
    assert labelled.model_copy(update={"dimensions": 64}).label == "mine"


def test_none_replaces_the_default_of_a_subclass() -> None:
    class Busy(EmberdEmbedding):
        num_workers: int | None = 4

    busy = Busy(model_name="emberd/demo")
    every = busy.model_copy(update={"num_workers": None})
    assert (busy.num_workers, every.num_workers) == (4, None)
    assert every.model_copy(update={"timeout": 5}).num_workers is None
    nothing = {"num_workers": None, "embed_batch_size": None, "callback_manager": None}
    usual = Busy.model_validate({"model_name": "emberd/demo", **nothing})
    assert (usual.num_workers, usual.embed_batch_size) == (None, 2048)
    assert usual.callback_manager is not None


def test_a_field_cannot_be_changed_behind_the_back_of_the_embedder() -> None:
    embedding = EmberdEmbedding(model_name="emberd/demo")
    for name in set(EmberdEmbedding.model_fields) - {
        *("callback_manager", "embed_batch_size", "num_workers", "rate_limiter")
    }:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(embedding, name, None)


def test_model_copy_with_an_update_is_a_new_object_that_is_checked() -> None:
    limiter = TokenBucketRateLimiter(requests_per_minute=60)
    embedding = EmberdEmbedding(
        dimensions=32, api_key=SECRET, idle_timeout=None, num_workers=3, rate_limiter=limiter
    )
    changed = embedding.model_copy(update={"model_name": "emberd/demo"})
    assert (changed.dimensions, changed.idle_timeout, changed.num_workers) == (32, None, 3)
    assert changed.rate_limiter is limiter
    assert changed.query_instruction == "query: {text}", "the default follows the model"
    assert changed.embedder.settings.model == "emberd/demo"
    assert changed.embedder.settings.api_key == KEY
    with pytest.raises(ValidationError, match="at most 384"):
        changed.model_copy(update={"dimensions": 385})


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, EmberdEmbedding.model_copy], ids=lambda how: how.__name__
)
def test_a_copy_uses_the_same_connections(copied: Any) -> None:
    embedding = EmberdEmbedding(api_key=SECRET)
    twin = copied(embedding)
    assert twin is not embedding
    assert twin.embedder is embedding.embedder
    assert twin.api_key == embedding.api_key


# ---------------------------------------------------------------- what it is known by


def test_what_does_not_change_a_vector_is_not_in_the_key_of_caches() -> None:
    plain = EmberdEmbedding(model_name="emberd/demo").to_dict()
    other = EmberdEmbedding(
        model_name="emberd/demo",
        base_url=NOWHERE,
        api_key=SECRET,
        engine="demo",
        device="cpu",
        context_tokens=300,
        max_concurrency=2,
        timeout=3,
        start_timeout=4,
        idle_timeout=None,
        embed_batch_size=5,
        num_workers=6,
        server_dimensions=True,
        callback_manager=CallbackManager([]),
    )
    assert other.to_dict() == plain


@pytest.mark.parametrize(
    "given",
    [
        {"model_name": "Qwen/Qwen3-Embedding-4B"},
        {"revision": "0123abc"},
        {"quantization": "fp8"},
        {"dimensions": 32},
        {"query_instruction": ""},
        {"text_instruction": ""},
        {"symmetric": True},
        {"truncate": True},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_changes_a_vector_is_in_the_key_of_caches(given: dict[str, Any]) -> None:
    plain = EmberdEmbedding(model_name="emberd/demo").to_dict()
    assert EmberdEmbedding(**{"model_name": "emberd/demo", **given}).to_dict() != plain


def test_a_dictionary_leads_back_to_the_same_vectors() -> None:
    embedding = EmberdEmbedding(model_name="emberd/demo", dimensions=32, query_instruction="")
    told = json.loads(embedding.to_json())
    assert EmberdEmbedding.from_dict(told).embedder.identity == embedding.embedder.identity


def test_a_folder_that_holds_another_model_now_has_another_key(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "", "document": ""}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"hidden_size": 64}))
    before = EmberdEmbedding(model_name=str(tmp_path)).to_dict()
    config.write_text(json.dumps({"hidden_size": 64, "trained": "again"}))
    assert EmberdEmbedding(model_name=str(tmp_path)).to_dict() != before
    with pytest.raises(ValidationError, match="The dictionary has identity="):
        EmberdEmbedding.from_dict(before)


def test_a_dictionary_with_a_change_is_told_what_to_use_instead() -> None:
    told = EmberdEmbedding(model_name="emberd/demo").to_dict()
    with pytest.raises(ValidationError, match=r"use model_copy\(update"):
        EmberdEmbedding.from_dict(told, dimensions=32)


# ---------------------------------------------------------------- pickles and secrets


def test_a_pickle_holds_every_setting_but_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = EmberdEmbedding(
        model_name="emberd/demo", dimensions=32, api_key=SECRET, base_url=NOWHERE, num_workers=2
    )
    packed = pickle.dumps(embedding)
    monkeypatch.setenv("EMBERD_TIMEOUT", "64")
    monkeypatch.setenv("EMBERD_ENGINE", "sglang")
    back = pickle.loads(packed)
    assert KEY.encode() not in packed
    assert back.to_dict() == embedding.to_dict()
    assert (back.base_url, back.num_workers, back.engine) == (NOWHERE, 2, None)
    assert back.embedder.settings == dataclasses.replace(embedding.embedder.settings, api_key=None)
    with pytest.raises(EmberdError, match="EMBERD_API_KEY"):
        back.get_query_embedding("x")


def test_an_unpickled_object_takes_the_key_of_its_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = pickle.dumps(EmberdEmbedding(api_key=SECRET, base_url=NOWHERE))
    monkeypatch.setenv("EMBERD_API_KEY", "another-made-up-key")
    back = pickle.loads(packed)
    assert back.embedder.settings.api_key == "another-made-up-key"
    assert back.api_key.get_secret_value() == "another-made-up-key"


def test_pickling_takes_nothing_from_the_object(caplog: pytest.LogCaptureFixture) -> None:
    """A rate limiter holds a lock: BaseComponent deletes it from what it is given to pickle."""

    class Limiter(TokenBucketRateLimiter):
        lock: Any = None

    limiter = Limiter(requests_per_minute=60, lock=threading.Lock())
    embedding = EmberdEmbedding(model_name="emberd/demo", rate_limiter=limiter)
    back = pickle.loads(pickle.dumps(embedding))
    assert embedding.rate_limiter is limiter
    assert back.rate_limiter is None, "what does not pickle has its default on the other side"
    assert "rate_limiter" in caplog.text


def test_the_key_is_printed_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    embedding = EmberdEmbedding(api_key=SECRET, base_url=NOWHERE)
    shown = [
        repr(embedding),
        str(embedding),
        repr(embedding.embedder),
        repr(embedding.to_dict()),
        repr(embedding.model_dump()),
        repr(embedding.to_payload()),
        embedding.to_json(),
        str(pickle.dumps(embedding.to_dict())),
        caplog.text,
    ]
    assert [text for text in shown if KEY in text] == []


def test_an_empty_list_needs_no_server() -> None:
    embedding = EmberdEmbedding(model_name="emberd/demo", base_url=NOWHERE)
    assert embedding.get_text_embedding_batch([]) == []
    assert asyncio.run(embedding.aget_text_embedding_batch([])) == []


@pytest.mark.parametrize(
    "wrong", [{"dimensions": 31}, {"openai_api_key": KEY}, {"truncate": "no"}, {"timeout": 0}]
)
def test_no_part_of_a_validation_error_holds_the_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        EmberdEmbedding(**{"api_key": KEY, **wrong})
    assert KEY not in f"{caught.value.errors()} {caught.value.json()} {caught.value!r}"
    assert caught.value.errors()[0]["type"] == "value_error"


def test_a_default_of_a_subclass_stands_between_arguments_and_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Small(EmberdEmbedding):
        model_name: str = "emberd/demo"
        dimensions: int | None = 128

    class Smaller(Small):
        dimensions: int | None = 64

    monkeypatch.setenv("EMBERD_MODEL", "Qwen/Qwen3-Embedding-8B")
    monkeypatch.setenv("EMBERD_DIMENSIONS", "256")
    monkeypatch.setenv("EMBERD_MAX_CONCURRENCY", "3")
    small = Small()
    assert (small.model_name, small.dimensions, small.max_concurrency) == ("emberd/demo", 128, 3)
    assert small.embedder.settings.dimensions == 128
    assert Smaller().dimensions == 64
    assert Smaller().embedder.settings.model == "emberd/demo"
    assert Small(dimensions=32).embedder.settings.dimensions == 32


def test_objects_of_equal_settings_are_equal() -> None:
    one, same = (EmberdEmbedding(dimensions=64, api_key=SECRET) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != EmberdEmbedding(dimensions=32, api_key=SECRET)
    assert one != EmberdEmbedding(dimensions=64)
    assert one != "another thing"


def test_an_identity_is_that_of_the_embedder_and_is_checked() -> None:
    embedding = EmberdEmbedding(dimensions=1024)
    assert embedding.identity == embedding.embedder.identity
    embedding.check_identity(embedding.identity)
    with pytest.raises(IdentityError, match="dimensions 2560 there, 1024 here"):
        embedding.check_identity(EmberdEmbedding().identity)


def test_quantization_is_in_keys_of_caches_only_if_it_is_set() -> None:
    """So that the keys of nodes that were embedded before the field existed stay valid."""
    assert "quantization" not in EmberdEmbedding(model_name="Qwen/Qwen3-Embedding-4B").to_dict()
    quantised = EmberdEmbedding(model_name="Qwen/Qwen3-Embedding-4B", quantization="fp8").to_dict()
    assert quantised["quantization"] == "fp8"
    assert EmberdEmbedding.from_dict(quantised).quantization == "fp8"
