"""Checkpoints of all kinds, and what emberd does with each: the table of ``docs/models.md``.

``tests/sglang/test_checkpoints.py`` makes each of them, and compares what is served, and what is
refused, with sentence-transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from checkpoints_made import MODULES, write_json, write_modules
from folder_variants import PROMPTS, TRANSFORMER, Change, modules, pooling, settings, text

ENGINES: Final = ("transformers", "sglang")

Shown = Literal["", "differs", "norm", "batch", "start", "fails", "same"]

_WIDTH: Final = 128
_BARE: Final = {"query_instruction": "", "document_instruction": ""}
_E5: Final = {"prompts": {"query": "query: ", "document": "passage: "}}
_QWEN: Final = {
    "prompts": {
        "query": "Instruct: Given a web search query, retrieve relevant passages that answer the "
        "query\nQuery:",
        "document": "",
    }
}
_OLD: Final = "sentence_transformers.models."
_OTHER_SHAPE: Final = "architecture"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        says: What is particular to its files.
        architecture: The class of Transformers.
        habits: What its tokenizer does with each text (``make_tiny.make_tokenizer``).
        config: Changes of ``config.json``.
        pools: Settings of the Pooling module; None for a checkpoint without ``modules.json``.
        described: Content of ``config_sentence_transformers.json``; None for no such file.
        changes: What else is changed.
        weights: Path -> kind of modules that need weights.
        given: What the caller gives.
        refused: Engine -> what its refusal names. An engine that is not named serves it.
        shown: What makes the refusal by all engines necessary: sentence-transformers computes a
            vector that ``differs`` from the engine's or has another ``norm``, or ``fails`` to load
            the model; or the engine's vectors depend on the ``batch``, or its ``start`` fails.
            ``same``: the refusal is conservative.
        computed: Changes of the configuration that turn Transformers into what an engine computes.
        like: An engine's outcome is that of another checkpoint, and it is not started again.
        is_quick: Whether ``make test-sglang`` includes it, except through SGLang.
    """

    says: str
    architecture: str = "Qwen3ForCausalLM"
    habits: Sequence[str] = ("end",)
    config: Mapping[str, Any] = field(default_factory=dict)
    pools: Mapping[str, Any] | None = field(default_factory=lambda: {"pooling_mode": "lasttoken"})
    described: Mapping[str, Any] | None = field(default_factory=lambda: _E5)
    changes: Sequence[Change] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    shown: Shown = ""
    computed: Mapping[str, Any] = field(default_factory=dict)
    like: Sequence[str] = ()
    is_quick: bool = False

    @property
    def pooled_token(self) -> int:
        """The token whose state the engines take: the first of a BERT, else the last."""
        return 0 if self.architecture.startswith("Bert") else -1

    def write(self, folder: Path) -> None:
        """Write the files of sentence-transformers beside those of the checkpoint."""
        if self.pools is not None:
            write_modules(folder, pooling=None)
            pooling(**{"embedding_dimension": _WIDTH, **self.pools})(folder)
        if self.described is not None:
            write_json(folder / PROMPTS, self.described)
        for change in self.changes:
            change(folder)


def _both(names: str) -> dict[str, str]:
    return dict.fromkeys(ENGINES, names)


def _other(*, sglang: str | None = None) -> dict[str, str]:
    """Return the refusals of an architecture that the transformers engine does not know."""
    return {"transformers": _OTHER_SHAPE} | ({"sglang": sglang} if sglang else {})


def _with_module(kind: str) -> Change:
    return modules(*MODULES[:2], (f"2_{kind}", f"{_OLD}{kind}"), ("3_Normalize", MODULES[2][1]))


def _custom(folder: Path) -> None:
    modules(*MODULES[:2], ("", "scaled.Scaled"), MODULES[2])(folder)
    text("scaled.py", "import torch\n\n\nclass Scaled(torch.nn.Module):\n    pass\n")(folder)


def _tokenizer_class(name: str) -> Change:
    def change(folder: Path) -> None:
        file = folder / "tokenizer_config.json"
        write_json(file, {**json.loads(file.read_text()), "tokenizer_class": name})

    return change


_ALL_OLD: Final = {
    f"pooling_mode_{name}": False
    for name in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
} | {"pooling_mode_weightedmean_tokens": False, "pooling_mode_lasttoken": False}

