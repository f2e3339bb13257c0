"""What a model says of itself: dimensions, context, prompts, modules and pooling.

A model folder is described by the files that sentence-transformers and Transformers write, and so
is a name on the hub that is not in the catalog, by the files in the hub's cache:
``config.json``, ``tokenizer.json``, ``modules.json``, the ``config.json`` of each module,
``sentence_bert_config.json`` and ``config_sentence_transformers.json``. The formats and rules are
those of sentence-transformers 5.0 to 6.2, tested with 6.2.0; neither library is imported. What the
files do not say comes from the catalog, if the folder is named like one of its models.

The servers that emberd starts pool the token states in one way and normalise the result.
``why_unsupported`` says what a folder asks for that such a server does differently;
``read_prompts`` says what comes before each text.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn

from emberd import catalog, model_tokenizer
from emberd.catalog import Model
from emberd.model_files import (
    CONFIG,
    ModelFileError,
    as_object,
    hub_cache,
    hub_lacks,
    hub_snapshot,
    is_folder,
    is_path,
    load_json,
    read_json,
)

OTHER_SERVER: Final = (
    "Serve this model with a server that computes its vectors as it was trained, and give its "
    "address (base_url=); or use a model with last-token pooling, such as "
    "Qwen/Qwen3-Embedding-0.6B."
)
"""What to do about a model whose vectors the servers of emberd do not compute."""

LAST_TOKEN: Final = "lasttoken"  # noqa: S105 - not a password

_PROMPTS_FILE: Final = "config_sentence_transformers.json"
_MODULES: Final = "modules.json"
_ADAPTER: Final = "adapter_config.json"
_TRANSFORMER: Final = "sentence_bert_config.json"
_POOLING_FOLDER: Final = "1_Pooling"
_SERVED: Final = ("Transformer", "Pooling", "Normalize")

_MEAN: Final = "mean"
# What a server can do: name in sentence-transformers 6.x -> plain words.
_POOLING_WORDS: Final = {
    LAST_TOKEN: "the last token",
    "cls": "the first token",
    _MEAN: "the mean of the tokens",
}
_MODE: Final = "pooling_mode"
# Up to 5.x each mode had its own boolean. The names on the right are those of 6.x.
_OLD_MODES: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": _MEAN,
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": LAST_TOKEN,
}
_INCLUDE_PROMPT: Final = "include_prompt"

# Settings of the Transformer module that change tokens or vectors -> the values that do not.
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "transformer_task": (None, "feature-extraction"),
    "module_output_name": (None, "token_embeddings"),
    "processing_kwargs": (None, {}),
    "do_lower_case": (None, False),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
}
_TEXT_MODALITY: Final = {"method": "forward", "method_output_name": "last_hidden_state"}

_QUERY: Final = "query"
_DOCUMENT: Final = "document"
# The names that encode_document of sentence-transformers tries, in order. It always stops at the
# first, which it sets to "" if the file has none (5.0 to 6.2).
_DOCUMENT_NAMES: Final = (_DOCUMENT, "passage", "corpus")


# ------------------------------------------------------------ the model as a whole


def describe(name: str, revision: str | None = None) -> Model:
    """Return what is known of a model: from the files of its folder, else from the catalog.

    The files win, because a folder named like a model of the catalog may hold a fine-tuned one.
    The catalog fills in what the files do not say. A name on the hub that is not in the catalog is
    described by its files in the hub's cache. Nothing is fetched; see ``emberd.hub``.
    """
    if is_folder(name):
        return _described(name, Path(name), False, *_changes(Path(name)))
    known = catalog.find(name)
    if known is not None:
        return known
    if is_path(name):
        problem = f"there is no folder {name}, and no model of that name is known"
        return Model(name, query_problem=problem, document_problem=problem)
    if (folder := _complete(name, revision)) is not None:
        # A process keeps to one commit: a download by the server may move the branch, and prompts
        # that change between documents and queries would go unnoticed.
        return _described(name, folder, True)
    folder = hub_snapshot(name, revision)
    if folder is not None:
        return _described(name, folder, True, *_changes(folder))
    problem = f"{_PROMPTS_FILE} of {name} is not on this machine"
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
    return snapshot is None or _PROMPTS_FILE in missing_files(snapshot)


def missing_files(snapshot: Path, *, optional: bool = False) -> list[str]:
    """Return the files that a snapshot in the hub's cache lacks, although the hub may have them.

    Args:
        snapshot: The snapshot of a model.
        optional: Include files that nothing else than emberd and sentence-transformers reads, and
            that were downloaded with the others if there are any.
    """
    names = [CONFIG, _MODULES, _PROMPTS_FILE, model_tokenizer.FILE]
    try:
        listed = load_json(snapshot / _MODULES)
    except ModelFileError:
        listed = []  # an error when the model is checked
    for entry in listed if isinstance(listed, list) else []:
        path = entry["path"] if _is_entry(entry) else ""
        parts = PurePosixPath(path)
        if path.isprintable() and parts.parts and ".." not in parts.parts and path[0] != "/":
            names.append(str(parts / CONFIG))
    if optional:
        names += [_TRANSFORMER, _ADAPTER]
        names += [f"{_POOLING_FOLDER}/{CONFIG}"] if listed is None else []
    return [
        name
        for name in names
        if not os.path.exists(snapshot / name) and not hub_lacks(snapshot, name)
    ]


# (Name, revision, cache) -> the snapshot that describes a model in this process.
_chosen: dict[tuple[str, str | None, Path], Path] = {}


def choose(name: str, revision: str | None, snapshot: Path) -> None:
    """Describe a model on the hub by this snapshot from now on, although files are missing."""
    _chosen[name, revision, hub_cache()] = snapshot


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
    return [_changed_ns(folder / file) for file in (CONFIG, _PROMPTS_FILE, model_tokenizer.FILE)]


@functools.lru_cache(maxsize=32)
def _described(name: str, folder: Path, is_cached: bool, *_changed: int) -> Model:
    # Called for each query; the files are read again only when one of them has changed.
    config = read_json(folder / CONFIG)
    keys = ("is_matryoshka", "matryoshka_dimensions")
    matryoshka = [config[key] for key in keys if config.get(key) is not None]
    tokenizer = model_tokenizer.read(folder)
    stated: dict[str, Any] = {
        "dimensions": _integer(config.get("hidden_size")),
        "context_tokens": catalog.most_tokens(config),
        "start_ids": tokenizer.start_ids or None,
        "end_of_text_id": tokenizer.end_of_text_id,
        "matryoshka": any(matryoshka) if matryoshka else None,
        "cut_to": read_json(folder / _PROMPTS_FILE).get("truncate_dim"),
    }
    facts = {field: value for field, value in stated.items() if value is not None}
    if tokenizer.starts_with_nfc is not None:
        facts["normalization"] = catalog.NFC if tokenizer.starts_with_nfc else None
        facts["normalization_is_known"] = True
        facts["trims"] = tokenizer.trims
    listed = None if is_cached else catalog.find(name)
    known = replace(listed or Model(name), name=name, **facts)
    prompts = read_prompts(folder)
    if prompts is not None:
        return replace(known, **_templates(prompts))
    if listed is not None:
        return known
    problem = _why_no_prompts(folder, is_cached=is_cached)
    return replace(known, query_problem=problem, document_problem=problem)


def _why_no_prompts(folder: Path, *, is_cached: bool) -> str:
    path = folder / _PROMPTS_FILE
    if os.path.exists(path):
        return f"{path} has no prompts"
    if is_cached and not hub_lacks(folder, _PROMPTS_FILE):
        return f"{path} has not been downloaded"
    return f"there is no {path}"


def architecture(folder: Path) -> str | None:
    """Return the class that a folder's configuration names, such as ``Qwen3ForCausalLM``."""
    listed = read_json(folder / CONFIG).get("architectures")
    return str(listed[0]) if isinstance(listed, list) and listed else None


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


