"""How a text becomes what the model reads: the templates of queries and of documents."""

from __future__ import annotations

from typing import Final, Literal

from emberd.catalog import Model
from emberd.errors import InstructionError

Role = Literal["query", "document"]

_SLOT: Final = "{text}"

# Sentences of QwenLM/Qwen3-Embedding, evaluation/task_prompts.json, with two of its spellings
# mended ("retrieval code" reads "retrieve code" here).
TASKS: Final[dict[str, str]] = {
    "code": (
        "Given a question about coding, retrieve code or passage that can solve user's question"
    ),
    "duplicates": (
        "Given a question, retrieve questions that are semantically equivalent "
        "to the given question"
    ),
    "facts": "Given a scientific claim, retrieve documents that support or refute the claim",
    "similarity": "Retrieve semantically similar text",
    "translation": "Retrieve parallel sentences",
    "web": "Given a web search query, retrieve relevant passages that answer the query",
}


def template(model: Model, role: Role, instruction: str | None) -> str:
    """Return the template, with ``{text}`` in it, that texts of ``role`` are put into.

    Args:
        model: What the catalog knows of the model.
        role: ``"query"`` or ``"document"``.
        instruction: None for the model's own default; ``""`` for the bare text; the name of a
            task in ``TASKS``; a task in words; or a whole template with ``{text}`` in it.

    Raises:
        InstructionError: A hand-written prefix without ``{text}``, or a task for a model that
            has no known form for tasks.
    """
    if instruction is None:
        return _default(model, role)
    if instruction == "":
        return _SLOT
    if _SLOT in instruction:
        return instruction
    _refuse_prefix(role, instruction)
    return _with_task(model, role, TASKS.get(instruction, instruction))


def apply(template: str, text: str) -> str:
    """Return ``text`` put into ``template``; braces inside the text stay as they are."""
    return template.replace(_SLOT, text)


def _default(model: Model, role: Role) -> str:
    if role == "document":
        return model.document_template
    if model.query_task is None:
        return model.query_template
    return _with_task(model, role, model.query_task)


def _with_task(model: Model, role: Role, task: str) -> str:
    if model.instruction_form is None:
        raise InstructionError(
            f"{role}_instruction={task!r}: emberd does not know how {model.name} takes a task. "
            f"Give a whole template instead, for example {f'{task}: {{text}}'!r}, "
            f"leave it out for the model's default, or give '' for none."
        )
    return model.instruction_form.replace("{task}", task)


def _refuse_prefix(role: Role, instruction: str) -> None:
    # In other classes the field of this name is a raw prefix; taken as a task it would come
    # out as "Instruct: Instruct: ...", and nobody would see it.
    if not instruction.lstrip().startswith("Instruct:") and "Query:" not in instruction:
        return
    task = instruction.replace("Instruct:", "").replace("Query:", "").strip()
    raise InstructionError(
        f"{role}_instruction={instruction!r} looks like a prefix. Give the task alone, "
        f"{role}_instruction={task!r}, or a whole template, "
        f"{role}_instruction={f'Instruct: {task}' + chr(10) + 'Query:{text}'!r}."
    )
