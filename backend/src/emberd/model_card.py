"""What a model says of itself: dimensions, context, tokens around a text, prompts.

A model folder is described by the files that sentence-transformers and Transformers write, and so
is a name on the hub that is not in the catalog, by the files in the hub's cache:
``config.json``, ``tokenizer.json``, ``modules.json``, the ``config.json`` of each module,
``sentence_bert_config.json`` and ``config_sentence_transformers.json``. The formats and rules are
those of sentence-transformers 5.0 to 6.2, tested with 6.2.0; neither library is imported. What the
files do not say comes from the catalog, if the folder is named like one of its models.

``read_prompts`` says what comes before each text. What the modules ask of a server is in
``model_pooling``.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from emberd import catalog, model_pooling, model_tokenizer, rerank_prompts
from emberd.catalog import Model
from emberd.model_files import (
    CONFIG,
    ModelFileError,
    absolute,
    as_object,
    hub_cache,
    hub_lacks,
    hub_snapshot,
    is_folder,
    is_path,
    load_json,
    read_json,
)
from emberd.model_pooling import ADAPTER, MODULES, POOLING_FOLDER, PROMPTS_FILE, TRANSFORMER
from emberd.model_tokenizer import Tokenizer

_QUERY: Final = "query"
_DOCUMENT: Final = "document"
# The names that encode_document of sentence-transformers tries, in order. It always stops at the
# first, which it sets to "" if the file has none (5.0 to 6.2).
_DOCUMENT_NAMES: Final = (_DOCUMENT, "passage", "corpus")


# ------------------------------------------------------------ the model as a whole


def describe(name: str, revision: str | None = None, *, task: str = catalog.EMBED) -> Model:
    """Return what is known of a model: from the files of its folder, else from the catalog.

    The files win, because a folder named like a model of the catalog may hold a fine-tuned one.
    The catalog fills in what the files do not say. A name on the hub that is not in the catalog is
    described by its files in the hub's cache. No file is fetched; see ``emberd.hub``.

    Args:
        name: Name on the hub, or a folder.
        revision: Commit, branch or tag on the hub.
        task: What the model is wanted for. It decides only where the files say nothing of the task.
    """
    if is_folder(name):
        return _described(name, Path(name), task, False, *_changes(Path(name)))
    known = catalog.find(name)
    if known is not None:
        return known
    if is_path(name):
        problem = f"there is no folder {name}, and no model of that name is known"
        return Model(name, query_problem=problem, document_problem=problem)
    if (folder := _complete(name, revision)) is not None:
        # A process keeps to one commit: a download by the server may move the branch, and prompts
        # that change between documents and queries would go unnoticed.
        return _described(name, folder, task, True)
    folder = hub_snapshot(name, revision)
    if folder is not None:
        return _described(name, folder, task, True, *_changes(folder))
    problem = f"{PROMPTS_FILE} of {name} is not on this machine"
    return Model(name, query_problem=problem, document_problem=problem)


def is_incomplete(name: str, revision: str | None) -> bool:
    """Return whether the model is described by files on the hub that are not all in the cache."""
    if is_folder(name) or is_path(name) or catalog.find(name) is not None:
        return False
    return _complete(name, revision) is None


def lacks_prompts_file(name: str, revision: str | None) -> bool:
    """Return whether the missing files include the one with the prompts."""
    if not is_incomplete(name, revision):
        return False
    snapshot = hub_snapshot(name, revision)
    return snapshot is None or PROMPTS_FILE in missing_files(snapshot)


def missing_files(snapshot: Path, *, optional: bool = False) -> list[str]:
    """Return the files that a snapshot in the hub's cache lacks, although the hub may have them.

    Args:
        snapshot: The snapshot of a model.
        optional: Include files that nothing else than emberd and sentence-transformers reads, and
            that were downloaded with the others if there are any.
    """
    names = [CONFIG, MODULES, PROMPTS_FILE, model_tokenizer.FILE]
    try:
        listed = load_json(snapshot / MODULES)
    except ModelFileError:
        listed = []  # an error when the model is checked
    for entry in listed if isinstance(listed, list) else []:
        path = entry["path"] if model_pooling.is_entry(entry) else ""
        parts = PurePosixPath(path)
        if path.isprintable() and parts.parts and ".." not in parts.parts and path[0] != "/":
            names.append(str(parts / CONFIG))
    if _says_cross_encoder(snapshot, listed if isinstance(listed, list) else []):
        names += [TRANSFORMER[0], rerank_prompts.TEMPLATE, model_tokenizer.SETTINGS]
    if optional:
        names += [TRANSFORMER[0], ADAPTER]
        names += [f"{POOLING_FOLDER}/{CONFIG}"] if listed is None else []
    return [
        name
        for name in dict.fromkeys(names)
        if not os.path.exists(snapshot / name) and not hub_lacks(snapshot, name)
    ]


# (Name, revision, cache) -> the snapshot that describes a model in this process.
_chosen: dict[tuple[str, str | None, Path], Path] = {}


def choose(name: str, revision: str | None, snapshot: Path) -> None:
    """Describe a model on the hub by this snapshot from now on, although files are missing."""
    _chosen[name, revision, hub_cache()] = snapshot


def may_rerank(model: str, revision: str | None = None) -> bool:
    """Return whether a model's files name no task, and can be those of a reranker.

    Args:
        model: Name on the hub, or a folder.
        revision: Commit, branch or tag on the hub.
    """
    name = absolute(model)
    wanted = describe(name, revision, task=catalog.RERANK)
    return wanted.task == catalog.RERANK and describe(name, revision).task is None


def _complete(name: str, revision: str | None) -> Path | None:
    """Return the snapshot that describes a model on the hub; None if files are missing."""
    key = name, revision, hub_cache()
    if key not in _chosen:
        snapshot = hub_snapshot(name, revision)
        if snapshot is None or missing_files(snapshot):
            return None
        _chosen[key] = snapshot
    return _chosen[key]


def _changes(folder: Path) -> list[int]:
    names = (CONFIG, MODULES, PROMPTS_FILE, rerank_prompts.TEMPLATE)
    files = (*names, *model_pooling.TRANSFORMER, *model_tokenizer.FILES)
    return [_changed_ns(folder / file) for file in files]


@functools.lru_cache(maxsize=32)
def _described(name: str, folder: Path, task: str, is_cached: bool, *_changed: int) -> Model:
    # Called for each query; the files are read again only when one of them has changed.
    config = read_json(folder / CONFIG)
    keys = ("is_matryoshka", "matryoshka_dimensions")
    matryoshka = [config[key] for key in keys if config.get(key) is not None]
    tokenizer = model_tokenizer.read(folder)
    stated: dict[str, Any] = {
        "dimensions": _integer(config.get("hidden_size")),
        "context_tokens": catalog.most_tokens(config),
        "cut_tokens": model_pooling.cut_tokens(folder),
        "start_ids": tokenizer.start_ids or None,
        "end_of_text_id": tokenizer.end_of_text_id,
        "special_tokens": tokenizer.special_tokens or None,
        "matryoshka": any(matryoshka) if matryoshka else None,
        "cut_to": read_json(folder / PROMPTS_FILE).get("truncate_dim"),
    }
    facts = {field: value for field, value in stated.items() if value is not None}
    if tokenizer.starts_with_nfc is not None:
        facts["normalization"] = catalog.NFC if tokenizer.starts_with_nfc else None
        facts["normalization_is_known"] = True
        facts["trims"] = tokenizer.trims
    listed = None if is_cached else catalog.find(name)
    known = replace(listed or Model(name), name=name, **facts)
    lacks_modules = not is_cached or hub_lacks(folder, MODULES)
    found = _task(folder, known.task, tokenizer, task, lacks_modules=lacks_modules)
    known = replace(known, **found)
    if known.task == catalog.RERANK:
        # No token follows the prompt, whatever the tokenizer does with a text.
        known = replace(known, dimensions=1, cut_to=None, start_ids=(), end_of_text_id=None)
        try:
            return replace(known, query_task=rerank_prompts.default_instruction(folder))
        except ModelFileError as error:
            return replace(known, query_problem=error.cause)
    prompts = read_prompts(folder)
    if prompts is not None:
        return replace(known, **_templates(prompts))
    if listed is not None:
        return known
    problem = _why_no_prompts(folder, is_cached=is_cached)
    return replace(known, query_problem=problem, document_problem=problem)


_LOGIT_SCORE: Final = ".LogitScore"
_CROSS_ENCODER: Final = "CrossEncoder"
_CLASSIFIER: Final = "ForSequenceClassification"
_QWEN3: Final = "Qwen3ForCausalLM"


def _task(
    folder: Path, listed: str | None, tokenizer: Tokenizer, wanted: str, *, lacks_modules: bool
) -> dict[str, Any]:
    """Return the task of a folder's model, and which file says so.

    Args:
        folder: The model's files.
        listed: The task of the model of the catalog after which the folder is named.
        tokenizer: What its tokenizer does.
        wanted: The task for which it is wanted.
        lacks_modules: A missing ``modules.json`` means that the model has none.
    """
    try:
        modules = load_json(folder / MODULES)
    except ModelFileError:
        return {}  # an error when the model is checked
    listed_modules = modules if isinstance(modules, list) else []
    types = [str(each["type"]) for each in listed_modules if model_pooling.is_entry(each)]
    architecture = model_pooling.architecture(folder) or ""
    scores = [each for each in types if each.endswith(_LOGIT_SCORE)]
    if _says_cross_encoder(folder, listed_modules) or architecture.endswith(_CLASSIFIER):
        if architecture != _QWEN3:
            reason = f"it is a {architecture or 'cross-encoder'}, which emberd does not serve"
            return {"task": None, "task_reason": reason}
        file = folder / (MODULES if scores else PROMPTS_FILE)
        reason = f"{file} says {scores[0] if scores else _CROSS_ENCODER}"
        labels = _label_ids(folder, listed_modules)
        if scores and labels is None:
            reason = f"its LogitScore module in {file} does not compare two tokens"
            return {"task": None, "task_reason": reason}
        return {"task": catalog.RERANK, "task_reason": reason, "label_ids": labels}
    if types or model_pooling.names_pooling(folder):
        file = folder / (MODULES if types else POOLING_FOLDER)
        return {"task": catalog.EMBED, "task_reason": f"{file} says how it pools tokens"}
    if read_prompts(folder) is not None:
        reason = f"{folder / PROMPTS_FILE} has prompts of an embedding model"
        return {"task": catalog.EMBED, "task_reason": reason}
    if listed is not None or architecture != _QWEN3 or not lacks_modules:
        return {}
    # Qwen3-Embedding and Qwen3-Reranker have the same configuration. The first reads the state of
    # the end-of-text token, which its tokenizer appends; the second answers after the prompt.
    if tokenizer.end_of_text_id is not None:
        reason = f"{folder / model_tokenizer.FILE} appends an end-of-text token to each text"
        return {"task": catalog.EMBED, "task_reason": reason}
    if not tokenizer.is_known or wanted != catalog.RERANK:
        return {}  # some embedding models have no such tokenizer either
    reason = (
        f"it is a {_QWEN3} without {MODULES}, and {folder / model_tokenizer.FILE} appends no "
        f"end-of-text token"
    )
    return {"task": catalog.RERANK, "task_reason": reason}


def _says_cross_encoder(folder: Path, modules: list[Any]) -> bool:
    """Return whether the files of sentence-transformers say that the model scores pairs."""
    types = (str(each["type"]) for each in modules if model_pooling.is_entry(each))
    has_scores = any(each.endswith(_LOGIT_SCORE) for each in types)
    return has_scores or read_json(folder / PROMPTS_FILE).get("model_type") == _CROSS_ENCODER


def _label_ids(folder: Path, modules: list[Any]) -> tuple[int, int] | None:
    """Return the tokens that the LogitScore module of a reranker compares; None if it has none."""
    for entry in modules:
        if model_pooling.is_entry(entry) and entry["type"].endswith(_LOGIT_SCORE):
            settings = read_json(folder / PurePosixPath(entry["path"]).name / CONFIG)
            ids = settings.get("true_token_id"), settings.get("false_token_id")
            if all(type(each) is int for each in ids):
                return ids  # type: ignore[return-value]  # checked
    return None


def _why_no_prompts(folder: Path, *, is_cached: bool) -> str:
    path = folder / PROMPTS_FILE
    if os.path.exists(path):
        return f"{path} has no prompts"
    if is_cached and not hub_lacks(folder, PROMPTS_FILE):
        return f"{path} has not been downloaded"
    return f"there is no {path}"


def _changed_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _templates(prompts: Prompts) -> dict[str, Any]:
    found = {
        "query_task": None,
        "query_template": f"{prompts.query or ''}{{text}}",
        "document_template": f"{prompts.document or ''}{{text}}",
        "query_problem": prompts.problem.get(_QUERY),
        "document_problem": prompts.problem.get(_DOCUMENT),
    }
    if prompts.query == "":
        return found  # how the model takes a task, if the catalog knows it, still holds
    task = catalog.task_of(prompts.query or "")
    if task is None:
        return found | {"instruction_form": None}
    # A fine-tuned Qwen3-Embedding: the caller's tasks are applied in the same form.
    own = {"query_template": "{text}", "query_task": task, "instruction_form": catalog.QWEN_FORM}
    return found | own


# ------------------------------------------------------------ prompts


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts that a folder puts before the texts of each role.

    Attributes:
        query: The prompt of queries; None if ``problem`` has an entry for them.
        document: The prompt of documents; None if ``problem`` has an entry for them.
        problem: Role -> why its prompt is not known.
        unused: Prompts of the folder that apply to neither role, as ``name='text'``.
    """

    query: str | None
    document: str | None
    problem: Mapping[str, str]
    unused: tuple[str, ...] = ()


