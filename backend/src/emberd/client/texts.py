"""Texts made ready: checked, put into their template, blank ones replaced."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from emberd.catalog import Model
from emberd.errors import TextError
from emberd.prompts import apply

Input = str | list[int]
"""What stands for one text in a request: the text itself, or its token ids."""

_BARE: Final = "{text}"
_EXCERPT_CHARACTERS: Final = 80
# What a tokenizer may add to the tokens of the bytes: a start, an end, a leading space.
_ADDED_TOKENS: Final = 3


@dataclass(frozen=True, slots=True)
class Prepared:
    """Texts as they go to the server; all lists have one entry a text.

    Attributes:
        inputs: The templated text, or token ids for one that is blank; None for one that is not
            to be sent.
        sizes: Length of the templated text in bytes of UTF-8.
    """

    inputs: list[Input | None]
    sizes: list[int]

    def leave_out(self, index: int) -> None:
        """Have a text not sent."""
        self.inputs[index] = None
        self.sizes[index] = 0

    def to_count(self, limit_tokens: int | None) -> list[int]:
        """Return the indices of the texts that might have more than ``limit_tokens`` tokens.

        No tokenizer makes more tokens than the text has bytes, so most texts need no counting.
        """
        if limit_tokens is None:
            return []
        shortest = limit_tokens - _ADDED_TOKENS
        return [index for index, size in enumerate(self.sizes) if size > shortest]


def prepare(
    texts: Iterable[str],
    template: str,
    model: Model,
    *,
    offset: int = 0,
    refuse: Callable[[int, TextError], None] | None = None,
) -> Prepared:
    """Return ``texts`` ready to be sent.

    Args:
        texts: What the caller gave.
        template: Holds ``{text}``.
        model: What the catalog knows of the model; its end-of-text token stands for blank texts.
        offset: How many texts of the caller's come before these.
        refuse: Told of each text that cannot be sent, by its place in ``texts``, instead of an
            error being raised.

    Raises:
        TextError: Something is no text, cannot be encoded, or is blank and the model has no
            known end-of-text token; the index is named.
    """
    prepared = Prepared([], [])
    for index, text in enumerate(listed(texts)):
        try:
            given, size = _ready(offset + index, text, template, model)
        except TextError as error:
            if refuse is None:
                raise
            refuse(index, error)
            given, size = None, 0
        prepared.inputs.append(given)
        prepared.sizes.append(size)
    return prepared


def _ready(index: int, text: str, template: str, model: Model) -> tuple[Input | None, int]:
    templated = _templated(index, text, template)
    size = _bytes_of(index, templated, text)
    # The server refuses a whole batch for one blank text, so blank ones go as the token that the
    # reference implementation sees for "".
    return (templated if templated.strip() else [_end_of_text(index, model)]), size


def listed(texts: Iterable[str]) -> list[str]:
    """Return ``texts`` as a list, itself if it is one.

    Raises:
        TextError: As ``check_texts``.
    """
    if isinstance(texts, list):
        return texts
    check_texts(texts)
    return list(texts)


def check_texts(texts: object) -> None:
    """Do nothing if ``texts`` can be several texts; they are not looked at.

    Raises:
        TextError: It is one text, no iterable, or one that would yield something else than its
            texts: the letters of a text, the keys of a mapping, the column names of a table.
    """
    if isinstance(texts, str | bytes | bytearray | memoryview):
        advice = "Write [text]."
    elif isinstance(texts, Mapping):
        advice = "Give its values: list(texts.values())."
    elif hasattr(texts, "columns"):
        advice = "Give one column of the table."
    elif isinstance(texts, Iterable | AsyncIterable):
        return
    else:
        advice = "Give a list of str."
    raise TextError(
        f"texts is of type {type(texts).__name__}, not a list of texts. {advice}", index=0
    )


def excerpt(text: object) -> str:
    """Return the beginning of ``text``, quoted, for an error message."""
    shown = str(text)
    cut = shown[:_EXCERPT_CHARACTERS]
    return repr(cut) + ("..." if len(shown) > len(cut) else "")


def _templated(index: int, text: object, template: str) -> str:
    if not isinstance(text, str):
        raise TextError(
            f"Text {index} is of type {type(text).__name__}, not str: {excerpt(text)}. "
            f"Convert it, or leave it out.",
            index=index,
        )
    # The bare template is the usual one for documents: no copy of each text for it.
    return text if template == _BARE else apply(template, text)


def _bytes_of(index: int, templated: str, text: str) -> int:
    try:
        return len(templated.encode())
    except UnicodeEncodeError as error:
        surrogate = templated[error.start]
        where = text.find(surrogate)
        holder = "The instruction" if where < 0 else f"Text {index}"
        at = "" if where < 0 else f" at character {where}"
        raise TextError(
            f"{holder} holds the lone surrogate {surrogate!r}{at} and cannot be encoded. Read the "
            f"source with its real encoding, or replace it: "
            f"text.encode('utf-8', 'replace').decode().",
            index=index,
        ) from None


def _end_of_text(index: int, model: Model) -> int:
    if model.end_of_text_id is None:
        raise TextError(
            f"Text {index} is blank, and emberd does not know the end-of-text token of "
            f"{model.name}, which would stand for it. Leave blank texts out.",
            index=index,
        )
    return model.end_of_text_id
