"""What a checkpoint's modules ask of a server: attention, pooling, normalisation.

The files are those of sentence-transformers and Transformers: ``modules.json``, the ``config.json``
of each module, ``sentence_bert_config.json``, ``config.json``. The servers that emberd starts pool
the token states in one way and normalise the result. ``why_unsupported`` says what a folder asks
for that such a server does differently. A setting that is not known is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn

from emberd import catalog, model_tokenizer
from emberd.model_files import (
    CONFIG,
    ModelFileError,
    as_object,
    hub_lacks,
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

PROMPTS_FILE: Final = "config_sentence_transformers.json"
MODULES: Final = "modules.json"
ADAPTER: Final = "adapter_config.json"
# The first of these that exists and is not empty counts.
TRANSFORMER: Final = (
    "sentence_bert_config.json",
    *(
        f"sentence_{kind}_config.json"
        for kind in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
)
POOLING_FOLDER: Final = "1_Pooling"
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

_WINDOW: Final = "sliding_window"
# By model_type, of architectures that servers run without one (Transformers 5.19).
_DEFAULT_WINDOWS: Final = dict.fromkeys(
    ("mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), 4096
)

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
# Settings that change neither, or are checked by themselves; docs/models.md names the first.
_LENGTHS: Final = ("max_seq_length", "model_max_length")
_ANY_VALUE: Final = (_LENGTHS[0], "unpad_inputs", "modality_config")
_TOKENIZER_ARGUMENTS: Final = ("tokenizer_args", "processor_kwargs")
# Settings of releases up to 5.x and of 6.x that are passed on to Transformers -> the arguments
# that change no vector of a text that is short enough.
_PASSED: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(
        ("model_args", "model_kwargs"),
        ("attn_implementation", "dtype", "torch_dtype", "trust_remote_code"),
    ),
    **dict.fromkeys(
        _TOKENIZER_ARGUMENTS,
        (_LENGTHS[1], "padding_side", "trust_remote_code", "use_fast"),
    ),
    **dict.fromkeys(("config_args", "config_kwargs"), ("trust_remote_code", "use_cache")),
}
_TEXT_MODALITY: Final = {"method": "forward", "method_output_name": "last_hidden_state"}


def architecture(folder: Path) -> str | None:
    """Return the class that a folder's configuration names, such as ``Qwen3ForCausalLM``."""
    listed = read_json(folder / CONFIG).get("architectures")
    return str(listed[0]) if isinstance(listed, list) and listed else None


def why_unsupported(
    folder: Path, *, pooling: str = LAST_TOKEN, partial: bool = False
) -> ModelFileError | None:
    """Return why a server with this pooling cannot compute this model's vectors.

    Args:
        folder: The model's files. A folder without ``modules.json`` is a plain checkpoint of
            Transformers, which declares no pooling; its ``1_Pooling`` is read if present.
        pooling: What the server does with this model: ``"lasttoken"``, ``"cls"`` or ``"mean"``.
        partial: Accept missing files: a snapshot in the hub's cache may be incomplete.

    Returns:
        None if the files ask for nothing that such a server does differently.
    """
    try:
        config = load_json(folder / CONFIG)
        if isinstance(config, dict):
            _check_attention(folder / CONFIG, config, pooling)
        if os.path.exists(folder / ADAPTER):
            raise ModelFileError(
                f"{folder} contains {ADAPTER}: the model is an adapter for a base model, and the "
                f"server does not load adapters",
                "Merge the adapter into the weights (merge_and_unload of PEFT) and save the whole "
                "model.",
            )
        listed = load_json(folder / MODULES)
        if listed is not None:
            _check_modules(folder, listed, pooling, partial=partial)
        elif (declared := load_json(folder / POOLING_FOLDER / CONFIG)) is not None:
            _check_pooling(folder / POOLING_FOLDER / CONFIG, declared, pooling)
        elif not partial or hub_lacks(folder, MODULES):
            _check_default(folder, pooling)
    except ModelFileError as error:
        return error
    return None


