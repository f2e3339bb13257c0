"""What a model folder says of itself."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from checkpoints_made import write_modules
from emberd import model_card, model_files, model_pooling, model_tokenizer
from emberd.catalog import EMBED, QWEN_FORM, Model, lookup
from emberd.client.inputs import in_template, split_at_special
from emberd.engines import model_shape
from emberd.errors import InstructionError, SettingError
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
    assert model_card.describe(str(folder)) == Model(
        name=str(folder),
        task=EMBED,
        dimensions=128,
        context_tokens=8192,
        instruction_form=QWEN_FORM,
        query_task=_TASK,
        end_of_text_id=7,
    )
    assert model_pooling.architecture(folder) == "Qwen3ForCausalLM"


def test_a_prompt_of_another_form_is_a_template_as_it_stands(folder: Path) -> None:
    prompts = {"query": "search: ", "document": "passage: "}
    write(folder / "config_sentence_transformers.json", {"prompts": prompts})
    told = model_card.describe(str(folder))
    assert (told.query_template, told.document_template) == ("search: {text}", "passage: {text}")
    assert told.query_task is None


def test_a_tokenizer_that_appends_nothing_has_no_end_of_text(folder: Path) -> None:
    write(folder / "tokenizer.json", {"post_processor": {"type": "ByteLevel"}})
    assert model_card.describe(str(folder)).end_of_text_id is None


@pytest.mark.parametrize(
    ("normalizer", "expected"),
    [
        ({"type": "NFC"}, "NFC"),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend"}]}, "NFC"),
        ({"type": "Sequence", "normalizers": [{"type": "StripAccents"}, {"type": "NFC"}]}, None),
        ({"type": "Sequence", "normalizers": []}, None),
        ({"type": "NFKC"}, None),
        ({"type": "Sequence", "normalizers": [{"type": "NFD"}, None]}, None),
        ({"type": "Sequence", "normalizers": 5}, None),
        (None, None),
    ],
)
def test_a_tokenizer_tells_whether_it_converts_texts_to_nfc(
    folder: Path, normalizer: Any, expected: str | None
) -> None:
    named = folder.rename(folder.with_name("Qwen3-Embedding-0.6B"))
    assert model_card.describe(str(named)).normalization == "NFC", "the catalog's"
    write(named / "tokenizer.json", {"normalizer": normalizer, "post_processor": _ENDS})
    assert model_card.describe(str(named)).normalization == expected


@pytest.mark.parametrize("kind", ["BertProcessing", "RobertaProcessing"])
def test_tokens_around_a_text_are_read_of_old_processors_too(folder: Path, kind: str) -> None:
    processor = {"type": kind, "cls": ["<s>", 0], "sep": ["</s>", 2]}
    write(folder / "tokenizer.json", {"post_processor": processor})
    told = model_card.describe(str(folder))
    assert (told.start_ids, told.end_of_text_id) == ((0,), 2)


@pytest.mark.parametrize(("kind", "known"), [("ByteLevel", True), ("Unheard", False)])
def test_special_tokens_are_known_only_if_those_around_a_text_are(
    folder: Path, kind: str, known: bool
) -> None:
    added = [{"id": 7, "content": "<end>", "normalized": False}]
    tokenizer = {"added_tokens": added, "post_processor": {"type": kind}}
    write(folder / "tokenizer.json", tokenizer)
    assert bool(model_card.describe(str(folder)).special_tokens) is known


def test_the_longest_of_several_special_tokens_is_found() -> None:
    special = (("\n", 1), ("\n\n", 2), ("\n\n\n", 3))
    assert split_at_special("a\n\nb\n\n\nc\n", special) == ["a", 2, "b", 3, "c", 1]


@pytest.mark.parametrize(
    ("normalizer", "is_served"),
    [
        ({"type": "BertNormalizer", "lowercase": True}, True),
        ({"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}, True),
        ({"type": "BertNormalizer", "lowercase": False}, False),
        (None, False),
    ],
)
def test_lower_case_is_accepted_if_the_tokenizer_lower_cases(
    folder: Path, normalizer: Any, is_served: bool
) -> None:
    write_modules(folder)
    write(folder / "sentence_bert_config.json", {"do_lower_case": True})
    write(folder / "tokenizer.json", {"normalizer": normalizer, "post_processor": _ENDS})
    assert (model_pooling.why_unsupported(folder) is None) is is_served


def test_a_mark_is_not_composed_with_a_special_token_of_the_folder(folder: Path) -> None:
    """The tokenizer finds the token first; ``>`` and U+0338 are one character in NFC."""
    added = [
        {"id": 7, "content": "<end>", "normalized": False, "special": True},
        {"id": 8, "content": "<later>", "normalized": True, "special": False},
        {"id": 9, "content": "<damaged>"},
        None,
    ]
    tokenizer = {"added_tokens": added, "normalizer": {"type": "NFC"}, "post_processor": _ENDS}
    write(folder / "tokenizer.json", tokenizer)
    told = model_card.describe(str(folder))
    assert told.special_tokens == (("<end>", 7),)
    text = "<end>\u0338 <later>\u0338 e\u0301"
    assert in_template(text, "{text}", told) == "<end>\u0338 <later\u226f \u00e9"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("TokenizersBackend", "NFC"),
        ("PreTrainedTokenizerFast", "NFC"),
        ("Qwen2Tokenizer", "NFC"),
        (None, "NFC"),
        ("GPT2Tokenizer", None),
        ("LlamaTokenizerFast", None),
    ],
)
def test_a_tokenizer_whose_class_builds_a_normalizer_of_its_own_is_not_said_to_convert(
    folder: Path, kind: str | None, expected: str | None
) -> None:
    """Compared with Transformers 5 in ``tests/sglang/test_checkpoints.py``."""
    write(folder / "tokenizer.json", {"normalizer": {"type": "NFC"}, "post_processor": _ENDS})
    write(folder / "tokenizer_config.json", {"tokenizer_class": kind})
    assert model_card.describe(str(folder)).normalization == expected


@pytest.mark.parametrize(
    ("pre_tokenizer", "expected"),
    [
        ({"type": "BertPreTokenizer"}, True),
        ({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "x"}]}, True),
        ({"type": "Sequence", "pretokenizers": [{"type": "Split"}, {"type": "ByteLevel"}]}, False),
        ({"type": "Sequence", "pretokenizers": []}, False),
        ({"type": "Metaspace"}, False),
        (None, False),
    ],
)
def test_a_tokenizer_tells_whether_it_ignores_white_space_at_the_ends_of_a_text(
    folder: Path, pre_tokenizer: Any, expected: bool
) -> None:
    named = folder.rename(folder.with_name("bge-m3"))
    assert model_card.describe(str(named)).trims, "the catalog's"
    write(named / "tokenizer.json", {"normalizer": None, "pre_tokenizer": pre_tokenizer})
    assert model_card.describe(str(named)).trims is expected


def test_a_tokenizer_tells_what_it_puts_before_and_after_each_text(folder: Path) -> None:
    single = [
        {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
    ]
    tokens = {"[CLS]": {"id": "[CLS]", "ids": [101]}, "[SEP]": {"id": "[SEP]", "ids": [102]}}
    processor = {"type": "TemplateProcessing", "single": single, "special_tokens": tokens}
    write(folder / "tokenizer.json", {"post_processor": processor})
    told = model_card.describe(str(folder))
    assert (told.start_ids, told.end_of_text_id) == ((101,), 102)


@pytest.mark.parametrize(
    ("kind", "more", "tokens"),
    [
        ("XLMRobertaModel", {"pad_token_id": 1}, 8192),
        ("RobertaModel", {}, 8192),
        ("BertModel", {"pad_token_id": 1}, 8194),
    ],
)
def test_a_roberta_has_fewer_tokens_than_positions(
    folder: Path, kind: str, more: dict[str, int], tokens: int
) -> None:
    """Its first token has the position after that of padding."""
    config = {"architectures": [kind], "max_position_embeddings": 8194, **more}
    write(folder / "config.json", config)
    assert model_card.describe(str(folder)).context_tokens == tokens


def test_what_a_tokenizer_tells_in_another_form_comes_from_the_catalog_as_a_whole(
    folder: Path,
) -> None:
    named = folder.rename(folder.with_name("bge-small-zh-v1.5"))
    processor = {"type": "BertProcessing", "sep": ["[SEP]", 102], "cls": ["[CLS]", 101]}
    write(named / "tokenizer.json", {"post_processor": processor})
    told = model_card.describe(str(named))
    assert (told.start_ids, told.end_of_text_id) == ((101,), 102)


@pytest.mark.parametrize(
    "damage",
    [
        {"processors": [None]},
        {"processors": {"a": 1}},
        {"processors": "ab"},
        {"single": [{"SpecialToken": None}]},
        {"single": [None]},
        {"single": 5},
        {"single": {"SpecialToken": {"id": "</s>"}}},
        {"single": [{"SpecialToken": {"id": ["</s>"]}}]},
        {"single": [{"SpecialToken": {"id": "</s>"}}], "special_tokens": [1]},
        {"single": [{"SpecialToken": {"id": "</s>"}}], "special_tokens": {"</s>": None}},
        {"single": [{"SpecialToken": {"id": "</s>"}}], "special_tokens": {"</s>": {"ids": 7}}},
        {"single": [{"SpecialToken": {"id": "</s>"}}], "special_tokens": {"</s>": {"ids": ["7"]}}},
    ],
)
def test_a_damaged_post_processor_names_no_end_of_text_and_raises_nothing(
    folder: Path, damage: dict[str, Any]
) -> None:
    write(folder / "tokenizer.json", {"post_processor": damage})
    told = model_card.describe(str(folder))
    assert (told.start_ids, told.end_of_text_id) == ((), None)


def test_the_tokenizer_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(path: Path) -> str:
        read.append(path.name)
        return path.read_text("utf-8")

    monkeypatch.setattr(model_tokenizer, "read_text", noted)
    assert model_card.describe(str(folder)).end_of_text_id == 7
    assert read == ["tokenizer.json"]


@pytest.mark.parametrize("content", [b"a\0b", b"\xff\xfe"])
def test_a_damaged_reference_in_the_hubs_cache_finds_no_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--owner--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_bytes(content)
    assert model_files.hub_snapshot("owner/model", None) is None


@pytest.mark.parametrize(
    "damage",
    ["", "[]", "{", '{"hidden_size": "many"}', "[" * 10_000, '{"post_processor":' * 10_000],
)
def test_a_damaged_configuration_describes_nothing_and_raises_nothing(
    folder: Path, damage: str
) -> None:
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text(damage)
    (folder / "config_sentence_transformers.json").unlink()
    told = model_card.describe(str(folder))
    assert replace(told, query_problem=None, document_problem=None) == Model(str(folder))
    assert told.query_problem == told.document_problem is not None


def test_files_win_over_the_catalog_in_a_folder_named_like_its_model(folder: Path) -> None:
    """A fine-tuned model often keeps the name of the folder that it was trained from."""
    named = folder.rename(folder.with_name("Qwen3-Embedding-0.6B"))
    told = model_card.describe(str(named))
    assert (told.dimensions, told.context_tokens, told.end_of_text_id) == (128, 8192, 7)
    assert told.query_task == _TASK
    write(named / "config_sentence_transformers.json", {"prompts": {"query": "q: "}})
    settings = Settings.resolve(model=str(named))
    assert (settings.query_template, settings.document_template) == ("q: {text}", "{text}")


def test_prompts_that_are_empty_win_over_the_catalog(folder: Path) -> None:
    named = folder.rename(folder.with_name("Qwen3-Embedding-0.6B"))
    prompts = {"query": "", "document": ""}
    write(named / "config_sentence_transformers.json", {"prompts": prompts})
    assert Settings.resolve(model=str(named)).query_template == "{text}"
    task = Settings.resolve(model=str(named), query_instruction="web")
    assert task.query_template.startswith("Instruct: ")


def test_the_catalog_fills_in_what_the_files_do_not_say(folder: Path) -> None:
    named = folder.rename(folder.with_name("Qwen3-Embedding-0.6B"))
    for name in ("config.json", "tokenizer.json", "config_sentence_transformers.json"):
        (named / name).unlink()
    known = lookup("Qwen/Qwen3-Embedding-0.6B")
    assert model_card.describe(str(named)) == replace(known, name=str(named))


def test_a_folder_named_like_the_catalogs_is_matryoshka_when_its_files_do_not_say(
    folder: Path,
) -> None:
    assert not model_card.describe(str(folder)).matryoshka
    named = folder.rename(folder.with_name("Qwen3-Embedding-0.6B"))
    assert model_card.describe(str(named)).matryoshka
    write(named / "config.json", {**_CONFIG, "is_matryoshka": False})
    assert not model_card.describe(str(named)).matryoshka


def test_changed_prompts_are_read_again(folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    for prompt in ("one: ", "two: "):
        write(path, {"prompts": {"query": prompt}})
        assert Settings.resolve(model=str(folder)).query_template == f"{prompt}{{text}}"


def test_an_ambiguous_prompt_is_refused_until_the_caller_decides(folder: Path) -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    write(folder / "config_sentence_transformers.json", {"prompts": prompts})
    with pytest.raises(InstructionError, match="passage") as raised:
        Settings.resolve(model=str(folder))
    assert "document_instruction" in str(raised.value)
    for given, expected in (("passage: {text}", "passage: {text}"), ("", "{text}")):
        settings = Settings.resolve(model=str(folder), document_instruction=given)
        assert settings.document_template == expected
        assert settings.query_template == "query: {text}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no"),
        ({}, "has no prompts"),
        ({"prompts": {}}, "has no prompts"),
        ({"prompts": {"web_search_query": "q: "}}, "only web_search_query='q: '"),
    ],
)
def test_a_model_without_prompts_of_its_own_needs_both_instructions(
    folder: Path, content: Any, said: str
) -> None:
    path = folder / "config_sentence_transformers.json"
    path.unlink() if content is None else write(path, content)
    both = ("query_instruction=", "document_instruction=")
    for given, asked in (((), both), (both[:1], both[1:]), (both[1:], both[:1])):
        with pytest.raises(InstructionError, match=said) as raised:
            Settings.resolve(model=str(folder), **{name[:-1]: "" for name in given})
        assert str(path) in str(raised.value)
        assert {name for name in both if name in str(raised.value)} == set(asked)
    settings = Settings.resolve(model=str(folder), query_instruction="", document_instruction="")
    assert settings.query_template == settings.document_template == "{text}"


@pytest.mark.parametrize("content", [{}, {"prompts": {}}])
def test_a_folder_named_like_a_model_of_the_catalog_without_prompts_has_the_catalogs(
    folder: Path, content: Any
) -> None:
    named = folder.rename(folder.with_name("Qwen3-Embedding-0.6B"))
    write(named / "config_sentence_transformers.json", content)
    told, known = model_card.describe(str(named)), lookup("Qwen/Qwen3-Embedding-0.6B")
    assert (told.query_task, told.query_problem) == (known.query_task, None)
    assert Settings.resolve(model=str(named)).document_template == "{text}"


@pytest.mark.parametrize("role", ["query", "document"])
def test_symmetric_needs_one_instruction_of_a_model_without_prompts(
    folder: Path, role: str
) -> None:
    (folder / "config_sentence_transformers.json").unlink()
    with pytest.raises(InstructionError, match="document_instruction="):
        Settings.resolve(model=str(folder), symmetric=True)
    given = {f"{role}_instruction": "q: {text}"}
    settings = Settings.resolve(model=str(folder), symmetric=True, **given)
    assert settings.query_template == settings.document_template == "q: {text}"


def test_empty_prompts_are_prompts(folder: Path) -> None:
    prompts = {"query": "", "document": ""}
    write(folder / "config_sentence_transformers.json", {"prompts": prompts})
    settings = Settings.resolve(model=str(folder))
    assert settings.query_template == settings.document_template == "{text}"


def test_a_task_for_a_model_of_an_unknown_form_asks_for_a_template(folder: Path) -> None:
    (folder / "config_sentence_transformers.json").unlink()
    with pytest.raises(InstructionError, match="in which form"):
        Settings.resolve(model=str(folder), query_instruction="web", document_instruction="")


def test_prompts_that_cannot_be_read_are_refused_until_the_caller_gives_both(folder: Path) -> None:
    (folder / "config_sentence_transformers.json").write_text("{")
    with pytest.raises(InstructionError, match=r"config_sentence_transformers\.json"):
        Settings.resolve(model=str(folder), query_instruction="")
    given = Settings.resolve(model=str(folder), query_instruction="", document_instruction="")
    assert given.query_template == given.document_template == "{text}"


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "config_sentence_transformers.json", "m.safetensors"]
)
def test_a_named_pipe_in_a_folder_is_an_error_and_is_not_waited_for(
    folder: Path, name: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    instructions = {"query_instruction": "", "document_instruction": ""}
    with pytest.raises(SettingError, match=f"not a regular file.*{name}"):
        _ = Settings.resolve(model=str(folder), **instructions).spec
    assert model_shape.shape_of(str(folder)) is None


def test_a_named_pipe_among_the_prompts_is_an_error_at_construction(folder: Path) -> None:
    (folder / "config_sentence_transformers.json").unlink()
    os.mkfifo(folder / "config_sentence_transformers.json")
    with pytest.raises(InstructionError, match="not a regular file"):
        Settings.resolve(model=str(folder))


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "config.json"])
def test_a_model_with_a_named_pipe_for_a_file_is_not_served(folder: Path, name: str) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    problem = model_pooling.why_unsupported(folder)
    assert problem is not None
    assert name in problem.cause


def test_vectors_of_a_folder_with_truncate_dim_are_cut_to_it(folder: Path) -> None:
    assert Settings.resolve(model=str(folder)).dimensions is None
    write(
        folder / "config_sentence_transformers.json", {"prompts": {"query": ""}, "truncate_dim": 64}
    )
    assert Settings.resolve(model=str(folder)).dimensions == 64
    assert Settings.resolve(model=str(folder), dimensions=128).dimensions == 128
    assert Settings.resolve(model=str(folder)).changed(dimensions=32).dimensions == 32


@pytest.mark.parametrize("given", [0, 256, "64", True, [64]])
def test_a_truncate_dim_that_cannot_be_used_is_an_error_that_names_it(
    folder: Path, given: Any
) -> None:
    write(
        folder / "config_sentence_transformers.json",
        {"prompts": {"query": ""}, "truncate_dim": given},
    )
    with pytest.raises(SettingError, match="truncate_dim"):
        Settings.resolve(model=str(folder))
    assert Settings.resolve(model=str(folder), dimensions=64).dimensions == 64
