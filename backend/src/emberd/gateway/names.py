"""What a request asks of a model: by the model's name, and by fields that clients know.

A name is ``MODEL[@DIMENSIONS][:ROLE][?task=TASK&truncate=true]``. Most clients can set only the
name, so it can say everything; name and fields must not contradict each other, because a wrong
template or length would only show as worse results.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from emberd.prompts import BARE, SYMMETRIC_TASKS, TASKS, Role
from emberd.serving.bodies import RefusedError

_SUFFIX: Final = re.compile(
    r"(.+)(?:@(?P<dimensions>\d{1,6})|:(?P<role>query|document))", re.DOTALL
)
_MOST_SUFFIX_CHARACTERS: Final = len("@123456:document")

_MOST_NAME_CHARACTERS: Final = 4096
# The served models keep what they made of the last tasks.
_MOST_TASK_CHARACTERS: Final = 2000

_QUERY: Final[Role] = "query"
_DOCUMENT: Final[Role] = "document"

# Value -> role, task. Cohere (search_...), Voyage (query, document), NVIDIA (query, passage).
_INPUT_TYPES: Final[Mapping[str, tuple[Role | None, str | None]]] = {
    "query": (_QUERY, None),
    "search_query": (_QUERY, None),
    "document": (_DOCUMENT, None),
    "passage": (_DOCUMENT, None),
    "search_document": (_DOCUMENT, None),
    "classification": (None, "classification"),
    "clustering": (None, "clustering"),
}
# Jina's; any other value is a task as emberd has it.
_TASKS: Final[Mapping[str, tuple[Role | None, str | None]]] = {
    "retrieval.query": (_QUERY, None),
    "retrieval.passage": (_DOCUMENT, None),
    "code.query": (_QUERY, "code"),
    "code.passage": (_DOCUMENT, None),
    "text-matching": (None, "similarity"),
    "separation": (None, "clustering"),
}
# Jina's, and those of Cohere and NVIDIA; a text is never cut at its start.
_TRUNCATES: Final[Mapping[Any, bool]] = {True: True, False: False, "END": True, "NONE": False}
_TRUNCATE_WORDS: Final = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks of a model; None for what it leaves open.

    Attributes:
        role: Whether the texts are queries or documents.
        task: A task in words, or its name in ``emberd.TASKS``.
        dimensions: Length of the vectors.
        truncate: Whether texts that are too long are cut instead of refused.
    """

    role: Role | None = None
    task: str | None = None
    dimensions: int | None = None
    truncate: bool | None = None

    def joined(self, other: Asked) -> Asked:
        """Return what both ask for.

        Raises:
            RefusedError: They contradict each other.
        """
        values: dict[str, Any] = {}
        for field in self.__slots__:
            one, two = getattr(self, field), getattr(other, field)
            if one is not None and two is not None and one != two:
                raise RefusedError(
                    f"The request asks for two values of {field}: {one!r} and {two!r}. Give one, "
                    f"in the name of the model or in a field."
                )
            values[field] = two if one is None else one
        return Asked(**values)

    @property
    def is_symmetric(self) -> bool:
        """Whether the task is one whose template all texts get."""
        return TASKS.get(self.task or "", self.task) in SYMMETRIC_TASKS


def split(given: str, models: Mapping[str, str]) -> tuple[str, Asked]:
    """Return the model that a name means, and what else the name asks for.

    Args:
        given: The name in the request.
        models: Each known name of a model, in lower case, with what to return for it.

    Raises:
        RefusedError: No served model has the name, or a part of the name is not understood.
    """
    if len(given) > _MOST_NAME_CHARACTERS:
        raise RefusedError(
            f"The name of the model has {len(given)} characters, and at most "
            f"{_MOST_NAME_CHARACTERS} are allowed. Give a long task in the field task."
        )
    if given.casefold() in models:
        return models[given.casefold()], Asked()
    problem = unknown(given, models)
    # The name of a folder may contain what separates the parts: the longest known name is meant.
    for base, options in _cuts(given, models):
        try:
            name, asked = _without_suffixes(base, models)
        except RefusedError as error:
            problem = error
            continue
        if name is not None:
            return name, asked.joined(_read_options(options))
    raise problem


