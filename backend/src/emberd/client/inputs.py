"""Texts made ready to send: validated, put into their template, blank ones replaced."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from emberd.catalog import Model
from emberd.client.event_loops import Steps
from emberd.errors import TextError
from emberd.prompts import apply

Input = str | list[int]
"""One text in a request: the text itself, or its token ids."""

_BARE: Final = "{text}"
_EXCERPT_CHARACTERS: Final = 80
_TEXTS_A_STEP: Final = 32
# What a tokenizer may add to the tokens of the bytes: a start, an end, a leading space.
_ADDED_TOKENS: Final = 3


@dataclass(frozen=True, slots=True)
class PreparedTexts:
    """Texts as they are sent to the server; both lists have one entry per text.

    Attributes:
        inputs: The templated text, or token ids for a blank one; None for one that is not sent.
        sizes: Length of the templated text in bytes of UTF-8.
    """

    inputs: list[Input | None]
    sizes: list[int]

    def skip(self, index: int) -> None:
        """Do not send a text."""
        self.inputs[index] = None
        self.sizes[index] = 0

    def to_count(self, limit_tokens: int, among: Sequence[int]) -> list[int]:
        """Return which of the texts ``among`` may have more than ``limit_tokens`` tokens.

        No tokenizer makes more tokens than the text has bytes, so most texts need no counting.
        """
        shortest, sizes = limit_tokens - _ADDED_TOKENS, self.sizes
        return [index for index in among if sizes[index] > shortest]


def prepare(
    texts: Iterable[str],
    template: str,
    model: Model,
    *,
    offset: int = 0,
    on_error: Callable[[int, TextError], None] | None = None,
) -> Steps[PreparedTexts]:
    """Return ``texts`` ready to be sent.

    Args:
        texts: What the caller gave.
        template: The template, with ``{text}`` in it.
        model: What the catalog knows of the model; its end-of-text token replaces blank texts.
        offset: How many texts of the caller precede these.
        on_error: Called with (index in ``texts``, error) for a text that cannot be sent, instead
            of raising.

    Raises:
        TextError: Something is not a text, cannot be encoded, or is blank and the model has no
            known end-of-text token; it has the index.
    """
    prepared = PreparedTexts([], [])
    for index, text in enumerate(as_list(texts)):
        given: Input | None
        try:
            given, size = _prepare_one(offset + index, text, template, model)
        except TextError as error:
            if on_error is None:
                raise
            on_error(index, error)
            given, size = None, 0
        prepared.inputs.append(given)
        prepared.sizes.append(size)
        if (index + 1) % _TEXTS_A_STEP == 0:
            yield
    return prepared


def _prepare_one(index: int, text: object, template: str, model: Model) -> tuple[Input, int]:
    if not isinstance(text, str):
        raise TextError(
            f"Text {index} is of type {type(text).__name__}, not str: {excerpt(text)}. "
            f"Convert it, or omit it.",
            index=index,
        )
    # The bare template is the usual one for documents: no copy of each text for it.
    templated = text if template == _BARE else apply(template, text)
    try:
        size = len(templated.encode())
    except UnicodeEncodeError as error:
        surrogate = templated[error.start]
        where = text.find(surrogate)
        what = f"Text {index}" if where >= 0 else "The instruction"
        at = f" at character {where}" if where >= 0 else ""
        raise TextError(
            f"{what} holds the lone surrogate {surrogate!r}{at} and cannot be encoded. Read the "
            f"source with its real encoding, or replace it: "
            f"text.encode('utf-8', 'replace').decode().",
            index=index,
        ) from None
    if templated.strip():
        return templated, size
    # The server refuses a whole batch for one blank text, so a blank one is sent as the token that
    # the reference implementation sees for "".
    if model.end_of_text_id is None:
        raise TextError(
            f"Text {index} is blank, and emberd does not know the end-of-text token of "
            f"{model.name}, which would replace it. Omit blank texts.",
            index=index,
        )
    return [model.end_of_text_id], size


def as_list(texts: Iterable[str]) -> list[str]:
    """Return ``texts`` as a list, itself if it is one.

    Raises:
        TextError: As ``check_texts``.
    """
    if isinstance(texts, list):
        return texts
    check_texts(texts)
    return list(texts)


def check_texts(texts: object) -> None:
    """Raise if ``texts`` cannot be several texts; the texts themselves are not checked.

    Raises:
        TextError: It is one text, not iterable, or something whose items are not its texts: the
            characters of a text, the keys of a mapping, the column names of a table.
    """
    if isinstance(texts, str | bytes | bytearray | memoryview):
        advice = "Pass [text]."
    elif isinstance(texts, Mapping):
        advice = "Pass its values: list(texts.values())."
    elif hasattr(texts, "columns"):
        advice = "Pass one column of the table."
    elif isinstance(texts, Iterable | AsyncIterable):
        return
    else:
        advice = "Pass a list of str."
    raise TextError(
        f"texts is of type {type(texts).__name__}, not a list of texts. {advice}", index=0
    )


def excerpt(text: object) -> str:
    """Return the beginning of ``text``, quoted, for an error message."""
    shown = str(text)
    cut = shown[:_EXCERPT_CHARACTERS]
    return repr(cut) + ("..." if len(shown) > len(cut) else "")
