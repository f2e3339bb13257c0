"""A folder of a model: whether the files that serving it takes are there, and whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from emberd import model_files

TOKENIZERS: Final = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
_INDEX: Final = "model.safetensors.index.json"
_OLD: Final = ("*.bin", "*.pt")


def lacking(folder: Path) -> list[str]:
    """Return what is missing in a model's folder or broken, a few words each; empty for nothing.

    Of the weights the headers are read: a file that was cut short is seen, a flipped bit is not.
    """
    found = [model_files.CONFIG] if not (folder / model_files.CONFIG).is_file() else []
    found = [f"no {name}" for name in found]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        found.append("no tokenizer.json")
    return [*found, *_weights(folder)]


def size_bytes(folder: Path) -> int:
    """Return what the weights take."""
    files = [*folder.glob(model_files.SAFETENSORS), *(f for old in _OLD for f in folder.glob(old))]
    return sum(file.stat().st_size for file in files)


def _weights(folder: Path) -> Iterator[str]:
    present = {file.name: file for file in sorted(folder.glob(model_files.SAFETENSORS))}
    named = set(_weight_map(folder).values())
    for name in sorted(named - set(present)):
        yield f"{name} is missing, which {_INDEX} names"
    for name, file in present.items():
        if trouble := _trouble(file):
            yield f"{name} {trouble}"
    if not present and not named and not any(any(folder.glob(old)) for old in _OLD):
        yield f"no weights ({model_files.SAFETENSORS})"


def _weight_map(folder: Path) -> dict[str, str]:
    found = model_files.read_json(folder / _INDEX).get("weight_map")
    names = found.items() if isinstance(found, dict) else ()
    return {tensor: name for tensor, name in names if isinstance(name, str)}


def _trouble(file: Path) -> str | None:
    try:
        wanted = model_files.read_safetensors_header(file).file_bytes
        there = file.stat().st_size
    except (OSError, ValueError) as error:
        return f"cannot be read as safetensors ({type(error).__name__})"
    if there != wanted:
        return f"has {there:,} bytes of {wanted:,}: its download was cut short"
    return None