def served_pooling(folder: Path) -> str:
    """Return the one pooling with which a server computes the vectors of a folder's model.

    Args:
        folder: The model's files, of which ``names_pooling`` is true.

    Raises:
        ModelFileError: No server does, with any pooling.
    """
    problems = {mode: why_unsupported(folder, pooling=mode) for mode in _POOLING_WORDS}
    for mode, problem in problems.items():
        if problem is None:
            return mode
    raise problems[LAST_TOKEN] or AssertionError


def names_pooling(folder: Path) -> bool:
    """Return whether the folder says how token states become one vector."""
    return any(os.path.exists(folder / name) for name in (MODULES, f"{POOLING_FOLDER}/{CONFIG}"))


def tells_pooling(snapshot: Path) -> bool:
    """Return whether it is known how, or that nowhere, a snapshot of the hub's cache says so."""
    return names_pooling(snapshot) or hub_lacks(snapshot, MODULES)


def _refuse(path: Path, name: str, value: object, why: str) -> NoReturn:
    raise ModelFileError(f"{path} has {name}={json.dumps(value)}, {why}", OTHER_SERVER)


def _check_attention(path: Path, config: Mapping[str, Any], pooling: str) -> None:
    both_ways = "that is bidirectional attention; the server computes causal attention"
    if config.get("is_causal") is False:
        _refuse(path, "is_causal", False, both_ways)
    if pooling != LAST_TOKEN:
        return  # encoders: the one with the following keys, Gemma 3, is run by them
    name = "use_bidirectional_attention"
    if config.get(name) not in (None, False):
        _refuse(path, name, config[name], both_ways)
    window, longest = _window(config), catalog.most_tokens(config)
    if window is not None and (longest is None or window < longest):
        raise ModelFileError(
            f"{path} has {_WINDOW}={window}: a token attends to the last {window} tokens; the "
            f"server lets it attend to all tokens before it",
            f"If your texts have at most {window} tokens, the vectors are the same: in a copy of "
            f"the folder, set {_WINDOW} to null and max_position_embeddings to {window}. Else "
            f"serve the model with a server that applies the window, and give its address "
            f"(base_url=).",
        )


def _window(config: Mapping[str, Any]) -> int | None:
    """Return to how many tokens a token attends by Transformers' rules; None for no limit."""
    switch = config.get("use_sliding_window")
    kind = str(config.get("model_type"))
    if switch is False or (switch is None and kind.startswith("qwen")):
        return None
    # A configuration is saved without the values that are the defaults of its class.
    window = config.get(_WINDOW, _DEFAULT_WINDOWS.get(kind))
    return window if isinstance(window, int) else None


def _check_default(folder: Path, pooling: str) -> None:
    """Check a folder that declares no pooling, as sentence-transformers 6.2 would load it."""
    known = catalog.find(str(folder))
    kind = architecture(folder)
    is_decoder = (kind or "").endswith("ForCausalLM")
    default = (known and known.pooling) or (LAST_TOKEN if is_decoder else _MEAN)
    if default != pooling:
        raise ModelFileError(
            f"{folder} declares no pooling: it has no {MODULES}. sentence-transformers takes "
            f"{_POOLING_WORDS[default]} of {kind or 'a model without an architecture'}; the server "
            f"takes {_POOLING_WORDS[pooling]}",
            f"Copy {MODULES} and the folders of its modules from the original model. If it has "
            f"none and was trained with {_POOLING_WORDS[pooling]}, write them with "
            f"sentence-transformers: SentenceTransformer(modules=[Transformer(FOLDER), "
            f"Pooling(DIMENSIONS, {pooling!r}), Normalize()]).save(FOLDER).",
        )


def _check_modules(folder: Path, listed: object, pooling: str, *, partial: bool) -> None:
    path = folder / MODULES
    described = load_json(folder / PROMPTS_FILE)
    kind = described.get("model_type") if isinstance(described, dict) else None
    if kind not in (None, "SentenceTransformer"):
        why = "and the server computes the vectors of a SentenceTransformer"
        _refuse(folder / PROMPTS_FILE, "model_type", kind, why)
    if not isinstance(listed, list) or not all(is_entry(entry) for entry in listed):
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
    _check_transformer(folder, partial=partial)
    # Releases before 6.x do not save settings of Normalize.
    normalize = _settings(folders[2] / CONFIG)
    for name in ("module_input_name", "module_output_name"):
        if normalize.get(name) not in (None, "sentence_embedding"):
            why = "and the server normalises sentence_embedding"
            _refuse(folders[2] / CONFIG, name, normalize[name], why)
    declared = load_json(folders[1] / CONFIG)
    if declared is not None or not partial:
        _check_pooling(folders[1] / CONFIG, declared, pooling)
        _check_include_prompt(folder, folders[1] / CONFIG, declared, pooling, partial=partial)


