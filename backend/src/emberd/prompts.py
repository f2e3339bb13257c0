"""How a text becomes what the model reads: the templates of queries and of documents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from emberd.catalog import Model
from emberd.errors import InstructionError

Role = Literal["query", "document"]

BARE: Final = "{text}"
"""The template that leaves a text as it is."""

# The wording is that of QwenLM/Qwen3-Embedding, evaluation/task_prompts.json, to the letter
# ("retrieval code" too): the models were trained and measured with it.
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
    "web": "Given a web search query, retrieve relevant passages that answer the query",
}
# Qwen's own evaluation (qwen3_embedding_model.py) puts these before both sides, and the others
# before queries alone.
_FOR_BOTH_SIDES: Final = frozenset(
    TASKS[name] for name in ("bitext", "classification", "clustering", "similarity")
)

# How prefixes of other classes look: a label before the text, several lines, a slot of theirs.
_LABELS: Final = re.compile(r"^\s*instruct\w*:|query:", re.IGNORECASE)
_COLONS: Final = ":\N{FULLWIDTH COLON}"
_FOREIGN_SLOT: Final = re.compile(r"\{\w*\}|%s")
_ONE_WORD: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Templates:
    """What texts are put into, with ``{text}`` in it.

    Attributes:
        query: The template of queries.
        document: The template of documents.
    """

    query: str
    document: str


def templates(
    model: Model, query: str | None, document: str | None, *, symmetric: bool = False
) -> Templates:
    """Return the templates of both roles.

    Args:
        model: What the catalog knows of the model.
        query: The instruction of queries, as ``template`` takes it.
        document: The instruction of documents.
        symmetric: Both roles get one template: that of the instruction which is given, else
            that of the model's documents.

    Raises:
        InstructionError: An instruction that would be misread; a task for both sides that one
            side alone would get; two different ones where ``symmetric`` wants one.
    """
    if symmetric:
        return _one_for_both(model, query, document)
    both = Templates(template(model, "query", query), template(model, "document", document))
    _refuse_one_sided(query=query, document=document)
    return both


def template(model: Model, role: Role, instruction: str | None) -> str:
    """Return the template, with ``{text}`` in it, that texts of ``role`` are put into.

    Args:
        model: What the catalog knows of the model.
        role: ``"query"`` or ``"document"``.
        instruction: None for the model's own default; ``""`` for the bare text; the name of a
            task in ``TASKS``; a task in words; or a whole template with ``{text}`` in it.

    Raises:
        InstructionError: A hand-written prefix without ``{text}``, a task for a model that has
            no known form for tasks, or no instruction for a model whose own is not known.
    """
    if instruction is None:
        return _default(model, role)
    if instruction == "":
        return BARE
    _refuse_foreign_slot(role, instruction)
    if BARE in instruction:
        return instruction
    _refuse_prefix(model, role, instruction)
    _refuse_unknown_name(role, instruction)
    return _with_task(model, role, TASKS.get(instruction, instruction))


def apply(template: str, text: str) -> str:
    """Return ``text`` put into ``template``; braces inside the text stay as they are."""
    return template.replace(BARE, text)


def _one_for_both(model: Model, query: str | None, document: str | None) -> Templates:
    found = set()
    if query is not None:
        found.add(template(model, "query", query))
    if document is not None:
        found.add(template(model, "document", document))
    if len(found) > 1:
        raise InstructionError(
            f"symmetric=True embeds queries and documents alike, and query_instruction={query!r} "
            f"and document_instruction={document!r} differ. Give one of them, or leave out "
            f"symmetric."
        )
    one = found.pop() if found else _default(model, "document")
    return Templates(one, one)


def _refuse_one_sided(**given: str | None) -> None:
    # Half of it would go unnoticed: each side has vectors, and they do not belong together.
    for role, other in (("query", "document"), ("document", "query")):
        task = TASKS.get(given[role] or "", given[role])
        if task in _FOR_BOTH_SIDES and given[other] is None:
            raise InstructionError(
                f"{role}_instruction={given[role]!r} is a task for queries and documents alike, "
                f"and would be put before one of them alone. Give symmetric=True as well, and "
                f"both get it; or say what the others get: {other}_instruction=''."
            )


def _default(model: Model, role: Role) -> str:
    problem = model.query_problem if role == "query" else model.document_problem
    if problem is not None:
        raise InstructionError(
            f"{problem}. Say what comes before a {role}: give {role}_instruction='...{BARE}', a "
            f"whole template, or {role}_instruction='' for the bare text."
        )
    if role == "document":
        return model.document_template
    if model.query_task is None:
        return model.query_template
    return _with_task(model, role, model.query_task)


def _with_task(model: Model, role: Role, task: str) -> str:
    if model.instruction_form is None:
        raise InstructionError(
            f"{role}_instruction={task!r}: emberd does not know how {model.name} takes a task. "
            f"Leave it out, which is {_default(model, role)!r}; give '' for none; or give a whole "
            f"template, with {BARE} in it."
        )
    return model.instruction_form.replace("{task}", task)


def _refuse_foreign_slot(role: Role, instruction: str) -> None:
    # The model would read the braces, and nothing would stand in their place.
    slots = [slot for slot in _FOREIGN_SLOT.findall(instruction) if slot != BARE]
    if slots:
        raise InstructionError(
            f"{role}_instruction={instruction!r} holds {slots[0]}, and nothing is put into that. "
            f"Give a task in words, or a template in which the text's place is {BARE}."
        )


def _refuse_prefix(model: Model, role: Role, instruction: str) -> None:
    # In other classes the field of this name is a raw prefix; taken as a task it would come
    # out as "Instruct: Instruct: ...", and nobody would see it.
    bare = instruction.strip()
    labelled = _LABELS.search(bare) is not None
    several_lines = "\n" in bare
    if not (labelled or several_lines or bare.endswith(tuple(_COLONS)) or bare != instruction):
        return
    raise InstructionError(
        f"{role}_instruction={instruction!r} looks like a prefix, as other classes take it. Give "
        f"{' or '.join(_right_forms(model, role, instruction))}."
    )


def _right_forms(model: Model, role: Role, instruction: str) -> list[str]:
    """Return what a prefix may be meant as."""
    as_it_stands = f"a whole template, {role}_instruction={instruction + BARE!r}"
    task = " ".join(_LABELS.sub(" ", instruction).split()).rstrip(_COLONS + " ")
    if model.instruction_form is None or not task:
        return [as_it_stands]
    # One word alone would be refused as the name of a task, unless it is one.
    known = task in TASKS or _ONE_WORD.fullmatch(task) is None
    alone = [f"the task alone, {role}_instruction={task!r}"] if known else []
    if "Instruct:" in instruction or "Query:" in instruction:
        formed = model.instruction_form.replace("{task}", task)
        return [*alone, f"a whole template, {role}_instruction={formed!r}"]
    return [as_it_stands, *alone]


def _refuse_unknown_name(role: Role, instruction: str) -> None:
    # "Web", or a name of another release: as a task in words it would mean nothing, and be taken.
    if _ONE_WORD.fullmatch(instruction) and instruction not in TASKS:
        raise InstructionError(
            f"{role}_instruction={instruction!r} is not the name of a ready-made task, which are "
            f"{', '.join(sorted(TASKS))}. Give one of them, a task in a sentence, or a template."
        )
