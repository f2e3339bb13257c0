"""A folder of a model: whether the files that serving it takes are there, and whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from emberd import checkpoints, pipeline

TOKENIZERS: Final = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
_INDEX: Final = "model.safetensors.index.json"
_SAFETENSORS: Final = "*.safetensors"
_OLD: Final = ("*.bin", "*.pt")
_LENGTH_BYTES: Final = 8  # a safetensors file opens with its header's length, little-endian
_MOST_HEADER_BYTES: Final = 100_000_000
_OFFSETS: Final = "data_offsets"
_DAMAGED: Final = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What reading and using a header of any content raises."""


def lacking(folder: Path) -> list[str]:
    """Return what is missing in a model's folder or broken, a few words each; empty for nothing.

    Of the weights the headers are read: a file that was cut short is seen, a flipped bit is not.
    """
    found = [checkpoints.CONFIG] if not (folder / checkpoints.CONFIG).is_file() else []
    found = [f"no {name}" for name in found]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        found.append("no tokenizer.json")
    return [*found, *_weights(folder)]


def size_bytes(folder: Path) -> int:
    """Return what the weights take."""
    files = [*folder.glob(_SAFETENSORS), *(f for old in _OLD for f in folder.glob(old))]
    return sum(file.stat().st_size for file in files)


def _weights(folder: Path) -> Iterator[str]:
    present = {file.name: file for file in sorted(folder.glob(_SAFETENSORS))}
    named = set(_weight_map(folder).values())
    for name in sorted(named - set(present)):
        yield f"{name} is missing, which {_INDEX} names"
    for name, file in present.items():
        if trouble := _trouble(file):
            yield f"{name} {trouble}"
    if not present and not named and not any(any(folder.glob(old)) for old in _OLD):
        yield f"no weights ({_SAFETENSORS})"


def _weight_map(folder: Path) -> dict[str, str]:
    found = checkpoints.read_json(folder / _INDEX).get("weight_map")
    names = found.items() if isinstance(found, dict) else ()
    return {tensor: name for tensor, name in names if isinstance(name, str)}


def _trouble(file: Path) -> str | None:
    try:
        wanted, there = _length(file), file.stat().st_size
    except _DAMAGED as error:
        return f"cannot be read as safetensors ({type(error).__name__})"
    if there != wanted:
        return f"has {there:,} bytes of {wanted:,}: its download was cut short"
    return None


def _length(file: Path) -> int:
    """Return how long the file must be, by its own header."""
    with pipeline.open_regular(file) as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        if length > _MOST_HEADER_BYTES:
            raise ValueError("no header")
        header: dict[str, Any] = json.loads(opened.read(length))
    ends = [entry[_OFFSETS][1] for entry in header.values() if _OFFSETS in entry]
    return _LENGTH_BYTES + length + int(max(ends, default=0))
