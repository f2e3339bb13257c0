"""What a model is for: a folder decides by its files, and a wrong use is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import pytest

import checkpoints_made
from emberd import Embedder, Reranker, SettingError, model_card
from emberd.catalog import EMBED, RERANK, WEB_TASK
from emberd.cli import options
from emberd.engines.sglang import support
from emberd.engines.transformers import TransformersEngine
from emberd.prompts import rerank_frame
from emberd.settings import RerankSettings, ServerSpec, Settings

_END = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|endoftext|>"}}],
    "special_tokens": {"<|endoftext|>": {"ids": [7]}},
}
_NO_END = {"type": "ByteLevel"}
_TRANSFORMER = {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
_CROSS: dict[str, Any] = {"config_sentence_transformers": {"model_type": "CrossEncoder"}}
_POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
_SCORE = {
    "path": "1_LogitScore",
    "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
}


def write(folder: Path, **files: Any) -> Path:
    """Write JSON files; ``__`` in a name is a folder."""
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def folder_of(
    tmp_path: Path, processor: Any = _NO_END, kind: str = "Qwen3ForCausalLM", **files: Any
) -> Path:
    """Return a folder of a Qwen3 checkpoint without weights."""
    config = {"architectures": [kind], "hidden_size": 64, "max_position_embeddings": 512}
    tokenizer = {"added_tokens": [], "normalizer": {"type": "NFC"}, "post_processor": processor}
    return write(tmp_path / "some-model", config=config, tokenizer=tokenizer, **files)


def test_a_plain_qwen3_that_appends_nothing_is_what_it_is_used_for(tmp_path: Path) -> None:
    """Its files are those of a Qwen3-Reranker, and of an embedding model without a template."""
    folder = folder_of(tmp_path)
    known = model_card.describe(str(folder), task=RERANK)
    assert (known.task, known.dimensions, known.end_of_text_id) == (RERANK, 1, None)
    assert Reranker(folder).settings.spec.task == RERANK
    known = model_card.describe(str(folder))
    assert (known.task, known.dimensions) == (None, 64)
    embedder = Embedder(folder, query_instruction="", document_instruction="")
    assert embedder.settings.known.dimensions == 64


def test_a_plain_qwen3_that_appends_an_end_of_text_is_an_embedding_model(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, _END)
    assert model_card.describe(str(folder)).task == EMBED
    assert Embedder(folder, query_instruction="", document_instruction="").settings.task == EMBED
    with pytest.raises(SettingError, match=r"tokenizer\.json"):
        Reranker(folder)


@pytest.mark.parametrize("processor", [_END, _NO_END])
def test_modules_decide_whatever_the_tokenizer_does(tmp_path: Path, processor: Any) -> None:
    pools = folder_of(tmp_path / "1", processor, modules=[_TRANSFORMER, _POOLING])
    scores = folder_of(
        tmp_path / "2",
        processor,
        modules=[_TRANSFORMER, _SCORE],
    )
    write(scores, **{"1_LogitScore__config": {"true_token_id": 9693, "false_token_id": 2152}})
    assert model_card.describe(str(pools)).task == EMBED
    known = model_card.describe(str(scores))
    assert (known.task, known.label_ids, known.end_of_text_id) == (RERANK, (9693, 2152), None)


def test_files_are_looked_at_again_when_they_change(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert model_card.describe(str(folder), task=RERANK).task == RERANK
    write(folder, modules=[_TRANSFORMER, _POOLING])
    assert model_card.describe(str(folder), task=RERANK).task == EMBED


@pytest.mark.parametrize(
    "files",
    [
        {"kind": "Qwen3ForSequenceClassification"},
        {"kind": "LlamaForCausalLM"},
        {"kind": "Qwen3Model"},
        {"modules": [_TRANSFORMER, _SCORE]},  # without a config.json: one token only
        {"processor": {"type": "Unknown"}},
    ],
    ids=str,
)
def test_what_is_not_known_as_a_reranker_is_not_used_as_one(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    with pytest.raises(SettingError):
        Reranker(folder_of(tmp_path, **files))


def test_engines_refuse_a_model_of_the_other_task(tmp_path: Path) -> None:
    """A name on the hub may turn out to be another model only after its files were fetched."""
    reranker, embedding = folder_of(tmp_path / "1", **_CROSS), folder_of(tmp_path / "2", _END)
    engine = TransformersEngine()
    assert engine.why_unsupported(ServerSpec(str(reranker), task=RERANK)) is None
    assert engine.why_unsupported(ServerSpec(str(reranker))) is not None
    assert engine.why_unsupported(ServerSpec(str(embedding), task=RERANK)) is not None
    assert support.why_not_reranked(ServerSpec(str(reranker), task=RERANK)) is None


def test_the_task_is_part_of_the_identity_of_a_reranker_only() -> None:
    assert ServerSpec().key == "50cbde0dde972b07"  # as before there were rerankers
    assert ServerSpec(task=RERANK).key != ServerSpec().key


def test_a_command_takes_the_task_from_the_model(tmp_path: Path) -> None:
    named = {
        "Qwen/Qwen3-Reranker-0.6B": RerankSettings,
        "Qwen/Qwen3-Embedding-0.6B": Settings,
        str(folder_of(tmp_path / "1", **_CROSS)): RerankSettings,
        str(folder_of(tmp_path / "2")): Settings,
    }
    for model, kind in named.items():
        assert type(options.settings(model=model, embeds=False)) is kind
    assert type(options.settings(embeds=False)) is Settings
    with pytest.raises(SettingError):
        options.settings(model="Qwen/Qwen3-Reranker-0.6B")


# ---------------------------------------------------------------- the prompt of a reranker

_LEGAL = "Given a legal question, find the statute"
_ROLES = (
    '{%- set query = messages | selectattr("role", "eq", "query") | map(attribute="content") '
    '| first -%}\n{%- set document = messages | selectattr("role", "eq", "document") '
    '| map(attribute="content") | first -%}\n'
)
_TASK_SLOT = (
    '{{ messages | selectattr("role", "eq", "system") | map(attribute="content") | first '
    f'| default("{WEB_TASK}") }}}}'
)
_BEFORE, _AFTER = rerank_frame("{{ query }}", default="{task}")
_PAIRS = f"{_ROLES}{_BEFORE}{{{{ document }}}}{_AFTER}\n"
_TEMPLATE = _PAIRS.replace("{task}", _TASK_SLOT)
# As published models that were made from Qwen3-Reranker have it: the instruction is a variable too.
_NAMED = _TASK_SLOT.replace("{{ ", "{%- set task = ").replace(" }}", " -%}\n") + _PAIRS.replace(
    "{task}", "{{ task }}"
)
_QUERY_CHAIN, _DOCUMENT_CHAIN = (
    f'messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first'
    for role in ("query", "document")
)
# As the documentation of vLLM has it, and with the other way to the content of a message.
_INLINE = (
    _TEMPLATE.removeprefix(_ROLES)
    .replace("{{ query }}", f"{{{{\n{_QUERY_CHAIN}\n}}}}")
    .replace("{{ document }}", f"{{{{ {_DOCUMENT_CHAIN} }}}}")
)
_ATTRIBUTES = _INLINE.replace(
    _QUERY_CHAIN, "(messages | selectattr('role', 'eq', 'query') | first).content"
)
_NO_DEFAULT = re.sub(r' [|] default\(".*?"\)', "", _TEMPLATE)
_SET_TASK = _NAMED[: _NAMED.index("\n") + 1]
_DEFAULT_LATER = _NAMED.replace(f' | default("{WEB_TASK}")', "").replace(
    "{{ task }}", f"{{{{ task | default('{_LEGAL}') }}}}"
)
_UNUSED_SYSTEM = _SET_TASK + _PAIRS.replace("{task}", _LEGAL)
_OTHER_TASKS = (
    'task | default("Find code", true)',
    'task | default("Find code", boolean=true)',
    "task | default(query)",
    'task or "Find code"',
    'task if task else "Find code"',
    "task | upper",
    "other",
)
_OTHER_QUERIES = (
    "query.strip()",
    'query ~ " x"',
    'query | default("No query")',
    "document",
    '"the query"',
)
_SWAPPED = (
    _PAIRS.replace("{{ query }}", "{{ x }}")
    .replace("{{ document }}", "{{ query }}")
    .replace("{{ x }}", "{{ document }}")
    .replace("{task}", _TASK_SLOT)
)
_HIDDEN = f"{{# {{% set query = {_QUERY_CHAIN} %}} #}}"
_CHAT = "{% for message in messages %}{{ message.role }}{{ message.content }}{% endfor %}"


def reranker_folder(tmp_path: Path, saved: dict[str, Any], template: str | None = None) -> Path:
    """Return a folder that sentence-transformers' CrossEncoder saved."""
    saved = {"model_type": "CrossEncoder", **saved}
    folder = folder_of(tmp_path, config_sentence_transformers=saved)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def rendered(template: str, *messages: dict[str, str]) -> str:
    """What Transformers makes of a chat template."""
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(**options).from_string(template).render(messages=messages)