# ------------------------------------------------------------ modules and pooling


def why_unsupported(
    folder: Path, *, pooling: str = LAST_TOKEN, partial: bool = False
) -> ModelFileError | None:
    """Return why a server with this pooling cannot compute this model's vectors.

    Args:
        folder: The model's files. A folder without ``modules.json`` is a plain checkpoint of
            Transformers, which says nothing about pooling; its ``1_Pooling`` is read if present.
        pooling: What the server does with this model: ``"lasttoken"``, ``"cls"`` or ``"mean"``.
        partial: Accept missing files: a snapshot in the hub's cache may be incomplete.

    Returns:
        None if the files ask for nothing that such a server does differently.
    """
    try:
        config = load_json(folder / CONFIG)
        if isinstance(config, dict) and config.get("is_causal") is False:
            why = "that is bidirectional attention; the server computes causal attention"
            _refuse(folder / CONFIG, "is_causal", False, why)
        if os.path.exists(folder / _ADAPTER):
            raise ModelFileError(
                f"{folder} contains {_ADAPTER}: the model is an adapter for a base model, and the "
                f"server does not load adapters",
                "Merge the adapter into the weights (merge_and_unload of PEFT) and save the whole "
                "model.",
            )
        listed = load_json(folder / _MODULES)
        if listed is not None:
            _check_modules(folder, listed, pooling, partial=partial)
        elif (declared := load_json(folder / _POOLING_FOLDER / CONFIG)) is not None:
            _check_pooling(folder / _POOLING_FOLDER / CONFIG, declared, pooling)
    except ModelFileError as error:
        return error
    return None