def _cuts(given: str, models: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the name without its options, and the options, for each place where they may begin."""
    yield given, ""
    # A task in words may contain many question marks.
    end = max(map(len, models), default=0) + _MOST_SUFFIX_CHARACTERS + 1
    while (end := given.rfind("?", 0, end)) >= 0:
        yield given[:end], given[end + 1 :]


def _without_suffixes(base: str, models: Mapping[str, str]) -> tuple[str | None, Asked]:
    """Return the known model that a name without options means, and what its suffixes ask for.

    Raises:
        RefusedError: Two suffixes of one kind follow it.
    """
    asked = Asked()
    seen: set[str | None] = set()
    while base.casefold() not in models:
        match = _SUFFIX.fullmatch(base)
        if match is None:
            return None, asked
        if match.lastgroup in seen:  # otherwise a long name takes quadratic time
            raise RefusedError(f"The name of the model gives {match.lastgroup} twice. Give one.")
        seen.add(match.lastgroup)
        base, found = match[1], match.groupdict()
        length = found["dimensions"]
        part = Asked(found["role"], dimensions=None if length is None else int(length))  # type: ignore[arg-type]  # by the pattern
        asked = asked.joined(part)
    return models[base.casefold()], asked


def unknown(given: str, models: Mapping[str, str]) -> RefusedError:
    """Return the error for a name that no served model has."""
    shown = ", ".join(dict.fromkeys(models.values()))
    return RefusedError(
        f"The model {given!r:.120} is not served here. Served are: {shown}. A suffix is "
        f"@DIMENSIONS, :query, :document or ?task=TASK. To serve another model, name it when "
        f"`emberd serve` is started.",
        status=404,
    )


def of_fields(fields: Mapping[str, Any]) -> Asked:
    """Return what the fields of a body ask for.

    Raises:
        RefusedError: A field has a value that is not known.
    """
    asked = Asked()
    for name in ("dimensions", "output_dimension"):  # OpenAI's, and Cohere's and Voyage's
        asked = asked.joined(Asked(dimensions=positive_integer(fields, name)))
    kind = _text(fields, "input_type")
    if kind is not None:
        if kind.casefold() not in _INPUT_TYPES:
            raise RefusedError(
                f"input_type={kind!r:.40} is not known. Give one of {', '.join(_INPUT_TYPES)}."
            )
        asked = asked.joined(Asked(*_INPUT_TYPES[kind.casefold()]))
    truncate = fields.get("truncate")
    if isinstance(truncate, bool | str | None):
        asked = asked.joined(Asked(truncate=_TRUNCATES.get(truncate)))
    if truncate is not None and asked.truncate is None:
        raise RefusedError(f"truncate={truncate!r:.40} is not known. Give true or false.")
    task = _text(fields, "task")
    if task is not None:
        asked = asked.joined(_read_task(task))
    return asked


def positive_integer(fields: Mapping[str, Any], name: str) -> int | None:
    """Return an integer field of a body; None if it is null or not there.

    Raises:
        RefusedError: It is no integer of at least 1.
    """
    value = fields.get(name)
    # JSON Schema and JavaScript do not distinguish 8.0 from 8, and some encoders write the former.
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    if number is None or (type(number) is int and number >= 1):
        return number
    raise RefusedError(f"{name} must be an integer of at least 1, not {value!r:.40}.")


def _read_options(options: str) -> Asked:
    asked = Asked()
    for option in options.split("&") if options else ():
        name, _, value = option.partition("=")
        if name == "truncate" and value in _TRUNCATE_WORDS:
            asked = asked.joined(Asked(truncate=_TRUNCATE_WORDS[value]))
            continue
        if name != "task":
            raise RefusedError(
                f"?{option!s:.40} is not known. Only ?task=TASK, ?truncate=true and "
                f"?truncate=false are."
            )
        try:
            # Not as in forms: there "+" is a space, and C++ is a task.
            task = unquote(value, errors="strict")
        except UnicodeDecodeError as error:
            raise RefusedError(f"?task={value!s:.80} is not UTF-8 in percent-encoding.") from error
        asked = asked.joined(_read_task(task))
    return asked


def _read_task(task: str) -> Asked:
    if len(task) > _MOST_TASK_CHARACTERS:
        raise RefusedError(
            f"The task has {len(task)} characters, and at most {_MOST_TASK_CHARACTERS} are allowed."
        )
    if not task.strip():
        raise RefusedError("The task is blank. Omit it for the model's default, or give one.")
    if task.count(BARE) > 1:
        raise RefusedError(f"The task contains {BARE} more than once. Give a template with one.")
    return Asked(*_TASKS.get(task.casefold(), (None, task)))


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise RefusedError(f"{name} must be a string, not {value!r:.40}.")
    return value
