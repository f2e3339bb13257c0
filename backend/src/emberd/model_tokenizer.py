"""What ``tokenizer.json`` says of the tokens that a text gets, in the format of tokenizers."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emberd.model_files import read_json, read_text

FILE: Final = "tokenizer.json"
SETTINGS: Final = "tokenizer_config.json"
FILES: Final = (FILE, SETTINGS)
_UNREADABLE: Final = object()

# Classes with which Transformers 5 keeps the normalizer of the file. With others it builds one of
# its own, or none (LlamaTokenizer, GPT2Tokenizer).
_KEEP_NORMALIZER: Final = (
    *("PreTrainedTokenizerFast", "TokenizersBackend"),
    *("Qwen2Tokenizer", "Qwen2TokenizerFast"),  # they build NFC
)

# Post-processors that put one token before a text and one after it.
_PAIRED: Final = ("BertProcessing", "RobertaProcessing")
_KNOWN_PROCESSORS: Final = (None, "ByteLevel", "TemplateProcessing", *_PAIRED)

# White space between the parts that these make is dropped.
_SPLIT_AT_WHITE_SPACE: Final = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What a tokenizer does with each text.

    Attributes:
        start_ids: The tokens that it puts before the text, such as ``[CLS]``.
        end_of_text_id: The token that it appends; None if it appends none.
        starts_with_nfc: Whether a text and its NFC give the same tokens; None if that is unknown.
        special_tokens: Text and id of the tokens that it finds in a text before it normalises it;
            empty if it is not known which tokens it puts around a text.
        lowers: Whether it lower-cases a text; False if that is unknown.
        is_known: Whether it is known which tokens it puts around a text.
        trims: Whether it ignores white space at the ends of a text; False if that is unknown.
    """

    start_ids: tuple[int, ...] = ()
    end_of_text_id: int | None = None
    starts_with_nfc: bool | None = None
    special_tokens: tuple[tuple[str, int], ...] = ()
    trims: bool = False
    lowers: bool = False
    is_known: bool = False


def read(folder: Path) -> Tokenizer:
    """Return what the file of a folder says; nothing if it cannot be read."""
    try:
        text = read_text(folder / FILE)
    except (OSError, ValueError):
        return Tokenizer()
    processor = _part(text, "post_processor")
    listed = _steps(processor, "processors")
    normalizer = _part(text, "normalizer")
    # Another step before NFC, such as one that strips accents, may tell a text and its NFC apart.
    is_nfc = None if normalizer is None else _first_type(normalizer, "normalizers") == "NFC"
    kind = read_json(folder / SETTINGS).get("tokenizer_class")
    if is_nfc and kind is not None and kind not in _KEEP_NORMALIZER:
        is_nfc = None
    kinds = [part.get("type") if isinstance(part, dict) else part for part in listed]
    is_known = processor is not None and all(kind in _KNOWN_PROCESSORS for kind in kinds)
    special = _special_tokens(_value(text, "added_tokens")) if is_known else ()
    splits = _first_type(_part(text, "pre_tokenizer"), "pretokenizers")
    trims = splits in _SPLIT_AT_WHITE_SPACE
    lowers = any(map(_lowers, _steps(normalizer, "normalizers")))
    end = _end_of_text_id(listed)
    return Tokenizer(_start_ids(listed), end, is_nfc, special, trims, lowers, is_known)


def _lowers(step: object) -> bool:
    kind = step.get("type") if isinstance(step, dict) else None
    return kind == "Lowercase" or (kind == "BertNormalizer" and step.get("lowercase") is True)  # type: ignore[attr-defined]


def _special_tokens(added: object) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for entry in added if isinstance(added, list) else ():
        with suppress(LookupError, TypeError):
            token, number, is_found_later = entry["content"], entry["id"], entry["normalized"]
            if isinstance(token, str) and token and type(number) is int and not is_found_later:
                found.append((token, number))
    return tuple(found)


def _end_of_text_id(processors: list[Any]) -> int | None:
    # One template, or a sequence that holds one.
    for part in processors:
        try:
            if part["type"] in _PAIRED:
                number = part["sep"][1]
            else:
                token = part["single"][-1]["SpecialToken"]["id"]
                (number,) = part["special_tokens"][token]["ids"]
        except (LookupError, TypeError, ValueError):
            continue  # it appends no token, or its form is another
        return number if isinstance(number, int) else None
    return None


def _start_ids(processors: list[Any]) -> tuple[int, ...]:
    found: list[int] = []
    for part in processors:
        with suppress(LookupError, TypeError):
            if part["type"] in _PAIRED:
                found.append(part["cls"][1])
                continue
            for entry in itertools.takewhile(lambda entry: "SpecialToken" in entry, part["single"]):
                found += part["special_tokens"][entry["SpecialToken"]["id"]]["ids"]
    return tuple(found) if all(type(number) is int for number in found) else ()


def _steps(part: Mapping[str, Any] | None, name: str) -> list[Any]:
    """Return the steps of a sequence, or the one step that ``part`` is."""
    steps = (part or {}).get(name)
    return steps if isinstance(steps, list) else [part or {}]


def _first_type(part: Mapping[str, Any] | None, name: str) -> object:
    first = next(iter(_steps(part, name)), None)
    return first.get("type") if isinstance(first, dict) else None


def _part(text: str, name: str) -> dict[str, Any] | None:
    """Return an object that JSON holds by name, ``{}`` for null; None if it cannot be read."""
    part = _value(text, name)
    return None if part is _UNREADABLE else part if isinstance(part, dict) else {}


def _value(text: str, name: str) -> Any:
    """Return what JSON holds by name; ``_UNREADABLE`` if it cannot be read."""
    # Not parsed whole: Qwen's has 11 MB of vocabulary, and these parts come before it.
    found = re.search(rf'"{name}":\s*', text)
    try:
        return json.JSONDecoder().raw_decode(text, found.end() if found else len(text))[0]
    except (ValueError, RecursionError):
        return _UNREADABLE
