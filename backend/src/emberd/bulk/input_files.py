"""Which files are read, and what kind they are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from emberd.errors import SettingError

_ENDINGS: Final[dict[str, str]] = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"), "jsonl"),
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), "texts"),
}
# Files that other programs leave in data folders: _SUCCESS, _metadata, .DS_Store.
_HIDDEN: Final = (".", "_")


class InputKind(StrEnum):
    """Kind of the input files."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    TEXTS = "texts"  # a file is a row


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that are read.

    Attributes:
        kind: Kind of all files.
        files: The files in reading order.
        skipped: Number of files in the folders that have another kind.
    """

    kind: InputKind
    files: tuple[Path, ...]
    skipped: int = 0

    def stamps(self) -> list[dict[str, Any]]:
        """Return size and time of change of each file, to detect changes."""
        return [_stamp(path) for path in self.files]


def is_data(name: str) -> bool:
    """Return whether ``name`` is a folder or a file of rows, and not a file of lines of text."""
    return _kind(Path(name)) in (InputKind.PARQUET, InputKind.JSONL) or Path(name).is_dir()


def find(names: Sequence[str]) -> Inputs:
    """Return the files behind ``names``; the files of a folder are sorted by path.

    Raises:
        SettingError: A file does not exist, is named twice or is not a regular file; the files have
            several kinds; a folder contains no input or cannot be read.
    """
    found: list[Path] = []
    skipped = 0
    for name in names:
        if not name:
            raise SettingError("The name of an input is empty. Pass a file or a folder.")
        if not Path(name).is_dir():
            found.append(_file(name))
            continue
        inside = _inside(Path(name))
        known = [path for path in inside if _kind(path) is not None]
        if not known:
            raise _nothing_in(name, inside)
        skipped += len(inside) - len(known)
        found += known
    _refuse_twice(found)
    return Inputs(_one_kind(found), tuple(found), skipped)


def _kind(path: Path) -> InputKind | None:
    name = path.name.casefold()
    return next(
        (InputKind(kind) for ending, kind in _ENDINGS.items() if name.endswith(ending)), None
    )


def _file(name: str) -> Path:
    path = Path(name)
    if not path.exists():
        raise SettingError(f"{name} does not exist.")
    if _kind(path) in (None, InputKind.TEXTS):
        raise SettingError(
            f"{name} contains one text per line, which cannot be combined with Parquet, JSON lines "
            f"or folders. Embed it in a run of its own."
        )
    if not path.is_file():
        raise SettingError(f"{name} is a device or a pipe; data is read from regular files only.")
    with path.open("rb"):
        return path


def _refuse_twice(files: Iterable[Path]) -> None:
    seen: set[Path] = set()
    for path in files:
        # Different names that link to one file are allowed: download folders contain such links.
        place = path.parent.resolve() / path.name
        if place in seen:
            raise SettingError(
                f"{path} is in the input twice: under two names, or also through its folder. "
                f"Name it once."
            )
        seen.add(place)


def _refuse_closed(error: OSError) -> None:
    raise SettingError(
        f"The folder {error.filename} cannot be read: {error.strerror}. Make it readable, or name "
        f"the files to read."
    )


def _inside(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_refuse_closed):
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        paths = [Path(place, name) for name in names if not name.startswith(_HIDDEN)]
        # Opening a pipe would wait for a writer; a broken link becomes a row with an error.
        found += [path for path in paths if path.is_file() or not path.exists()]
    return sorted(found, key=lambda path: path.parts)


def _one_kind(files: Iterable[Path]) -> InputKind:
    counts: dict[str, int] = {}
    for path in files:
        packed = path.suffix.casefold() == ".gz"
        ending = "".join(path.suffixes[-2:]) if packed else path.suffix
        counts[ending] = counts.get(ending, 0) + 1
    kinds = {_kind(Path(f"x{ending}")) for ending in counts}
    if len(kinds) > 1:
        listed = " and ".join(f"{count} {ending}" for ending, count in sorted(counts.items()))
        raise SettingError(
            f"The input has several kinds of files: {listed}. Name the files of one kind, such as "
            f"FOLDER/*.parquet, and embed the others in another run."
        )
    return next(kind for kind in kinds if kind is not None)


def _nothing_in(name: str, inside: list[Path]) -> SettingError:
    seen = sorted({path.suffix or path.name for path in inside})[:5]
    content = f"only {', '.join(seen)}" if seen else "no files"
    return SettingError(
        f"The folder {name} contains {content}. Files that can be read: {', '.join(_ENDINGS)}; "
        f"names that begin with . or _ are skipped."
    )


def _stamp(path: Path) -> dict[str, Any]:
    try:
        status = path.stat()
    except OSError:
        return {"path": str(path), "bytes": None, "changed_ns": None}
    return {"path": str(path), "bytes": status.st_size, "changed_ns": status.st_mtime_ns}
