"""Which files are to be read, and of which kind they are."""

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
# What other programs leave in a folder of data: _SUCCESS, _metadata, .DS_Store.
_HIDDEN: Final = (".", "_")


class Kind(StrEnum):
    """What a row is."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    TEXTS = "texts"  # a file is a row


@dataclass(frozen=True, slots=True)
class Inputs:
    """What there is to read.

    Attributes:
        kind: Of all files.
        files: In the order in which they are read.
        left_out: How many files of the folders are of no kind that is known.
    """

    kind: Kind
    files: tuple[Path, ...]
    left_out: int = 0

    def stamps(self) -> list[dict[str, Any]]:
        """Return what tells whether the files are still those that they were."""
        return [_stamp(path) for path in self.files]


def is_data(name: str) -> bool:
    """Return whether ``name`` is a folder, or a file of rows: anything but lines of text."""
    return _kind(Path(name)) in (Kind.PARQUET, Kind.JSONL) or Path(name).is_dir()


def find(names: Sequence[str]) -> Inputs:
    """Return the files behind ``names``: files themselves, and what folders hold, sorted.

    Raises:
        SettingError: A file is not there or named twice, they are of several kinds, or a folder
            holds none or cannot be read.
    """
    found: list[Path] = []
    left_out = 0
    for name in names:
        if not name:
            raise SettingError("A name of the input is empty. Give a file or a folder.")
        if not Path(name).is_dir():
            found.append(_file(name))
            continue
        inside = _inside(Path(name))
        known = [path for path in inside if _kind(path) is not None]
        if not known:
            raise _nothing_in(name, inside)
        left_out += len(inside) - len(known)
        found += known
    _refuse_twice(found)
    return Inputs(_one_kind(found), tuple(found), left_out)


def _kind(path: Path) -> Kind | None:
    name = path.name.casefold()
    return next((Kind(kind) for ending, kind in _ENDINGS.items() if name.endswith(ending)), None)


def _file(name: str) -> Path:
    path = Path(name)
    if not path.exists():
        raise SettingError(f"{name} is no file and no folder. Give one that is there.")
    if _kind(path) in (None, Kind.TEXTS):
        raise SettingError(
            f"{name} is a file with a text a line, which cannot be read together with Parquet, "
            f"JSON lines or folders. Run emberd embed for it alone."
        )
    with path.open("rb"):
        return path


def _refuse_twice(files: Iterable[Path]) -> None:
    seen: set[Path] = set()
    for path in files:
        # Names that link to one file are kept apart: folders of downloads have such.
        place = path.parent.resolve() / path.name
        if place in seen:
            raise SettingError(
                f"{path} is among the input twice: by its name and by another, or by a folder that "
                f"holds it. Name it once."
            )
        seen.add(place)


def _refuse_closed(error: OSError) -> None:
    raise SettingError(
        f"The folder {error.filename} cannot be read: {error.strerror}. Make it readable, or name "
        f"what else is to be read."
    )


def _inside(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_refuse_closed):
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        found += [Path(place, name) for name in names if not name.startswith(_HIDDEN)]
    return sorted(found, key=lambda path: path.parts)


def _one_kind(files: Iterable[Path]) -> Kind:
    counts: dict[str, int] = {}
    for path in files:
        packed = path.suffix.casefold() == ".gz"
        ending = "".join(path.suffixes[-2:]) if packed else path.suffix
        counts[ending] = counts.get(ending, 0) + 1
    kinds = {_kind(Path(f"x{ending}")) for ending in counts}
    if len(kinds) > 1:
        told = " and ".join(f"{count} {ending}" for ending, count in sorted(counts.items()))
        raise SettingError(
            f"The input is of several kinds: {told}. Name the files of one kind, for instance "
            f"FOLDER/*.parquet, and embed the others by a run of their own."
        )
    (kind,) = kinds
    if kind is None:
        raise RuntimeError("files of no kind are left out before")
    return kind


def _nothing_in(name: str, inside: list[Path]) -> SettingError:
    seen = sorted({path.suffix or path.name for path in inside})[:5]
    holds = f"only {', '.join(seen)}" if seen else "no file"
    return SettingError(
        f"The folder {name} holds {holds}. Read are {', '.join(_ENDINGS)}; names that begin with "
        f". or _ are passed over."
    )


def _stamp(path: Path) -> dict[str, Any]:
    try:
        told = path.stat()
    except OSError:
        return {"path": str(path), "bytes": None, "changed_ns": None}
    return {"path": str(path), "bytes": told.st_size, "changed_ns": told.st_mtime_ns}