def names_pooling(folder: Path) -> bool:
    """Return whether the folder says how token states become one vector."""
    return any(os.path.exists(folder / name) for name in (_MODULES, f"{_POOLING_FOLDER}/{CONFIG}"))


def tells_pooling(snapshot: Path) -> bool:
    """Return whether it is known how, or that nowhere, a snapshot of the hub's cache says so."""
    return names_pooling(snapshot) or hub_lacks(snapshot, _MODULES)


def _refuse(path: Path, name: str, value: object, why: str) -> NoReturn:
    raise ModelFileError(f"{path} has {name}={json.dumps(value)}, {why}", OTHER_SERVER)


def _check_modules(folder: Path, listed: object, pooling: str, *, partial: bool) -> None:
    path = folder / _MODULES
    described = load_json(folder / _PROMPTS_FILE)
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind not in (None, "SentenceTransformer"):
        why = "and the server computes the vectors of a SentenceTransformer"
        _refuse(folder / _PROMPTS_FILE, "model_type", kind, why)
    if not isinstance(listed, list) or not all(_is_entry(entry) for entry in listed):
        raise ModelFileError(f"{path} is not a list of modules with a type and a path")
    # Only the library's own classes are known: a "custom.Pooling" may compute anything.
    if own := [e["type"] for e in listed if not e["type"].startswith("sentence_transformers.")]:
        raise ModelFileError(
            f"{path} lists {own[0]}, the model's own code, which the server does not run",
            OTHER_SERVER,
        )
    kinds = [entry["type"].rpartition(".")[2] for entry in listed]
    if kinds == list(_SERVED[:2]):
        raise ModelFileError(
            f"{path} lists no Normalize module: the model's vectors are not normalised, and the "
            f"server's have length one",
            "If you want vectors of length one, add the module with "
            "sentence-transformers: model = SentenceTransformer(FOLDER), "
            "model.append(Normalize()), model.save(FOLDER).",
        )
    if kinds != list(_SERVED):
        raise ModelFileError(
            f"{path} lists {', '.join(kinds) or 'no modules'}; the server computes "
            f"{', '.join(_SERVED)}",
            OTHER_SERVER,
        )
    folders = [_module_folder(folder, entry["path"]) for entry in listed]
    if folders[0] != folder:
        raise ModelFileError(
            f"{path} has the Transformer module in {listed[0]['path']!r}; the server reads the "
            f"model from {folder} itself",
            "Load the model with sentence-transformers 5 or newer and save it to a new folder.",
        )
    _check_transformer(folder / _TRANSFORMER)
    # Releases before 6.x do not save settings of Normalize.
    normalize = _object_or_empty(folders[2] / CONFIG)
    for name in ("module_input_name", "module_output_name"):
        if normalize.get(name) not in (None, "sentence_embedding"):
            why = "and the server normalises sentence_embedding"
            _refuse(folders[2] / CONFIG, name, normalize[name], why)
    declared = load_json(folders[1] / CONFIG)
    if declared is not None or not partial:
        _check_pooling(folders[1] / CONFIG, declared, pooling)


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in ("type", "path"))