def cut_tokens(folder: Path) -> int | None:
    """Return the number of tokens to which sentence-transformers cuts a text, if the files say so.

    The servers that emberd starts embed longer texts as a whole, but one that uses
    sentence-transformers cuts them.
    """
    settings = next((found for name in TRANSFORMER if (found := read_json(folder / name))), {})
    passed = [settings.get(name) for name in _TOKENIZER_ARGUMENTS]
    given = [settings, *passed, read_json(folder / model_tokenizer.SETTINGS)]
    stated = [facts.get(name) for facts in given if isinstance(facts, dict) for name in _LENGTHS]
    return min((n for n in stated if type(n) is int and n > 0), default=None)


def is_entry(entry: object) -> bool:
    """Return whether an item of ``modules.json`` names a type and a path."""
    return isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in ("type", "path"))


def _module_folder(folder: Path, path: str) -> Path:
    parts = PurePosixPath(path)
    # A null byte or half a character is not printable, and no file of a machine has it in its name.
    if not path.isprintable() or parts.is_absolute() or ".." in parts.parts:
        raise ModelFileError(
            f"{folder / MODULES} has the path {path!r}, which is not one in the model's folder"
        )
    return folder / parts


def _check_transformer(folder: Path, *, partial: bool) -> None:
    path, settings = next(
        ((folder / name, found) for name in TRANSFORMER if (found := _settings(folder / name))),
        (folder, {}),
    )
    for name, value in settings.items():
        if name in _PASSED and isinstance(value, dict):
            is_neutral = value.keys() <= set(_PASSED[name])
        elif name == "do_lower_case" and value is True:
            # The library lower-cases the text, and such a tokenizer does it again. (Only a sigma
            # at the end of a Greek word in capitals becomes another letter.)
            is_unknown = partial and not os.path.exists(folder / model_tokenizer.FILE)
            is_neutral = is_unknown or model_tokenizer.read(folder).lowers
        else:
            is_neutral = name in _ANY_VALUE or value in _NEUTRAL.get(name, ())
        if not is_neutral:
            _refuse(path, name, value, "which the server does not apply")
    # Without an entry for texts, the library would apply the chat template.
    modalities = settings.get("modality_config")
    if modalities is not None and as_object(path, modalities).get("text") != _TEXT_MODALITY:
        why = f"and the server embeds texts with {json.dumps(_TEXT_MODALITY)}"
        _refuse(path, "modality_config", modalities, why)


def _settings(path: Path) -> dict[str, Any]:
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


def _check_include_prompt(
    folder: Path, path: Path, given: object, pooling: str, *, partial: bool
) -> None:
    """Check that the token that the server takes is not one of an excluded prompt.

    ``"include_prompt": false`` excludes the prompt's tokens from pooling. A token that the
    tokenizer appends to each text is none of them (tested with 6.2.0).
    """
    settings = as_object(path, given)
    if settings.get(_INCLUDE_PROMPT, True) is True:
        return
    if pooling != LAST_TOKEN:
        why = f"and the server takes {_POOLING_WORDS[pooling]}, the prompt's included"
        _refuse(path, _INCLUDE_PROMPT, settings[_INCLUDE_PROMPT], why)
    if partial and not os.path.exists(folder / model_tokenizer.FILE):
        return
    # With "a: " as the prompt, the only token of "b" may be " b", in the place of the prompt's " ".
    # Then sentence-transformers takes no token at all.
    if model_tokenizer.read(folder).end_of_text_id is None:
        why = (
            f"and {folder / model_tokenizer.FILE} appends no end-of-text token, so the last token "
            f"of a short text can count as one of the prompt"
        )
        _refuse(path, _INCLUDE_PROMPT, settings[_INCLUDE_PROMPT], why)


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
