"""What a model folder says of itself, and when it is another model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Final

import pytest

from emberd import checkpoints
from emberd.catalog import QWEN_FORM, Model, lookup
from emberd.errors import SettingError
from emberd.settings import Settings

_TASK: Final = "Given a question, find its answer"
_CONFIG: Final = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 128,
    "max_position_embeddings": 8192,
}
_ENDS: Final = {
    "type": "Sequence",
    "processors": [
        {"type": "ByteLevel"},
        {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<end>"}}],
            "special_tokens": {"<end>": {"id": "<end>", "ids": [7], "tokens": ["<end>"]}},
        },
    ],
}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a fine-tuned Qwen3-Embedding has it."""
    made = tmp_path / "fine-tuned"
    write(made / "config.json", _CONFIG)
    write(made / "tokenizer.json", {"added_tokens": [], "post_processor": _ENDS, "model": {}})
    prompts = {"query": f"Instruct: {_TASK}\nQuery:", "document": ""}
    write(made / "config_sentence_transformers.json", {"prompts": prompts})
    (made / "model.safetensors").write_bytes(bytes(1 << 20))
    return made


def test_a_folder_tells_dimensions_context_templates_and_end_of_text(folder: Path) -> None:
    assert checkpoints.describe(str(folder)) == Model(
        name=str(folder),
        dimensions=128,
        context_tokens=8192,
        instruction_form=QWEN_FORM,
        query_task=_TASK,
        end_of_text_id=7,
    )
    assert checkpoints.architecture(str(folder)) == "Qwen3ForCausalLM"


def test_a_prompt_of_another_form_is_a_template_as_it_stands(folder: Path) -> None:
    prompts = {"query": "search: ", "document": "passage: "}
    write(folder / "config_sentence_transformers.json", {"prompts": prompts})
    told = checkpoints.describe(str(folder))
    assert (told.query_template, told.document_template) == ("search: {text}", "passage: {text}")
    assert told.query_task is None


def test_a_tokenizer_that_appends_nothing_has_no_end_of_text(folder: Path) -> None:
    write(folder / "tokenizer.json", {"post_processor": {"type": "ByteLevel"}})
    assert checkpoints.describe(str(folder)).end_of_text_id is None


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"hidden_size": "many"}'])
def test_a_damaged_configuration_tells_nothing_and_raises_nothing(
    folder: Path, damage: str
) -> None:
    for name in ("config.json", "tokenizer.json", "config_sentence_transformers.json"):
        (folder / name).write_text(damage)
    assert checkpoints.describe(str(folder)) == Model(str(folder))


def test_the_catalog_wins_for_a_folder_named_like_its_model(folder: Path) -> None:
    named = folder.rename(folder.with_name("Qwen3-Embedding-0.6B"))
    assert checkpoints.describe(str(named)) == lookup("Qwen/Qwen3-Embedding-0.6B")


def test_a_name_on_the_hub_has_no_content_and_no_key_of_its_own() -> None:
    assert checkpoints.content("Qwen/Qwen3-Embedding-4B") is None
    assert "content" not in Settings.resolve().spec.identity


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "1_Pooling/config.json"])
def test_another_configuration_is_another_model(folder: Path, name: str) -> None:
    before = Settings.resolve(model=str(folder)).spec
    write(folder / name, {"changed": True})
    after = Settings.resolve(model=str(folder)).spec
    assert before.key != after.key
    assert before.content != after.content


def test_other_weights_of_the_same_size_are_another_model(folder: Path) -> None:
    before = checkpoints.content(str(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(range(256)) * 4096)
    assert weights.stat().st_size == 1 << 20
    assert checkpoints.content(str(folder)) != before


def test_a_copy_elsewhere_has_the_same_content(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "named-otherwise"
    for path in folder.iterdir():
        copy.mkdir(parents=True, exist_ok=True)
        (copy / path.name).write_bytes(path.read_bytes())
    assert checkpoints.content(str(copy)) == checkpoints.content(str(folder))


def test_a_folder_has_one_name_from_everywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["fine-tuned", "./fine-tuned/", "link", "~/fine-tuned", str(folder)]
    assert {Settings.resolve(model=name).model for name in names} == {str(folder)}


def test_a_hub_name_stays_as_it_is_where_no_such_folder_is(tmp_path: Path) -> None:
    assert checkpoints.absolute("Qwen/Qwen3-Embedding-4B") == "Qwen/Qwen3-Embedding-4B"
    assert checkpoints.absolute("/nowhere/../model") == "/model"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_an_error_that_names_it(folder: Path) -> None:
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(SettingError, match="fine-tuned.* cannot be read"):
        checkpoints.content(str(folder))
