"""Prompts: the templates of queries and documents, and the named tasks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from emberd.catalog import WEB_TASK, Model
from emberd.errors import InstructionError

Role = Literal["query", "document"]

BARE: Final = "{text}"
"""The template that leaves a text unchanged."""

# The exact wording of QwenLM/Qwen3-Embedding, evaluation/task_prompts.json ("retrieval code" too),
# with which the models were trained and measured.
TASKS: Final[dict[str, str]] = {
    "bitext": "Retrieve parallel sentences",
    "classification": "Given a text, classify its topic",
    "clustering": "Identify the topic or theme of the given news articles",
    "code": (
        "Given a question about coding, retrieval code or passage that can solve user's question"
    ),
    "duplicates": (
        "Given a question, retrieve questions that are semantically equivalent "
        "to the given question"
    ),
    "facts": "Given a scientific claim, retrieve documents that support or refute the claim",
    "questions": "Given a question, retrieve Wikipedia passages that answer the question",
    "similarity": "Retrieve semantically similar text",
    "web": WEB_TASK,
}
# Qwen's evaluation (qwen3_embedding_model.py) puts these before queries and documents, and the
# others only before queries.
SYMMETRIC_TASKS: Final = frozenset(
    TASKS[name] for name in ("bitext", "classification", "clustering", "similarity")
)
"""The tasks, in words, of which queries and documents get the same template."""


# Marks of prefixes written for other classes: a label before the text, several lines, another slot.
_LABELS: Final = re.compile(r"^\s*instruct\w*:|query:", re.IGNORECASE)
_COLONS: Final = ":\N{FULLWIDTH COLON}"
_FOREIGN_SLOT: Final = re.compile(r"\{\w*\}|%s")
_ONE_WORD: Final = re.compile(r"[A-Za-z0-9_-]+")


class Frame(NamedTuple):
    """What comes before and after a text. Unlike in a template, braces in it have no meaning."""

    before: str
    after: str


Template = str | Frame
"""A template that contains ``{text}``, or a frame."""

# To the byte as public copies of Qwen's code have it, such as openvinotoolkit/openvino.genai,
# tests/python_tests/utils/qwen3_reranker_utils.py. Qwen's code makes tokens of the beginning, of
# the pair and of the end apart; they are those of the whole text, because the tokenizer splits it
# there: before "<" after a line break, and at a special token. The answer follows the last newline.
RERANK_SYSTEM: Final = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".'
)
RERANK_START: Final = "<|im_start|>"
RERANK_SUFFIX: Final = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
RERANK_ANSWERS: Final = ("yes", "no")


def plain(text: str) -> str:
    """Return ``text`` as a ``str``: a subclass may be formatted as other text, as an Enum is."""
    return str.__str__(text)


def rerank_frame(
    query: str, instruction: str | None = None, *, default: str | None = None
) -> Frame:
    """Return the prompt of Qwen3-Reranker for a query, without the document.

    Args:
        query: The query.
        instruction: The task in words, or its name in ``TASKS``; None for the default.
        default: The task in words that the model's files name; None for web search.

    Raises:
        InstructionError: As ``task_in_words``.
    """
    task = default or WEB_TASK
    if instruction is not None:
        task = task_in_words("instruction", instruction)
    return Frame(
        f"{RERANK_START}system\n{RERANK_SYSTEM}<|im_end|>\n<|im_start|>user\n"
        f"<Instruct>: {task}\n<Query>: {plain(query)}\n<Document>: ",
        RERANK_SUFFIX,
    )


@dataclass(frozen=True, slots=True)
class Templates:
    """The templates of both roles; each contains ``{text}``."""

    query: str
    document: str


def templates(
    model: Model, query: str | None, document: str | None, *, symmetric: bool = False
) -> Templates:
    """Return the templates of both roles.

    Args:
        model: What is known of the model.
        query: The instruction of queries, in a form of ``template``.
        document: The instruction of documents.
        symmetric: Both roles get one template: that of the given instruction, else that of the
            model's documents.

    Raises:
        InstructionError: An instruction would be misread; a symmetric task is given for one role
            only; or two different instructions are given with ``symmetric``.
    """
    given: dict[Role, str | None] = {"query": query, "document": document}
    if symmetric:
        found = {template(model, role, text) for role, text in given.items() if text is not None}
        if len(found) > 1:
            raise InstructionError(
                f"symmetric=True embeds queries and documents with one template, but "
                f"query_instruction={query!r} and document_instruction={document!r} differ. Give "
                f"one of them, or omit symmetric."
            )
        common = found.pop() if found else _default(model, "document")
        return Templates(common, common)
    unknown = [role for role, text in given.items() if text is None and _problem(model, role)]
    if unknown:
        raise _unknown_prompts(model, unknown)
    both = Templates(template(model, "query", query), template(model, "document", document))
    # The mistake would go unnoticed: both roles get vectors, but these do not fit together.
    for role, own in given.items():
        other: Role = "document" if role == "query" else "query"
        task = TASKS.get(own or "", own)
        if task in SYMMETRIC_TASKS and given[other] is None:
            raise InstructionError(
                f"{role}_instruction={own!r} is a task for queries and documents, but only {role} "
                f"texts would get it. Pass symmetric=True to apply it to both, or set "
                f"{other}_instruction='' to leave the others bare."
            )
    return both


def template(model: Model, role: Role, instruction: str | None) -> str:
    """Return the template of ``role``, which contains ``{text}``.

    Args:
        model: What is known of the model.
        role: ``"query"`` or ``"document"``.
        instruction: None for the model's default; ``""`` for the bare text; the name of a task in
            ``TASKS``; a task in words; or a whole template that contains ``{text}``.

    Raises:
        InstructionError: The instruction is a prefix without ``{text}``, or a task for a model
            whose form of tasks is not known; or it is None and the model's default is not known.
    """
    if instruction is None:
        return _default(model, role)
    if instruction == "":
        return BARE
    _check_encoding(f"{role}_instruction", instruction)
    # The model would read other braces, because nothing replaces them.
    if slots := [slot for slot in _FOREIGN_SLOT.findall(instruction) if slot != BARE]:
        raise InstructionError(
            f"{role}_instruction={instruction!r} contains {slots[0]}, which is not replaced. "
            f"Give a task in words, or a template with {BARE} as the placeholder of the text."
        )
    if BARE in instruction:
        return instruction
    setting = f"{role}_instruction"
    forms = _right_forms(model, setting, instruction)
    return _with_task(model, role, task_in_words(setting, instruction, forms))


def task_in_words(setting: str, instruction: str, forms: Sequence[str] = ()) -> str:
    """Return the task in words for an instruction that is one, or the name of one in ``TASKS``.

    Args:
        setting: Name of the setting that gives the instruction.
        instruction: The instruction.
        forms: What to give instead if it is a prefix; by default only a task.

    Raises:
        InstructionError: It is a prefix, or a word that is not the name of a task, or it
            cannot be encoded.
    """
    instruction = plain(instruction)
    _check_encoding(setting, instruction)
    # In other classes the field of this name is a raw prefix. As a task it would become
    # "Instruct: Instruct: ...", and nothing would show it.
    bare = instruction.strip()
    is_labelled = _LABELS.search(bare) or bare.endswith(tuple(_COLONS))
    if is_labelled or "\n" in bare or bare != instruction:
        forms = forms or _task_only(setting, instruction) or ["a task in a sentence"]
        raise InstructionError(
            f"{setting}={instruction!r} looks like a prefix for another class. Give "
            f"{' or '.join(forms)}."
        )
    # "Web", or a name of another release: accepted as a task in words, it would mean nothing.
    if _ONE_WORD.fullmatch(instruction) and instruction not in TASKS:
        raise InstructionError(
            f"{setting}={instruction!r} is not the name of a task; the names are "
            f"{', '.join(sorted(TASKS))}. Give one of them, or a task in a sentence."
        )
    return TASKS.get(instruction, instruction)


def apply(template: Template, text: str) -> str:
    """Return ``template`` with ``text`` in it; braces inside the text are not replaced."""
    if isinstance(template, Frame):
        return f"{template.before}{plain(text)}{template.after}"
    return template.replace(BARE, plain(text))


def _check_encoding(setting: str, instruction: str) -> None:
    try:
        instruction.encode()
    except UnicodeEncodeError as error:
        raise InstructionError(
            f"{setting}={instruction!r} holds the lone surrogate "
            f"{error.object[error.start]!r} and cannot be encoded. Read its source with its real "
            f"encoding."
        ) from None


def _default(model: Model, role: Role) -> str:
    if _problem(model, role):
        raise _unknown_prompts(model, [role])
    if role == "document":
        return model.document_template
    if model.query_task is None:
        return model.query_template
    return _with_task(model, role, model.query_task)


def _problem(model: Model, role: Role) -> str | None:
    return model.query_problem if role == "query" else model.document_problem


def _unknown_prompts(model: Model, roles: Sequence[Role]) -> InstructionError:
    problems = dict.fromkeys(str(_problem(model, role)) for role in roles)
    names = " and ".join(f"{role}_instruction='...{BARE}'" for role in roles)
    return InstructionError(
        f"What {model.name} expects before its texts is not known: {'; '.join(problems)}. Give "
        f"{names}: a whole template each, or '' for the bare text."
    )


def _with_task(model: Model, role: Role, task: str) -> str:
    if model.instruction_form is None:
        is_known = _problem(model, role) is None
        default = (
            f"Omit it for the default, {_default(model, role)!r}; pass" if is_known else "Pass"
        )
        raise InstructionError(
            f"{role}_instruction={task!r}: emberd does not know in which form {model.name} "
            f"takes a task. {default} '' for none; or pass a whole template that contains {BARE}."
        )
    return model.instruction_form.replace("{task}", task)


def _right_forms(model: Model, setting: str, instruction: str) -> list[str]:
    """Return the instructions that a prefix may stand for."""
    whole = f"a whole template, {setting}={instruction + BARE!r}"
    task = _without_labels(instruction)
    if model.instruction_form is None or not task:
        return [whole]
    task_only = _task_only(setting, instruction)
    if "Instruct:" in instruction or "Query:" in instruction:
        formed = model.instruction_form.replace("{task}", task)
        return [*task_only, f"a whole template, {setting}={formed!r}"]
    return [whole, *task_only]


def _task_only(setting: str, instruction: str) -> list[str]:
    task = _without_labels(instruction)
    # A single word would be refused, unless it is the name of a task.
    known = task in TASKS or (task and _ONE_WORD.fullmatch(task) is None)
    return [f"only the task, {setting}={task!r}"] if known else []


def _without_labels(instruction: str) -> str:
    return " ".join(_LABELS.sub(" ", instruction).split()).rstrip(_COLONS + " ")