def _module_folder(folder: Path, path: str) -> Path:
    parts = PurePosixPath(path)
    # A null byte or half a character is not printable, and no file of a machine has it in its name.
    if not path.isprintable() or parts.is_absolute() or ".." in parts.parts:
        raise ModelFileError(
            f"{folder / _MODULES} has the path {path!r}, which is not one in the model's folder"
        )
    return folder / parts


def _check_transformer(path: Path) -> None:
    settings = _object_or_empty(path)
    for name, value in settings.items():
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            _refuse(path, name, value, "which the server does not apply")
    # Without an entry for texts, the library would apply the chat template.
    modalities = settings.get("modality_config")
    if modalities is not None and as_object(path, modalities).get("text") != _TEXT_MODALITY:
        why = f"and the server embeds texts with {json.dumps(_TEXT_MODALITY)}"
        _refuse(path, "modality_config", modalities, why)


def _object_or_empty(path: Path) -> dict[str, Any]:
    found = load_json(path)
    return {} if found is None else as_object(path, found)


def _check_pooling(path: Path, given: object, pooling: str) -> None:
    config = as_object(path, given)
    sizes = ("embedding_dimension", "word_embedding_dimension")
    if unknown := sorted(set(config) - {_MODE, *_OLD_MODES, *sizes, _INCLUDE_PROMPT}):
        _refuse(path, unknown[0], config[unknown[0]], "which is unsupported")
    modes = _modes(path, config)
    if not modes and pooling != _MEAN:
        raise ModelFileError(
            f"{path} names no pooling mode, so sentence-transformers takes the mean; the server "
            f"takes {_POOLING_WORDS[pooling]}",
            OTHER_SERVER,
        )
    if modes not in ([], [pooling]):
        raise ModelFileError(
            f"{path} pools by {', '.join(modes)}; the server takes {_POOLING_WORDS[pooling]}",
            OTHER_SERVER,
        )
    # False excludes the prompt's tokens from pooling. The last token is never one of them (the
    # text and the end-of-text token come after the prompt), and the first token is used in any
    # case, so this changes only a mean (last token: tested with 6.2.0).
    if pooling == _MEAN and config.get(_INCLUDE_PROMPT, True) is not True:
        why = "and the server takes the mean of all tokens"
        _refuse(path, _INCLUDE_PROMPT, config[_INCLUDE_PROMPT], why)


def _modes(path: Path, config: Mapping[str, Any]) -> list[str]:
    """Return the pooling modes by their names in sentence-transformers 6.x; it may be none."""
    if _MODE in config:  # takes precedence over the old booleans, as in 6.x
        given = config[_MODE]
        modes = [given] if isinstance(given, str) else given
        if isinstance(modes, list) and modes and all(isinstance(mode, str) for mode in modes):
            return modes
        raise ModelFileError(
            f"{path} has {_MODE}={json.dumps(given)}, which is not the name of a pooling mode"
        )
    old = {name: config[name] for name in _OLD_MODES if name in config}
    for name, value in old.items():
        if not isinstance(value, bool):
            raise ModelFileError(
                f"{path} has {name}={json.dumps(value)}, which is not true or false"
            )
    return [_OLD_MODES[name] for name, on in old.items() if on]


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
    path = folder / _PROMPTS_FILE
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


def unused_prompts(folder: Path) -> list[str]:
    """Return a sentence for each prompt of the folder that applies to neither role."""
    prompts = read_prompts(folder)
    return [
        f"{folder / _PROMPTS_FILE} has the prompt {prompt}, which neither emberd nor encode_query "
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