def read_prompts(folder: Path) -> Prompts | None:
    """Return the prompts that sentence-transformers' encode_query and encode_document put first.

    Returns:
        None if the folder has no file of prompts, or the file has no ``prompts`` or empty ones.
    """
    path = folder / PROMPTS_FILE
    try:
        found = load_json(path)
        if found is None:
            return None
        described = as_object(path, found)
        if described.get("suffix"):
            raise ModelFileError(
                f"{path} has suffix={json.dumps(described['suffix'])}, which sentence-transformers "
                f"does not apply, so what belongs after a text is unknown"
            )
        # Releases 2.4 to 4 saved ``{}`` for every model.
        named = as_object(path, described.get("prompts", {}), "prompts")
        default = described.get("default_prompt_name")
        # sentence-transformers does not load a model whose default names no prompt.
        if default is not None and default not in [_QUERY, _DOCUMENT, *named]:
            raise ModelFileError(
                f"{path} has default_prompt_name={json.dumps(default)}, but no prompt of that name"
            )
        if not named:
            return None
        # Prompts of tasks only, of which encode_query and encode_document use none: that cannot be
        # what the model wants.
        if not named.keys() & {_QUERY, *_DOCUMENT_NAMES}:
            listed = ", ".join(f"{name}={text!r}" for name, text in named.items())
            raise ModelFileError(f"{path} has no prompt for queries or documents, only {listed}")
    except ModelFileError as error:
        return Prompts(None, None, {_QUERY: error.cause, _DOCUMENT: error.cause})
    prompts: dict[str, str] = {}
    problem: dict[str, str] = {}
    for role in (_QUERY, _DOCUMENT):
        try:
            prompts[role] = _prompt(path, role, named)
        except ModelFileError as error:
            problem[role] = error.cause
    # Prompts of other names are for tasks that the caller names. The author of the model expects
    # that these apply without being named; but the default applies to ``encode`` only, and
    # ``encode_query`` and ``encode_document`` always have their own prompt, "" if there is none.
    expected = [name for name in (*_DOCUMENT_NAMES[1:], default) if name and named.get(name)]
    unused = [name for name in dict.fromkeys(expected) if name not in (_QUERY, _DOCUMENT)]
    return Prompts(
        query=prompts.get(_QUERY),
        document=prompts.get(_DOCUMENT),
        problem=problem,
        unused=tuple(f"{name}={named[name]!r}" for name in unused),
    )


