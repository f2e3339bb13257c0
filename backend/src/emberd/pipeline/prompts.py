"""The prompts of a folder, as ``encode_query`` and ``encode_document`` apply them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emberd.pipeline.files import PROMPTS_FILE, UnservableError, json_object, read

_TEXT_SLOT: Final = "{text}"
_QUERY: Final = "query"
_DOCUMENT: Final = "document"
# The names that encode_document of sentence-transformers tries, in its order. It always stops at
# the first, which it sets to "" where the file has none (5.0 to 6.2).
_DOCUMENT_NAMES: Final = (_DOCUMENT, "passage", "corpus")


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a folder puts before the texts of each role.

    Attributes:
        query: The prompt of queries; None where ``problem`` has an entry for them.
        document: The prompt of documents; None where ``problem`` has an entry for them.
        problem: Role -> why its prompt is not known.
        unused: Prompts that the folder has and that apply to neither role, as ``name='text'``.
    """

    query: str | None
    document: str | None
    problem: Mapping[str, str]
    unused: tuple[str, ...] = ()


def prompts_of(folder: Path) -> Prompts | None:
    """Return what ``encode_query`` and ``encode_document`` of sentence-transformers put first.

    Returns:
        None if the folder has no such file, or the file has no ``prompts``.
    """
    path = folder / PROMPTS_FILE
    try:
        found = read(path)
        if found is None:
            return None
        described = json_object(path, found)
        _refuse_suffix(path, described)
        if "prompts" not in described:
            return None
        named = json_object(path, described["prompts"], "prompts")
        default = _default_name(path, described, named)
    except UnservableError as error:
        why = error.problem.cause
        return Prompts(None, None, {_QUERY: why, _DOCUMENT: why})
    return _by_role(path, named, default)


def truncate_dim(folder: Path) -> Any:
    """Return the length to which sentence-transformers cuts this model's vectors, as it is given.

    Returns:
        None if the folder has no ``truncate_dim``, or no file that can be read.
    """
    try:
        found = read(folder / PROMPTS_FILE)
    except UnservableError:
        return None  # prompts_of reports the file
    return found.get("truncate_dim") if isinstance(found, dict) else None


def unused_prompts(folder: Path) -> list[str]:
    """Return a sentence for each prompt of the folder that applies to neither role."""
    told = prompts_of(folder)
    return [
        f"{folder / PROMPTS_FILE} has the prompt {prompt}, which encode_query and encode_document "
        f"of sentence-transformers do not use, and emberd does not either. To use it, give it as "
        f"query_instruction= or document_instruction=."
        for prompt in (told.unused if told else ())
    ]


def _refuse_suffix(path: Path, described: Mapping[str, Any]) -> None:
    if described.get("suffix"):
        raise UnservableError(
            f"{path} has suffix={json.dumps(described['suffix'])}, which sentence-transformers "
            f"does not apply, so it is not known what belongs after a text"
        )


def _default_name(path: Path, described: Mapping[str, Any], named: Mapping[str, Any]) -> str | None:
    # It applies to ``encode`` only: ``encode_query`` and ``encode_document`` always have a prompt
    # of their own, "" where the file has none. sentence-transformers does not load a model whose
    # default names no prompt.
    default = described.get("default_prompt_name")
    if default is None:
        return None
    if isinstance(default, str) and default in (_QUERY, _DOCUMENT, *named):
        return default
    raise UnservableError(
        f"{path} has default_prompt_name={json.dumps(default)}, and no prompt of that name"
    )


def _by_role(path: Path, named: Mapping[str, Any], default: str | None) -> Prompts:
    found: dict[str, str] = {}
    problem: dict[str, str] = {}
    for role in (_QUERY, _DOCUMENT):
        try:
            found[role] = _prompt(path, role, named)
        except UnservableError as error:
            problem[role] = error.problem.cause
    # Prompts of other names belong to tasks that the caller names. Of these, whoever wrote them
    # expects that they apply without being named.
    expected = [name for name in (*_DOCUMENT_NAMES[1:], default) if name and named.get(name)]
    return Prompts(
        query=found.get(_QUERY),
        document=found.get(_DOCUMENT),
        problem=problem,
        unused=tuple(
            f"{name}={named[name]!r}"
            for name in dict.fromkeys(expected)
            if name not in (_QUERY, _DOCUMENT)
        ),
    )


def _prompt(path: Path, role: str, named: Mapping[str, Any]) -> str:
    text = named.get(role)
    if text is None:
        if role == _DOCUMENT:
            _refuse_undecided(path, named)
        return ""
    if not isinstance(text, str):
        raise UnservableError(
            f"{path} has the prompt {role}={json.dumps(text)}, which is not a string"
        )
    if _TEXT_SLOT in text:
        raise UnservableError(
            f"{path} has the prompt {role}={text!r}: {_TEXT_SLOT} in it is plain text for "
            f"sentence-transformers and the place of the text for emberd"
        )
    return text


def _refuse_undecided(path: Path, named: Mapping[str, Any]) -> None:
    # The documentation of encode_document says that "passage" is tried after "document"; its code
    # never gets there. Following either would be a guess about what the model was trained with.
    for name in _DOCUMENT_NAMES[1:]:
        if named.get(name):
            raise UnservableError(
                f"{path} has a prompt {name}={named[name]!r} and none called {_DOCUMENT}: "
                f"encode_document of sentence-transformers is documented to use {name}, and uses "
                f"no prompt"
            )
