"""Whether a server that pools in one known way and normalises computes a folder's vectors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from emberd.pipeline.files import PROMPTS_FILE, Problem, UnservableError, json_object, read

OTHER_SERVER: Final = (
    "Serve this model with a server that computes its vectors as it was trained, and give the "
    "address (base_url=); or give a model with last-token pooling, such as "
    "Qwen/Qwen3-Embedding-0.6B."
)
"""What to do about a model whose vectors the servers of emberd do not compute."""

_CONFIG: Final = "config.json"
_MODULES: Final = "modules.json"
_ADAPTER: Final = "adapter_config.json"
_TRANSFORMER_FILE: Final = "sentence_bert_config.json"
_POOLING_FOLDER: Final = "1_Pooling"
_LIBRARY: Final = "sentence_transformers."
_SENTENCE_TRANSFORMER: Final = "SentenceTransformer"
_SERVED: Final = ("Transformer", "Pooling", "Normalize")

_LAST_TOKEN: Final = "lasttoken"  # noqa: S105 - no password
_MEAN: Final = "mean"
# What a server can do, in the words of sentence-transformers 6.x -> in plain words.
_TAKES: Final = {
    _LAST_TOKEN: "the last token",
    "cls": "the first token",
    _MEAN: "the mean of the tokens",
}
_MODE: Final = "pooling_mode"
# Up to 5.x each mode had a boolean of its own. The names on the right are those of 6.x.
_OLD_MODES: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": _MEAN,
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": _LAST_TOKEN,
}
_INCLUDE_PROMPT: Final = "include_prompt"
_SIZES: Final = ("embedding_dimension", "word_embedding_dimension")

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
_TEXTS: Final = {"method": "forward", "method_output_name": "last_hidden_state"}
_SENTENCE: Final = "sentence_embedding"


def unservable(
    folder: Path, *, pooling: str = _LAST_TOKEN, partial: bool = False
) -> Problem | None:
    """Return why a server with this pooling cannot give this model's vectors.

    Args:
        folder: The model's files. A folder without ``modules.json`` is a plain checkpoint of
            Transformers, which says nothing about pooling; its ``1_Pooling`` is read if present.
        pooling: What the server does with this model: ``"lasttoken"``, ``"cls"`` or ``"mean"``.
        partial: The folder may lack files, as a snapshot in the hub's cache may. A missing file
            is then no problem.

    Returns:
        None if the files name nothing that such a server does differently.
    """
    try:
        _check_weights(folder)
        listed = read(folder / _MODULES)
        if listed is not None:
            _check_modules(folder, listed, pooling, partial=partial)
        elif (declared := read(folder / _POOLING_FOLDER / _CONFIG)) is not None:
            _check_pooling(folder / _POOLING_FOLDER / _CONFIG, declared, pooling)
    except UnservableError as error:
        return error.problem
    return None


def names_pooling(folder: Path) -> bool:
    """Return whether the folder says how token states become one vector."""
    return any(os.path.exists(folder / name) for name in (_MODULES, f"{_POOLING_FOLDER}/{_CONFIG}"))


def _check_weights(folder: Path) -> None:
    config = read(folder / _CONFIG)
    if isinstance(config, dict) and config.get("is_causal") is False:
        raise UnservableError(
            f"{folder / _CONFIG} has is_causal=false: each token sees the whole text, and the "
            f"server computes causal attention",
            OTHER_SERVER,
        )
    if os.path.exists(folder / _ADAPTER):
        raise UnservableError(
            f"{folder} holds {_ADAPTER}: the model is a base model and an adapter, and the server "
            f"loads no adapter",
            "Merge the adapter into the weights (merge_and_unload of PEFT) and save the whole "
            "model.",
        )


def _check_modules(folder: Path, listed: object, pooling: str, *, partial: bool) -> None:
    path = folder / _MODULES
    _check_kind_of_model(folder)
    if not isinstance(listed, list) or not all(_is_entry(entry) for entry in listed):
        raise UnservableError(f"{path} is not a list of modules with a type and a path")
    kinds = [_kind(path, str(entry["type"])) for entry in listed]
    if kinds == list(_SERVED[:2]):
        raise UnservableError(
            f"{path} lists no Normalize module: the model's vectors have any length, and the "
            f"server's have length one",
            "If vectors of length one are what you want, add the module with "
            "sentence-transformers: model = SentenceTransformer(FOLDER), "
            "model.append(Normalize()), model.save(FOLDER).",
        )
    if kinds != list(_SERVED):
        raise UnservableError(
            f"{path} lists {', '.join(kinds) or 'no modules'}, and the server computes "
            f"{', '.join(_SERVED)}",
            OTHER_SERVER,
        )
    folders = [_module_folder(folder, str(entry["path"])) for entry in listed]
    if folders[0] != folder:
        raise UnservableError(
            f"{path} has the Transformer module in {listed[0]['path']!r}, and the server reads "
            f"the model from {folder} itself",
            "Load the model with sentence-transformers 5 or newer and save it to a new folder.",
        )
    _check_transformer(folder / _TRANSFORMER_FILE)
    _check_normalize(folders[2] / _CONFIG)
    declared = read(folders[1] / _CONFIG)
    if declared is not None or not partial:
        _check_pooling(folders[1] / _CONFIG, declared, pooling)


def _check_kind_of_model(folder: Path) -> None:
    described = read(folder / PROMPTS_FILE)
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind not in (None, _SENTENCE_TRANSFORMER):
        raise UnservableError(
            f"{folder / PROMPTS_FILE} has model_type={kind!r}, and the server computes the vectors "
            f"of a {_SENTENCE_TRANSFORMER}",
            OTHER_SERVER,
        )


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in ("type", "path"))


def _kind(path: Path, name: str) -> str:
    # Only the library's own classes: a "custom.Pooling" may compute anything.
    if name.startswith(_LIBRARY):
        return name.rpartition(".")[2]
    raise UnservableError(
        f"{path} lists {name}, code of the model's own that the server does not run", OTHER_SERVER
    )


def _module_folder(folder: Path, path: str) -> Path:
    if not _is_name(path):
        raise UnservableError(
            f"{folder / _MODULES} has the path {path!r}, which no file of this machine can have"
        )
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise UnservableError(
            f"{folder / _MODULES} has the path {path!r}, which leaves the model's folder"
        )
    return folder / parts


def _is_name(path: str) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeError:
        return False


def _check_transformer(path: Path) -> None:
    given = read(path)
    if given is None:
        return
    settings = json_object(path, given)
    for name, value in settings.items():
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise UnservableError(
                f"{path} has {name}={json.dumps(value)}, which the server does not apply",
                OTHER_SERVER,
            )
    # Without an entry for texts they would go through the chat template.
    modalities = settings.get("modality_config")
    if modalities is not None and json_object(path, modalities).get("text") != _TEXTS:
        raise UnservableError(
            f"{path} has modality_config={json.dumps(modalities)}, and the server embeds texts as "
            f"{json.dumps(_TEXTS)}",
            OTHER_SERVER,
        )


def _check_normalize(path: Path) -> None:
    given = read(path)
    if given is None:  # releases before 6.x save no settings of this module
        return
    names = json_object(path, given)
    for name in ("module_input_name", "module_output_name"):
        if names.get(name) not in (None, _SENTENCE):
            raise UnservableError(
                f"{path} has {name}={names[name]!r}, and the server normalises {_SENTENCE}",
                OTHER_SERVER,
            )


def _check_pooling(path: Path, given: object, pooling: str) -> None:
    config = json_object(path, given)
    unknown = sorted(set(config) - {_MODE, *_OLD_MODES, *_SIZES, _INCLUDE_PROMPT})
    if unknown:
        raise UnservableError(
            f"{path} has {unknown[0]}={json.dumps(config[unknown[0]])}, which emberd does not know",
            OTHER_SERVER,
        )
    modes = _modes(path, config)
    if not modes and pooling != _MEAN:
        raise UnservableError(
            f"{path} names no pooling mode, for which sentence-transformers takes the mean, and "
            f"the server takes {_TAKES[pooling]}",
            OTHER_SERVER,
        )
    if modes not in ([], [pooling]):
        raise UnservableError(
            f"{path} pools by {', '.join(modes)}, and the server takes {_TAKES[pooling]}",
            OTHER_SERVER,
        )
    # False takes the prompt's tokens out of the pooling. The last token is never one of them (the
    # end-of-text token or the text comes after the prompt), and the first token is taken in any
    # case, so only a mean changes (last token: tried with 6.2.0).
    if pooling == _MEAN and config.get(_INCLUDE_PROMPT, True) is not True:
        raise UnservableError(
            f"{path} has {_INCLUDE_PROMPT}={json.dumps(config[_INCLUDE_PROMPT])}, and the server "
            f"takes the mean of all tokens",
            OTHER_SERVER,
        )


def _modes(path: Path, config: Mapping[str, Any]) -> list[str]:
    """Return the names of the pooling modes, in the words of sentence-transformers 6.x.

    Returns:
        An empty list where none is named; sentence-transformers takes the mean then.
    """
    if _MODE in config:  # it wins over the old booleans, as in 6.x
        given = config[_MODE]
        modes = [given] if isinstance(given, str) else given
        if isinstance(modes, list) and modes and all(isinstance(mode, str) for mode in modes):
            return modes
        raise UnservableError(
            f"{path} has {_MODE}={json.dumps(given)}, which is not the name of a pooling mode"
        )
    old = {name: config[name] for name in _OLD_MODES if name in config}
    for name, value in old.items():
        if not isinstance(value, bool):
            raise UnservableError(f"{path} has {name}={json.dumps(value)}: not true or false")
    return [_OLD_MODES[name] for name, on in old.items() if on]