@pytest.mark.parametrize(
    ("saved", "template", "task"),
    [
        ({}, None, WEB_TASK),
        ({"prompts": {"legal": _LEGAL}}, None, WEB_TASK),
        ({"prompts": {"legal": _LEGAL}, "default_prompt_name": "legal"}, None, _LEGAL),
        ({"prompts": {"legal": _LEGAL}, "default_prompt_name": "legal"}, _TEMPLATE, _LEGAL),
        ({"prompts": {"legal": ""}, "default_prompt_name": "legal"}, _TEMPLATE, WEB_TASK),
        ({}, _TEMPLATE, WEB_TASK),
        ({}, _TEMPLATE.replace(WEB_TASK, _LEGAL), _LEGAL),
        ({}, _PAIRS.replace("{task}", _LEGAL), _LEGAL),
        ({}, _NAMED, WEB_TASK),
        ({"prompts": {"legal": _LEGAL}, "default_prompt_name": "legal"}, _NAMED, _LEGAL),
        ({"prompts": {"x": "y"}, "default_prompt_name": "x"}, _PAIRS.replace("{task}", "a"), "a"),
        ({}, _CHAT, WEB_TASK),
        ({}, _INLINE, WEB_TASK),
        ({}, _ATTRIBUTES, WEB_TASK),
        ({}, _NAMED.replace("{{ task }}", "{{ task | default('unused') }}"), WEB_TASK),
        ({}, _DEFAULT_LATER, _LEGAL),
        ({}, _UNUSED_SYSTEM, _LEGAL),
        ({"prompts": {"x": "y"}, "default_prompt_name": "x"}, _UNUSED_SYSTEM, _LEGAL),
        ({"prompts": {"x": "y"}, "default_prompt_name": "x"}, _NO_DEFAULT, "y"),
    ],
)
def test_the_default_instruction_of_a_reranker_is_that_of_its_files(
    tmp_path: Path, saved: dict[str, Any], template: str | None, task: str
) -> None:
    folder = reranker_folder(tmp_path, saved, template)
    known = model_card.describe(str(folder))
    assert (known.task, known.query_task) == (RERANK, task)
    Reranker(folder)
    if template not in (None, _CHAT):
        # As sentence-transformers calls it, and with Jinja itself.
        name = saved.get("default_prompt_name")
        text = saved["prompts"][name] if name else ""
        system = [{"role": "system", "content": text}] if text else []
        pair = [{"role": "query", "content": "q"}, {"role": "document", "content": "d"}]
        prompt = "d".join(rerank_frame("q", default=known.query_task))
        assert rendered(str(template), *system, *pair) == prompt