def read_saved_settings(name: str, revision: str | None) -> dict[str, Any]:
    """Return what sentence-transformers saved with a model: prompts of all names, and defaults.

    Returns:
        The contents of the file, unchecked; empty if it is not on this machine.
    """
    if is_folder(name):
        return read_json(Path(name) / PROMPTS_FILE)
    folder = None if is_path(name) else _complete(name, revision) or hub_snapshot(name, revision)
    return read_json(folder / PROMPTS_FILE) if folder is not None else {}


def unused_prompts(folder: Path) -> list[str]:
    """Return a sentence for each prompt of the folder that applies to neither role."""
    prompts = read_prompts(folder)
    return [
        f"{folder / PROMPTS_FILE} has the prompt {prompt}, which neither emberd nor encode_query "
        f"and encode_document of sentence-transformers use. To use it, pass it as "
        f"query_instruction= or document_instruction=."
        for prompt in (prompts.unused if prompts else ())
    ]


def _prompt(path: Path, role: str, named: Mapping[str, Any]) -> str:
    text = named.get(role)
    if text is None:
        # The documentation of encode_document says that "passage" is tried after "document"; the
        # code never does so. Following either would be a guess about the model's training.
        for name in _DOCUMENT_NAMES[1:] if role == _DOCUMENT else ():
            if named.get(name):
                raise ModelFileError(
                    f"{path} has a prompt {name}={named[name]!r} and none called {_DOCUMENT}: "
                    f"encode_document of sentence-transformers is documented to use {name}, but "
                    f"uses no prompt"
                )
        return ""
    if not isinstance(text, str):
        raise ModelFileError(
            f"{path} has the prompt {role}={json.dumps(text)}, which is not a string"
        )
    if "{text}" in text:
        raise ModelFileError(
            f"{path} has the prompt {role}={text!r}: it contains {{text}}, which "
            f"sentence-transformers treats literally and emberd as a placeholder"
        )
    return text
