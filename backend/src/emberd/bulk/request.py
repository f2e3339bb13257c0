"""A bulk job as requested: which files are read, what is written, and what happens to bad rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from emberd.errors import SettingError
from emberd.system import os_errors

SAVE_EVERY_S: Final = 30.0
"""How often a local run saves a part: at most this much work is lost when it is killed."""

Stamps = dict[str, list[int | None]]
"""Size and time of change of each file by its path; None for a file that cannot be examined."""

_ENDINGS: Final[dict[str, str]] = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"), "jsonl"),
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), "texts"),
}
# Files that other programs leave in data folders: _SUCCESS, _metadata, .DS_Store.
_HIDDEN: Final = (".", "_")


class Role(StrEnum):
    """Role of the texts."""

    DOCUMENT = "document"
    QUERY = "query"


class BadRows(StrEnum):
    """What happens to rows that cannot be embedded."""

    SET_ASIDE = "set-aside"
    FAIL = "fail"


class InputKind(StrEnum):
    """Kind of the input files."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    TEXTS = "texts"  # a file is a row


class OutputFormat(StrEnum):
    """Format of the output; ``FOLDER`` is a folder of Parquet files."""

    PARQUET = "parquet"
    FOLDER = "folder"
    NPY = "npy"
    JSONL = "jsonl"

    @property
    def keeps_rows(self) -> bool:
        """Whether the output contains the rows of the input."""
        return self is not OutputFormat.NPY


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that are read.

    Attributes:
        kind: Kind of all files.
        files: The files in reading order.
        skipped: Number of files in the folders that have another kind.
        special: Pipes, devices and sockets in the folders, which are not read.
    """

    kind: InputKind
    files: tuple[Path, ...]
    skipped: int = 0
    special: tuple[Path, ...] = ()

    def stamps(self) -> Stamps:
        """Return the stamps of the files, to detect changes."""
        stamps: Stamps = {}
        for path in self.files:
            try:
                status = path.stat()
            except OSError:
                stamps[str(path)] = [None, None]
            else:
                stamps[str(path)] = [status.st_size, status.st_mtime_ns]
        return stamps


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """A bulk job, as requested.

    Attributes:
        inputs: The input files.
        output: File or folder to write.
        output_format: Its format.
        identity: What the vectors are made with; a run only continues a job with the same one.
        role: Role of the texts.
        column: Column or field of the texts.
        embedding_column: Column or field of the vectors.
        truncate: Whether over-long texts are cut; only compared when a run continues.
        deterministic: Whether the vectors are the same, to the bit, in any batch; likewise.
        restart: Delete what an earlier run did.
        bad_rows: What happens to rows that cannot be embedded.
        save_every_s: How often a local run saves a part.
    """

    inputs: Inputs
    output: Path
    output_format: OutputFormat
    identity: str
    role: str = Role.DOCUMENT
    column: str = "text"
    embedding_column: str = "embedding"
    truncate: bool = False
    deterministic: bool = False
    restart: bool = False
    bad_rows: str = BadRows.SET_ASIDE
    save_every_s: float = SAVE_EVERY_S

    @property
    def is_jsonl(self) -> bool:
        """Whether rows are lines of JSON."""
        return self.inputs.kind is InputKind.JSONL

    @property
    def rejects_path(self) -> Path:
        """File of the rows that could not be embedded."""
        return self.output.with_name(self.output.name + ".rejects.jsonl")

    @property
    def row_numbers_path(self) -> Path:
        """File of the row numbers that belongs to an array, which has no other column."""
        return self.output.with_name(f"{self.output.name.removesuffix('.npy')}.rows.npy")


def is_data(name: str) -> bool:
    """Return whether ``name`` is a folder or a file of rows, and not a file of lines of text."""
    return _kind(Path(name)) in (InputKind.PARQUET, InputKind.JSONL) or Path(name).is_dir()


def find_inputs(names: Sequence[str]) -> Inputs:
    """Return the files behind ``names``; the files of a folder are sorted by path.

    Raises:
        SettingError: A file does not exist, is named twice or is not a regular file; the files have
            several kinds; a folder contains no input or cannot be read.
    """
    files: list[Path] = []
    special: list[Path] = []
    skipped = 0
    for name in names:
        if not name:
            raise SettingError("The name of an input is empty. Pass a file or a folder.")
        if not Path(name).is_dir():
            files.append(_named_file(name))
            continue
        inside, others = _inside(Path(name))
        special += others
        known = [path for path in inside if _kind(path) is not None]
        if not known:
            seen = sorted({path.suffix or path.name for path in inside})[:5]
            content = f"only {', '.join(seen)}" if seen else "no files"
            raise SettingError(
                f"The folder {name} contains {content}. Files that can be read: "
                f"{', '.join(_ENDINGS)}; names that begin with . or _ are skipped."
            )
        skipped += len(inside) - len(known)
        files += map(_existing, known)
    places: set[Path] = set()
    for path in files:
        # Different names that link to one file are allowed: download folders contain such links.
        place = path.parent.resolve() / path.name
        if place in places:
            raise SettingError(
                f"{path} is in the input twice: under two names, or also through its folder. "
                f"Name it once."
            )
        places.add(place)
    return Inputs(_common_kind(files), tuple(files), skipped, tuple(special))


def _kind(path: Path) -> InputKind | None:
    name = path.name.casefold()
    return next(
        (InputKind(kind) for ending, kind in _ENDINGS.items() if name.endswith(ending)), None
    )


def _named_file(name: str) -> Path:
    path = Path(name)
    if not path.exists():
        raise SettingError(f"{name} does not exist.")
    if _kind(path) in (None, InputKind.TEXTS):
        raise SettingError(
            f"{name} contains one text per line, which cannot be combined with Parquet, JSON lines "
            f"or folders. Embed it in a separate run."
        )
    if not path.is_file():
        raise SettingError(f"{name} is a device or a pipe; data is read from regular files only.")
    with os_errors.reading(name, SettingError), path.open("rb"):
        return path


def _existing(path: Path) -> Path:
    # A text file that cannot be read becomes a row with an error.
    if _kind(path) is not InputKind.TEXTS and not path.exists():
        raise SettingError(
            f"{path} is a link that leads to no file. Remove it, or name the files to read."
        )
    return path


def _inside(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files in ``folder``, and what is neither a file nor a folder."""

    def refuse(error: OSError) -> None:
        raise SettingError(
            f"The folder {error.filename} cannot be read: {error.strerror}. Make it readable, or "
            f"name the files to read."
        )

    found: list[Path] = []
    special: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        paths = [Path(place, name) for name in names if not name.startswith(_HIDDEN)]
        for path in paths:
            # Opening a pipe would wait for a writer.
            (found if path.is_file() or not path.exists() else special).append(path)
    return sorted(found, key=lambda path: path.parts), sorted(special)


def _common_kind(files: Sequence[Path]) -> InputKind:
    kinds = {kind for path in files if (kind := _kind(path)) is not None}
    if len(kinds) > 1:
        packed = {path: path.suffix.casefold() == ".gz" for path in files}
        counts = Counter("".join(p.suffixes[-2:]) if packed[p] else p.suffix for p in files)
        listed = " and ".join(f"{count} {ending}" for ending, count in sorted(counts.items()))
        raise SettingError(
            f"The input has several types of files: {listed}. Name the files of one type, such as "
            f"FOLDER/*.parquet, and embed the others in another run."
        )
    return kinds.pop()