@pytest.mark.parametrize(
    ("saved", "template"),
    [
        ({"prompts": {"legal": _LEGAL}, "default_prompt_name": "other"}, None),
        ({"prompts": {"legal": 1}, "default_prompt_name": "legal"}, None),
        ({"prompts": {"legal": "\ud800"}, "default_prompt_name": "legal"}, None),
        ({}, _TEMPLATE.replace("Judge", "Decide")),
        ({}, _TEMPLATE.removesuffix("\n")),  # one line break less at the end of the prompt
        ({}, _TEMPLATE.replace("<think>\n\n</think>\n\n", "")),
        ({}, _TEMPLATE.replace("{{ document }}", "{{ document | trim }}")),
        ({}, _TEMPLATE.replace("<Query>", "{% if query %}<Query>{% endif %}")),
        ({}, _PAIRS.replace("{task}", f"Task: {_TASK_SLOT}")),
        ({}, _NO_DEFAULT),
        ({}, _TEMPLATE.replace(WEB_TASK, "")),
        ({}, _TEMPLATE.replace(WEB_TASK, r"Find \x63ode")),
        *[({}, _NAMED.replace("{{ task }}", f"{{{{ {code} }}}}")) for code in _OTHER_TASKS],
        *[({}, _TEMPLATE.replace("{{ query }}", f"{{{{ {code} }}}}")) for code in _OTHER_QUERIES],
        ({}, _TEMPLATE.replace("{{ document }}", "{{ document[:500] }}")),
        (
            {},
            _TEMPLATE.replace('"query"', '"x"').replace('"document"', '"query"')
            + "{# 'document' #}",
        ),
        ({}, _SWAPPED),
        ({}, _TEMPLATE.replace(_ROLES, f"{_ROLES}{{% set query = document %}}")),
        ({}, _TEMPLATE.replace(_ROLES, f"{_ROLES}{{% set query = document %}}{_HIDDEN}")),
        ({}, _TEMPLATE.replace(_ROLES, f"{_ROLES}{{% set messages = query %}}")),
    ],
)
def test_a_reranker_with_another_prompt_is_refused(
    tmp_path: Path, saved: dict[str, Any], template: str | None
) -> None:
    folder = reranker_folder(tmp_path, saved, template)
    with pytest.raises(SettingError):
        Reranker(folder)
    with pytest.raises(SettingError):  # nor is it an embedding model
        Embedder(folder, query_instruction="", document_instruction="")