SERVED: Final = (
    Checkpoint("6.x: `lasttoken`; Qwen's prompts", described=_QWEN, like=("sglang",)),
    Checkpoint(
        "5.x: all booleans, `lasttoken` is true, types of `sentence_transformers.models`; prompts "
        "`query`, `document`",
        pools={**_ALL_OLD, "pooling_mode_lasttoken": True, "include_prompt": True},
        changes=(
            modules(*[(path, _OLD + kind.rpartition(".")[2]) for path, kind in MODULES]),
            settings(TRANSFORMER, {"max_seq_length": 512, "do_lower_case": False}),
        ),
        like=("sglang",),
    ),
    Checkpoint(
        "tokenizer converts to NFC; no prompts, both instructions given",
        habits=("end", "nfc"),
        described={"prompts": {}},
        given=_BARE,
        is_quick=True,
    ),
    Checkpoint(
        "tokenizer lower-cases; `default_prompt_name` is `query`",
        habits=("end", "lower"),
        described={"prompts": {"query": "Ask: "}, "default_prompt_name": "query"},
    ),
    Checkpoint(
        "tokenizer puts a token before each text and one after it; `include_prompt` is false",
        architecture="Qwen3Model",
        habits=("start", "end"),
        pools={"pooling_mode": "lasttoken", "include_prompt": False},
    ),
    Checkpoint(
        "tokenizer converts to NFC and lower-cases; `pooling_mode` is a list of one; prompts "
        "`query`, `document`, `corpus`",
        habits=("end", "nfc", "lower"),
        pools={"pooling_mode": ["lasttoken"]},
        described={"prompts": {**_E5["prompts"], "corpus": "corpus: "}},
        like=("sglang",),
    ),
    Checkpoint(
        "`default_prompt_name` is a task; prompts `query` (empty), `web`",
        described={"prompts": {"query": "", "web": "Web: "}, "default_prompt_name": "web"},
        like=("sglang",),
    ),
    Checkpoint(
        "prompts `query`, `passage`; `document_instruction` given",
        described={"prompts": {"query": "query: ", "passage": "passage: "}},
        given={"document_instruction": ""},
        like=("sglang",),
    ),
    Checkpoint("`truncate_dim` is 64", described={**_E5, "truncate_dim": 64}, like=("sglang",)),
    Checkpoint(
        "no `modules.json`, a causal language model; both instructions given",
        pools=None,
        described=None,
        given=_BARE,
    ),
    Checkpoint(
        "`tokenizer.json` converts to NFC, but Transformers 5 does not: the tokenizer class is "
        "`GPT2Tokenizer`",
        habits=("end", "nfc"),
        changes=(_tokenizer_class("GPT2Tokenizer"),),
        like=("sglang",),
    ),
    Checkpoint(
        "tokenizer appends nothing",
        habits=(),
        refused={"transformers": "does not end each text with the end-of-text token"},
    ),
    Checkpoint(
        "tokenizer puts a token before each text and one after it",
        architecture="MistralModel",
        habits=("start", "end"),
        config={"sliding_window": None},
        refused=_other(),
    ),
    Checkpoint(
        "tokenizer puts a token before each text and appends nothing",
        architecture="MistralForCausalLM",
        habits=("start",),
        config={"sliding_window": None},
        refused=_other(),
    ),
    Checkpoint(
        "`cls`; tokenizer lower-cases, `[CLS]` and `[SEP]` around each text",
        architecture="BertModel",
        pools={"pooling_mode": "cls"},
        described={"prompts": {"query": "Represent this sentence: "}},
        refused=_other(),
        is_quick=True,
    ),
    Checkpoint(
        "tokenizer puts a token before each text and one after it",
        architecture="GemmaModel",
        habits=("start", "end"),
        refused=_other(),
    ),
)
"""What at least one engine serves."""

