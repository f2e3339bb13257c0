"""Texts made ready to send: validated, put into their template, normalised."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from emberd.catalog import EMBED, NOUN, Model
from emberd.client.event_loops import Steps
from emberd.errors import TextError
from emberd.prompts import Template, apply, plain

Input = str | list[int]
"""One text in a request: the text itself, or its token ids."""

SpecialTokens = tuple[tuple[str, int], ...]
"""Text and id of each special token of a model."""

_BARE: Final = "{text}"
_EXCERPT_CHARACTERS: Final = 80
_TEXTS_A_STEP: Final = 32
ADDED_TOKENS: Final = 3
"""What a tokenizer may add to the tokens of the bytes: a start, an end, a leading space."""
# The form that no other form of a text exceeds in bytes.
_LONGEST_FORM: Final = "NFKD"


@dataclass(frozen=True, slots=True)
class PreparedTexts:
    """Texts as they are sent to the server; both lists have one entry per text.

    Attributes:
        inputs: The templated text, or token ids; None for one that is not sent.
        sizes: Length of the templated text, as the tokenizer splits it, in bytes of UTF-8.
        blank: The texts that are white space.
        counted: How many tokens a text has, for those that were counted.
    """

    inputs: list[Input | None]
    sizes: list[int]
    blank: list[int] = field(default_factory=list)
    counted: dict[int, int] = field(default_factory=dict)

    def skip(self, index: int) -> None:
        """Do not send a text."""
        self.inputs[index] = None
        self.sizes[index] = 0

    def to_count(self, limit_tokens: int, among: Sequence[int]) -> list[int]:
        """Return which of the texts ``among`` may have more than ``limit_tokens`` tokens.

        No tokenizer makes more tokens than the text has bytes in the form in which it splits the
        text, so most texts need no counting.
        """
        shortest, sizes = limit_tokens - ADDED_TOKENS, self.sizes
        return [index for index in among if sizes[index] > shortest]

    def tokens(self, indices: Iterable[int], *, counts_exactly: bool) -> int | None:
        """Return how many tokens the texts have together; None if that is not known.

        It is known of token ids, and of texts that were counted by a server that
        ``counts_exactly``.
        """
        total = 0
        for index in indices:
            given = self.inputs[index]
            if isinstance(given, list):
                count: int | None = len(given)
            else:
                count = self.counted.get(index) if counts_exactly else None
            if count is None:
                return None
            total += count
        return total


def prepare(
    texts: Iterable[str],
    template: Template,
    model: Model,
    *,
    offset: int = 0,
    noun: str = NOUN[EMBED],
    on_error: Callable[[int, TextError], None] | None = None,
) -> Steps[PreparedTexts]:
    """Return ``texts`` ready to be sent.

    Args:
        texts: What the caller gave.
        template: The template, with ``{text}`` in it.
        model: What is known of the model; an empty text becomes the tokens that its tokenizer puts
            around a text: its start tokens and its end-of-text token.
        offset: How many texts of the caller precede these.
        noun: What the caller calls a text, for errors.
        on_error: Called with (index in ``texts``, error) for a text that cannot be sent, instead
            of raising.

    Raises:
        TextError: Something is not a text, cannot be encoded, or is empty and the model has no
            known end-of-text token; it has the index.
    """
    prepared = PreparedTexts([], [])
    for index, text in enumerate(as_list(texts, noun)):
        given: Input | None
        try:
            given, size = _prepare_one(noun, offset + index, text, template, model)
            # What SGLang refuses: it asks the same.
            if isinstance(given, str) and not given.strip():
                prepared.blank.append(index)
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


def _prepare_one(
    noun: str, index: int, text: object, template: Template, model: Model
) -> tuple[Input, int]:
    if not isinstance(text, str):
        raise TextError(
            f"{noun.capitalize()} {index} is of type {type(text).__name__}, not str: "
            f"{excerpt(text)}. Convert it, or omit it.",
            index=index,
        )
    templated = in_template(text, template, model)
    try:
        size = most_bytes(templated, model)
    except UnicodeEncodeError as error:
        surrogate = error.object[error.start]
        where = text.find(surrogate)
        what = f"{noun.capitalize()} {index}" if where >= 0 else "The instruction"
        at = f" at character {where}" if where >= 0 else ""
        raise TextError(
            f"{what} holds the lone surrogate {surrogate!r}{at} and cannot be encoded. Read the "
            f"source with its real encoding, or replace it: "
            f"text.encode('utf-8', 'replace').decode().",
            index=index,
        ) from None
    if templated:
        return templated, size
    # Servers refuse an empty text, so it is sent as the tokens that the reference implementation
    # sees for it.
    if model.end_of_text_id is None:
        raise TextError(
            f"{noun.capitalize()} {index} is empty, and emberd does not know the end-of-text token "
            f"of {model.name}, which would replace it. Omit empty texts.",
            index=index,
        )
    return [*model.start_ids, model.end_of_text_id], size


def most_bytes(templated: str, model: Model) -> int:
    """Return the length, in bytes of UTF-8, of what ``in_template`` returned, as it is split."""
    if templated.isascii() or model.normalization is not None:
        return len(templated.encode())
    # The tokenizer may bring it into any form: 4 bytes of U+1D160 become 12 in NFC.
    return len(unicodedata.normalize(_LONGEST_FORM, templated).encode())


def in_template(text: str, template: Template, model: Model) -> str:
    """Return ``text`` in its template, as the model's tokenizer would normalise it.

    Some servers have a tokenizer that does not (llama.cpp); for all others this changes nothing.
    """
    # The bare template is the usual one for documents: no copy of each text for it.
    templated = plain(text) if template == _BARE else apply(template, text)
    form: Any = model.normalization
    if form is None or templated.isascii() or unicodedata.is_normalized(form, templated):
        return templated
    # The tokenizer finds special tokens before it normalises, so a token is not composed with the
    # mark that follows it: ">" and U+0338 are one character in NFC.
    parts = _special(model.special_tokens).split(templated)
    return "".join([unicodedata.normalize(form, part) for part in parts])


def split_at_special(text: str, special: SpecialTokens) -> list[str | int]:
    """Return the parts of a text, each special token in it as its id."""
    ids = dict(special)
    return [ids.get(part, part) for part in _special(special).split(text) if part]


@functools.lru_cache(maxsize=16)
def _special(special: SpecialTokens) -> re.Pattern[str]:
    # The longest of those that begin alike, as tokenizers do. Without special tokens, it matches
    # nothing.
    longest_first = sorted((token for token, _ in special), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def as_list(texts: Iterable[str], noun: str = NOUN[EMBED]) -> list[str]:
    """Return ``texts`` as a list, itself if it is one.

    Raises:
        TextError: As ``check_texts``.
    """
    if isinstance(texts, list):
        return texts
    check_texts(texts, noun)
    return list(texts)


def check_texts(texts: object, noun: str = NOUN[EMBED]) -> None:
    """Raise if ``texts`` cannot be several texts; the texts themselves are not checked.

    Args:
        texts: What is checked.
        noun: What the caller calls a text, for the error.

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
    elif isinstance(texts, Iterable):
        return
    elif isinstance(texts, AsyncIterable):
        advice = f"Collect them first: [{noun} async for {noun} in {noun}s]."
    else:
        advice = "Pass a list of str."
    raise TextError(
        f"{noun}s is of type {type(texts).__name__}, not a list of texts. {advice}", index=0
    )


def excerpt(text: object) -> str:
    """Return the beginning of ``text``, quoted, for an error message."""
    shown = str(text)
    cut = shown[:_EXCERPT_CHARACTERS]
    return repr(cut) + ("..." if len(shown) > len(cut) else "")