def test_the_file_of_a_chat_template_wins_over_the_settings_of_the_tokenizer(
    tmp_path: Path,
) -> None:
    folder = reranker_folder(tmp_path, {})
    other = _TEMPLATE.replace("Judge", "Decide")
    named = [{"name": "default", "template": other}, {"name": "x", "template": _TEMPLATE}]
    for template in (other, named):
        write(folder, tokenizer_config={"chat_template": template})
        with pytest.raises(SettingError):
            Reranker(folder)
    (folder / "chat_template.jinja").write_text(_TEMPLATE)
    Reranker(folder)


def test_a_reranker_that_was_trained_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    folder = reranker_folder(tmp_path, {}, _TEMPLATE)
    modes = {"text": {"method": "forward"}}
    write(folder, sentence_bert_config={"modality_config": modes})
    with pytest.raises(SettingError):
        Reranker(folder)
    write(folder, sentence_bert_config={"modality_config": {**modes, "message": {}}})
    Reranker(folder)


def test_a_reranker_on_the_hub_is_described_only_once_its_chat_template_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    saved = {"model_type": "CrossEncoder", "prompts": {"x": _LEGAL}, "default_prompt_name": "x"}
    files = {
        "config.json": {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 64},
        "config_sentence_transformers.json": saved,
    }
    snapshot = checkpoints_made.write_cached(tmp_path, "house/reranker", files)
    reranker = Reranker("house/reranker")
    assert reranker.default_instruction is None
    for name in model_card.missing_files(snapshot):
        (snapshot / name).write_text(_TEMPLATE if name.endswith(".jinja") else "{}")
    assert reranker.default_instruction == _LEGAL