REFUSED: Final = (
    *(
        Checkpoint(
            f"6.x: `{mode}`",
            pools={"pooling_mode": mode},
            refused=_both(f"pools by {mode}"),
            shown="differs",
        )
        for mode in ("mean", "max", "weightedmean", "mean_sqrt_len_tokens")
    ),
    Checkpoint(
        "5.x: `cls` is true",
        pools={**_ALL_OLD, "pooling_mode_cls_token": True},
        refused=_both("pools by cls"),
        shown="differs",
    ),
    Checkpoint(
        "`lasttoken` and `mean`",
        pools={"pooling_mode": ["lasttoken", "mean"]},
        refused=_both("pools by lasttoken, mean"),
        shown="differs",
    ),
    Checkpoint(
        "no Normalize",
        changes=(modules(*MODULES[:2]),),
        refused=_both("no Normalize module"),
        shown="norm",
    ),
    *(
        Checkpoint(
            f"a {kind} module",
            changes=(_with_module(kind),),
            weights={f"2_{kind}": kind},
            refused=_both(kind),
            shown="differs",
        )
        for kind in ("Dense", "LayerNorm")
    ),
    Checkpoint(
        "a module of the model's own code",
        changes=(_custom,),
        refused=_both("scaled.Scaled"),
        shown="fails",
    ),
    Checkpoint(
        "`do_lower_case` is true",
        changes=(settings(TRANSFORMER, {"do_lower_case": True}),),
        refused=_both("do_lower_case"),
        shown="differs",
    ),
    Checkpoint(
        "`do_lower_case` in `sentence_roberta_config.json`, a name of old releases",
        changes=(settings("sentence_roberta_config.json", {"do_lower_case": True}),),
        refused=_both("do_lower_case"),
        shown="differs",
    ),
    Checkpoint(
        "`tokenizer_args` turn off the end-of-text token",
        changes=(settings(TRANSFORMER, {"tokenizer_args": {"add_eos_token": False}}),),
        refused=_both("tokenizer_args"),
        shown="differs",
        is_quick=True,
    ),
    Checkpoint(
        "`include_prompt` is false; tokenizer appends nothing",
        habits=(),
        pools={"pooling_mode": "lasttoken", "include_prompt": False},
        described={"prompts": {"query": "Ask: ", "document": "query: a"}},
        refused=_both("include_prompt"),
        shown="differs",
    ),
    Checkpoint(
        "`is_causal` is false",
        config={"is_causal": False},
        refused=_both("is_causal"),
        shown="differs",
        computed={"is_causal": True},
    ),
    Checkpoint(
        "attention within a window of 16 tokens",
        config={"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0},
        refused=_both("sliding_window"),
        shown="differs",
        computed={"layer_types": ["full_attention"] * 2},
        is_quick=True,
    ),
    Checkpoint(
        "prompts of tasks only",
        described={"prompts": {"web": "Web: ", "code": "Code: "}},
        refused=_both("web='Web: '"),
        shown="same",
    ),
    Checkpoint(
        "prompts `query`, `corpus`",
        described={"prompts": {"query": "query: ", "corpus": "corpus: "}},
        refused=_both("corpus='corpus: '"),
        shown="same",
    ),
    Checkpoint(
        "`suffix`",
        described={**_E5, "suffix": "<end>"},
        refused=_both("suffix"),
        shown="same",
    ),
    Checkpoint("no prompts", described=None, refused=_both(PROMPTS), shown="same"),
    Checkpoint(
        "no `modules.json`, and no causal language model; both instructions given",
        architecture="Qwen3Model",
        pools=None,
        described=None,
        given=_BARE,
        refused=_both("declares no pooling"),
        shown="differs",
    ),
    Checkpoint(
        "attention within a window of 16 tokens",
        architecture="MistralModel",
        habits=("start", "end"),
        config={"sliding_window": 16},
        refused=_other(sglang="sliding_window"),
        shown="differs",
        computed={"sliding_window": None},
    ),
    Checkpoint(
        "`mean`",
        architecture="BertModel",
        pools={"pooling_mode": "mean"},
        refused=_other(sglang="pools by mean"),
        shown="differs",
    ),
    Checkpoint(
        "`cls`; `include_prompt` is false",
        architecture="BertModel",
        pools={"pooling_mode": "cls", "include_prompt": False},
        refused=_other(sglang="include_prompt"),
        shown="differs",
        is_quick=True,
    ),
    Checkpoint(
        "5.x: `cls` is true; `include_prompt` is false; empty prompts",
        architecture="BertModel",
        pools={**_ALL_OLD, "pooling_mode_cls_token": True, "include_prompt": False},
        described={"prompts": {"query": "", "document": ""}},
        refused=_other(sglang="include_prompt"),
        shown="same",
    ),
    Checkpoint(
        "no `modules.json`; both instructions given",
        architecture="BertModel",
        pools=None,
        described=None,
        given=_BARE,
        refused=_other(sglang="declares no pooling"),
        shown="differs",
    ),
    Checkpoint(
        "6.x: `lasttoken`",
        architecture="Gemma3ForCausalLM",
        habits=("start", "end"),
        refused=_other(sglang="computes no embeddings"),
        shown="start",
    ),
    Checkpoint(
        "`lasttoken`; `use_bidirectional_attention` is true",
        architecture="Gemma3ForCausalLM",
        habits=("start", "end"),
        config={"use_bidirectional_attention": True},
        refused=_other(sglang="the mean of the tokens"),
        shown="differs",
        computed={"use_bidirectional_attention": False},
    ),
    Checkpoint(
        "`mean`; `use_bidirectional_attention` is true",
        architecture="Gemma3TextModel",
        habits=("start", "end"),
        config={"use_bidirectional_attention": True},
        pools={"pooling_mode": "mean"},
        refused=_other(sglang="pools by mean"),
        shown="batch",
    ),
    Checkpoint(
        "`mean`, Dense, `use_bidirectional_attention` is true: EmbeddingGemma",
        architecture="Gemma3TextModel",
        habits=("start", "end"),
        config={"use_bidirectional_attention": True},
        pools={"pooling_mode": "mean"},
        changes=(_with_module("Dense"),),
        weights={"2_Dense": "Dense"},
        refused=_other(sglang="Dense"),
        shown="batch",
    ),
)
"""What no engine serves."""

ALL: Final = (*SERVED, *REFUSED)
