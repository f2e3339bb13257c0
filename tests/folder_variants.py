"""Variants of a model folder, and what emberd decides about each.

``tests/test_model_pooling.py`` checks the decisions, ``tests/sglang/test_sentence_transformers.py``
compares them with the real library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from checkpoints_made import MODULES, write_json, write_modules

POOLING: Final = "1_Pooling/config.json"
TRANSFORMER: Final = "sentence_bert_config.json"
OLD_TRANSFORMER: Final = "sentence_roberta_config.json"
PROMPTS: Final = "config_sentence_transformers.json"

Change = Callable[[Path], object]


def pooling(**settings: Any) -> Change:
    """Return a change that writes the settings of the Pooling module."""
    return lambda folder: write_json(folder / POOLING, {"embedding_dimension": 64, **settings})


def modules(*listed: tuple[str, str]) -> Change:
    """Return a change that lists these modules."""
    return lambda folder: write_modules(folder, listed, pooling=None)


def text(name: str, content: str) -> Change:
    """Return a change that writes a file as it is."""
    return lambda folder: (folder / name).write_text(content)


def settings(name: str, content: Any) -> Change:
    """Return a change that writes a JSON file."""
    return lambda folder: write_json(folder / name, content)


def _in(folder: str) -> Sequence[tuple[str, str]]:
    return (MODULES[0], (folder, MODULES[1][1]), MODULES[2])


def _elsewhere(mode: str) -> Change:
    def change(folder: Path) -> None:
        write_modules(folder, _in("pool"), pooling=None)
        write_json(folder / POOLING, {"embedding_dimension": 64, "pooling_mode": "lasttoken"})
        write_json(folder / "pool/config.json", {"embedding_dimension": 64, "pooling_mode": mode})

    return change


def _without(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


_OLD: Final = "sentence_transformers.models."

SERVED: Final[Mapping[str, Change]] = {
    "6.x": lambda folder: None,
    "6.x, a list of one mode": pooling(pooling_mode=["lasttoken"]),
    "5.x": pooling(pooling_mode_lasttoken=True, pooling_mode_mean_tokens=False),
    "5.x with all its booleans": lambda folder: write_json(
        folder / POOLING,
        {
            "word_embedding_dimension": 64,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
    ),
    "types of 5.x": modules(
        ("", f"{_OLD}Transformer"), ("1_Pooling", f"{_OLD}Pooling"), ("2", f"{_OLD}Normalize")
    ),
    "new mode beside old booleans": pooling(
        pooling_mode="lasttoken", pooling_mode_mean_tokens=True
    ),
    "pooling without the prompt": pooling(pooling_mode="lasttoken", include_prompt=False),
    "pooling in another folder": _elsewhere("lasttoken"),
    "settings of 6.x": settings(
        TRANSFORMER,
        {
            "transformer_task": "feature-extraction",
            "modality_config": {
                "text": {"method": "forward", "method_output_name": "last_hidden_state"}
            },
            "module_output_name": "token_embeddings",
        },
    ),
    "settings of 5.x": settings(TRANSFORMER, {"max_seq_length": 512, "do_lower_case": False}),
    "arguments that change no vector": settings(
        TRANSFORMER,
        {
            "model_args": {"torch_dtype": "float32", "attn_implementation": "sdpa"},
            "tokenizer_args": {"padding_side": "right"},
            "config_args": {},
            "unpad_inputs": False,
        },
    ),
    "settings of an old name": settings(OLD_TRANSFORMER, {"max_seq_length": 512}),
    "settings of Normalize": settings(
        "2_Normalize/config.json",
        {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
    ),
}
"""What is served; sentence-transformers takes the last token of each and normalises."""

REFUSED: Final[Mapping[str, tuple[Change, str, str]]] = {
    **{
        f"6.x, {mode}": (pooling(pooling_mode=mode), POOLING, mode)
        for mode in ("mean", "cls", "max", "weightedmean", "mean_sqrt_len_tokens")
    },
    **{
        f"5.x, {mode}": (pooling(**{f"pooling_mode_{name}": True}), POOLING, mode)
        for name, mode in (
            ("mean_tokens", "mean"),
            ("cls_token", "cls"),
            ("max_tokens", "max"),
            ("weightedmean_tokens", "weightedmean"),
            ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        )
    },
    "several modes": (pooling(pooling_mode=["mean", "lasttoken"]), POOLING, "mean, lasttoken"),
    "several old modes": (
        pooling(pooling_mode_lasttoken=True, pooling_mode_mean_tokens=True),
        POOLING,
        "mean, lasttoken",
    ),
    "no mode": (pooling(), POOLING, "no pooling mode"),
    "no old mode": (pooling(pooling_mode_lasttoken=False), POOLING, "no pooling mode"),
    "new mode wins": (
        pooling(pooling_mode="mean", pooling_mode_lasttoken=True),
        POOLING,
        "mean",
    ),
    "pooling in another folder": (_elsewhere("mean"), "pool/config.json", "mean"),
    "no Normalize": (modules(*MODULES[:2]), "modules.json", "Normalize"),
    "Dense": (
        modules(*MODULES[:2], ("2_Dense", f"{_OLD}Dense"), MODULES[2]),
        "modules.json",
        "Dense",
    ),
    "another order": (modules(MODULES[0], MODULES[2], MODULES[1]), "modules.json", "Normalize"),
    "no Pooling": (modules(MODULES[0], MODULES[2]), "modules.json", "Transformer, Normalize"),
    "lower case": (settings(TRANSFORMER, {"do_lower_case": True}), TRANSFORMER, "do_lower_case"),
    "lower case in a file of an old name": (
        settings(OLD_TRANSFORMER, {"do_lower_case": True}),
        OLD_TRANSFORMER,
        "do_lower_case",
    ),
    "arguments of the tokenizer": (
        settings(TRANSFORMER, {"tokenizer_args": {"add_eos_token": False}}),
        TRANSFORMER,
        "add_eos_token",
    ),
    "arguments of the configuration": (
        settings(TRANSFORMER, {"config_kwargs": {"rms_norm_eps": 9.0}}),
        TRANSFORMER,
        "rms_norm_eps",
    ),
    "another family": (
        settings(PROMPTS, {"model_type": "SparseEncoder"}),
        PROMPTS,
        "SparseEncoder",
    ),
    "Normalize of tokens": (
        settings(
            "2_Normalize/config.json",
            {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"},
        ),
        "2_Normalize/config.json",
        "token_embeddings",
    ),
}
"""What is refused -> the file and the value that the error names. The library loads all of them."""

UNREADABLE: Final[Mapping[str, tuple[Change, str, str]]] = {
    "unknown mode": (pooling(pooling_mode="median"), POOLING, "median"),
    "unknown setting": (
        pooling(pooling_mode="lasttoken", pooling_mode_median=True),
        POOLING,
        "pooling_mode_median",
    ),
    "mode of another type": (pooling(pooling_mode=5), POOLING, "pooling_mode=5"),
    "no modes": (pooling(pooling_mode=[]), POOLING, "pooling_mode=[]"),
    "pooling not JSON": (text(POOLING, "{"), POOLING, "JSON"),
    "pooling of null": (text(POOLING, "null"), POOLING, "null"),
    "pooling missing": (_without(POOLING), POOLING, "no"),
    "modules not JSON": (text("modules.json", "["), "modules.json", "JSON"),
    "modules no list": (text("modules.json", "{}"), "modules.json", "list"),
    "modules without types": (text("modules.json", '[{"path": ""}]'), "modules.json", "type"),
    "no modules": (text("modules.json", "[]"), "modules.json", "no modules"),
    "custom code": (
        modules(MODULES[0], ("1_Pooling", "custom.Pooling"), MODULES[2]),
        "modules.json",
        "custom.Pooling",
    ),
    "a path out of the folder": (
        modules(MODULES[0], ("../1_Pooling", MODULES[1][1]), MODULES[2]),
        "modules.json",
        "../1_Pooling",
    ),
    "a boolean that is none": (pooling(pooling_mode_lasttoken="yes"), POOLING, '"yes"'),
    "a path with a null byte": (
        modules(MODULES[0], ("1_Pooling\0", MODULES[1][1]), MODULES[2]),
        "modules.json",
        "1_Pooling",
    ),
    "a path with half a character": (
        modules(MODULES[0], ("1_Pooling\ud800", MODULES[1][1]), MODULES[2]),
        "modules.json",
        "1_Pooling",
    ),
    "modules nested too deeply": (text("modules.json", "[" * 10_000), "modules.json", "nested"),
    "pooling nested too deeply": (text(POOLING, '{"a":' * 10_000), POOLING, "nested"),
    "prompts nested too deeply": (text(PROMPTS, "[" * 10_000), PROMPTS, "nested"),
    "transformer elsewhere": (
        modules(("0_Transformer", MODULES[0][1]), *MODULES[1:]),
        "modules.json",
        "0_Transformer",
    ),
    "prompts not JSON": (text(PROMPTS, "{"), PROMPTS, "JSON"),
    "adapter": (settings("adapter_config.json", {}), "adapter_config.json", "adapter"),
    "chat template": (
        settings(TRANSFORMER, {"modality_config": {"message": {}}}),
        TRANSFORMER,
        "modality_config",
    ),
    "a setting of the transformer that is not known": (
        settings(TRANSFORMER, {"reverse_text": True}),
        TRANSFORMER,
        "reverse_text",
    ),
    "query expansion": (
        settings(TRANSFORMER, {"query_expansion": {"length": 32}}),
        TRANSFORMER,
        "query_expansion",
    ),
    "call settings": (
        settings(TRANSFORMER, {"processing_kwargs": {"text": {"add_special_tokens": False}}}),
        TRANSFORMER,
        "processing_kwargs",
    ),
}
"""What is refused because it cannot be followed, or because nothing may be assumed."""

PROMPT_FILES: Final[Mapping[str, dict[str, Any]]] = {
    "both": {"prompts": {"query": "query: ", "document": "doc: "}},
    "query only": {"prompts": {"query": "q: "}},
    "document only": {"prompts": {"document": "d: "}},
    "null": {"prompts": {"query": None, "document": None}},
    "empty document, passage": {"prompts": {"query": "q: ", "document": "", "passage": "p: "}},
    "document and passage": {"prompts": {"document": "d: ", "passage": "p: "}},
    "empty passage": {"prompts": {"query": "q: ", "passage": ""}},
    "default": {"prompts": {"query": "", "web": "w: "}, "default_prompt_name": "web"},
    "default query": {"prompts": {"query": "q: "}, "default_prompt_name": "query"},
    "default document": {"prompts": {"query": "q: "}, "default_prompt_name": "document"},
    "spaces and lines": {"prompts": {"query": " a\n\tb  ", "document": "\n"}},
    "braces": {"prompts": {"query": "{task} %s {}: ", "document": "{x}"}},
    "other letters": {"prompts": {"query": "Frage\u00a0: ", "document": "文書: "}},
    "Qwen": {"prompts": {"query": "Instruct: Find it\nQuery:", "document": ""}},
    "Qwen with a space": {"prompts": {"query": "Instruct: Find it\nQuery: "}},
    "Qwen without a task": {"prompts": {"query": "Instruct: \nQuery:"}},
}
"""Prompts that must come out as ``encode_query`` and ``encode_document`` apply them."""

PROMPT_FILES_REFUSED: Final[Mapping[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
    "none": ({}, ("query", "document")),
    "no entries": ({"prompts": {}}, ("query", "document")),
    "tasks only": ({"prompts": {"web": "w: "}}, ("query", "document")),
    "a task by default": (
        {"prompts": {"web": "w: "}, "default_prompt_name": "web"},
        ("query", "document"),
    ),
    "passage": ({"prompts": {"query": "q: ", "passage": "p: "}}, ("document",)),
    "corpus": ({"prompts": {"query": "q: ", "corpus": "c: "}}, ("document",)),
    "null document": ({"prompts": {"document": None, "passage": "p: "}}, ("document",)),
    "slot": ({"prompts": {"query": "{text} is: "}}, ("query",)),
    "slot in a task": ({"prompts": {"query": "Instruct: {text}\nQuery:"}}, ("query",)),
    "number": ({"prompts": {"query": 5}}, ("query",)),
    "list": ({"prompts": {"document": ["d: "]}}, ("document",)),
    "suffix": ({"prompts": {"query": "q: "}, "suffix": "<end>"}, ("query", "document")),
    "suffix alone": ({"suffix": "<end>"}, ("query", "document")),
    "prompts of null": ({"prompts": None}, ("query", "document")),
    "unknown default": (
        {"prompts": {"query": "q: "}, "default_prompt_name": "web"},
        ("query", "document"),
    ),
}
"""Prompts that cannot be followed -> the roles for which the caller has to decide."""
