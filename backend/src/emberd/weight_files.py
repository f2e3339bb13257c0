"""The weights of a model: what is missing of them here, their size, and reading them ahead."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from emberd import model_files
from emberd.system import capacity

_NAMED_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([BM])(?![A-Za-z])")
_BF16_BYTES: Final = 2
_UNITS: Final = {"B": 1_000_000_000, "M": 1_000_000}
_TOKENIZERS: Final = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
)
_MOST_SHOWN: Final = 3
_MOST_PARTS: Final = 1000  # a file that only has such a name may state any count
_WHOLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_OLD: Final = ("*.bin", "*.pt")
# Of a larger piece the kernel reads only as much as the disk's setting read_ahead_kb: usually this.
_AHEAD_BYTES: Final = 128 * 1024
_OTHER_FORMATS: Final = (*_OLD, "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf", "*.onnx")
# One file of several: its number, and how many there are.
_PART: Final = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.\w+)")


CONVERT: Final = (
    "Files of other formats can run code when they are loaded, so emberd does not download them. "
    "Use a revision of the model that has safetensors, or, if you trust its author, load it with "
    "transformers, write it to a folder with save_pretrained(), which makes safetensors, and give "
    "that folder as the model"
)
"""What to do about a model without weights in the safetensors format."""


def estimated_bytes(model: str) -> int:
    """Estimate the size of the weights from the size in the model's name; 0 if it has none."""
    found = _NAMED_SIZE.findall(model)
    number, unit = found[-1] if found else ("0", "B")
    return int(float(number) * _UNITS[unit] * _BF16_BYTES)


def size_bytes(folder: Path) -> int:
    """Return the size of the weights of a folder in bytes."""
    files = (file for pattern in (model_files.SAFETENSORS, *_OLD) for file in folder.glob(pattern))
    return sum(file.stat().st_size for file in files)


def in_other_formats(names: Iterable[str]) -> list[str]:
    """Return those of the files of a model that are weights in another format than safetensors."""
    return sorted(
        name
        for name in names
        if any(PurePosixPath(name).match(pattern) for pattern in _OTHER_FORMATS)
    )


def only(others: Sequence[str]) -> str:
    """Return a clause that names weights in other formats; empty if there are none."""
    shown = ", ".join(others[:_MOST_SHOWN]) + (", ..." if len(others) > _MOST_SHOWN else "")
    return f", only {shown}" if others else ""


def read_ahead(model: str, revision: str | None) -> None:
    """Have the kernel read the weights into its page cache (Linux; elsewhere nothing).

    A server imports its libraries for a while before it reads the weights, and then reads a cold
    file in small pieces. It may take as long as the disk needs, so call it in a thread.

    Args:
        model: A folder, or a name on the hub.
        revision: The revision on the hub.
    """
    if sys.platform != "linux":
        return
    folder = Path(model) if model_files.is_folder(model) else None
    folder = folder or model_files.hub_snapshot(model, revision)
    files = sorted(folder.glob(model_files.SAFETENSORS)) if folder else []
    # What does not fit would displace what was read before, or other data of this container.
    free = capacity.free_memory()
    if free is None or sum(file.stat().st_size for file in files) > free:
        return
    for file in files:
        with suppress(OSError), model_files.open_regular(file) as opened:
            for begin in range(0, os.fstat(opened.fileno()).st_size, _AHEAD_BYTES):
                os.posix_fadvise(opened.fileno(), begin, _AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


def missing_files(folder: Path) -> list[str]:
    """Return what is missing or damaged in a model's folder, in a few words each.

    Only the headers of the weights are read, so a truncated file is found but not a changed bit.
    """
    has_config = (folder / model_files.CONFIG).is_file()
    found = [] if has_config else [f"no {model_files.CONFIG}"]
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        found.append("no tokenizer.json")
    present = {file.name: file for file in sorted(folder.glob(model_files.SAFETENSORS))}
    listed = model_files.read_json(folder / _INDEX).get("weight_map")
    values = listed.values() if isinstance(listed, dict) else ()
    named = {name for name in values if isinstance(name, str)}
    found += [f"{name} is missing ({_INDEX} lists it)" for name in sorted(named - set(present))]
    # Without an index the names tell how many parts there are. Files in older formats are not read
    # where there are safetensors.
    weights = set(present) or {file.name for old in _OLD for file in folder.glob(old)}
    if not named and _WHOLE not in weights:
        found += [
            f"{name} is missing (the names of the others count it)"
            for name in sorted(_parts(weights) - weights)
        ]
    for name, file in present.items():
        try:
            wanted = model_files.read_safetensors_header(file).file_bytes
            there = file.stat().st_size
        except (OSError, ValueError) as error:
            found.append(f"{name} cannot be read as safetensors ({type(error).__name__})")
            continue
        if there != wanted:
            size = f"{there:,} bytes of {wanted:,}"
            found.append(f"{name} has {size}: its download was interrupted")
    if not present and not named and not any(any(folder.glob(old)) for old in _OLD):
        found.append(f"no weights ({model_files.SAFETENSORS})")
    return found


def _parts(names: Iterable[str]) -> set[str]:
    """Return the names of all parts of weights of which some part has one of these names."""
    parts = [found for name in names if (found := _PART.fullmatch(name))]
    return {
        f"{part['name']}-{number:05}-of-{part['count']}{part['ending']}"
        for part in parts
        for number in range(1, min(int(part["count"]), _MOST_PARTS) + 1)
    }
