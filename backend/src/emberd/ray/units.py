"""Files cut into pieces of work that are the same at each run: what was done needs no second time.

A piece of Parquet is a run of row groups, one of JSON lines a stretch of bytes, one of texts a
number of files. What a piece is depends on the files alone, never on the cluster.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emberd.bulk.inputs import Inputs, Kind

# A piece is what is done again when a worker dies, so some seconds of a GPU; and each is a file.
_ROWS: Final = 20_000
_BYTES: Final = 16 << 20
_FILES: Final = 1000

_SCHEMA: Final = 1  # one more whenever pieces are cut or named in another way

_PACKED: Final = ".gz"
_END: Final = sys.maxsize  # of what is packed, the size is not known


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work.

    Attributes:
        name: Of the part that it becomes, without an ending.
        kind: Of its files.
        paths: The files that it is of; one, but for texts.
        first: Its first row group, or byte.
        end: The row group, or byte, after its last.
        rows_before: How many rows of its file come before it; for Parquet alone.
    """

    name: str
    kind: str
    paths: tuple[str, ...]
    first: int = 0
    end: int = 0
    rows_before: int = 0


def is_packed(path: Path) -> bool:
    """Return whether a file is to be unpacked when it is read."""
    return path.suffix.casefold() == _PACKED


def rule() -> dict[str, Any]:
    """Return by what pieces are cut: under another rule the same name is of other rows."""
    return {"schema": _SCHEMA, "rows": _ROWS, "bytes": _BYTES, "files": _FILES}


def cut(inputs: Inputs) -> list[Unit]:
    """Return the pieces of all files, in their order."""
    if inputs.kind is Kind.TEXTS:
        return list(_texts(inputs.files))
    of_file = _parquet if inputs.kind is Kind.PARQUET else _json_lines
    return [unit for number, path in enumerate(inputs.files) for unit in of_file(number, path)]


def _parquet(number: int, path: Path) -> Iterator[Unit]:
    from pyarrow import parquet

    facts = parquet.read_metadata(path)
    first = before = rows = 0
    for group in range(facts.num_row_groups):
        rows += facts.row_group(group).num_rows
        if rows - before >= _ROWS or group == facts.num_row_groups - 1:
            name = _name(number, first)
            yield Unit(name, Kind.PARQUET, (str(path),), first, group + 1, before)
            first, before = group + 1, rows


def _json_lines(number: int, path: Path) -> Iterator[Unit]:
    if is_packed(path):
        yield Unit(_name(number, 0), Kind.JSONL, (str(path),), 0, _END)
        return
    size = path.stat().st_size
    for first in range(0, size, _BYTES):
        end = min(first + _BYTES, size)
        yield Unit(_name(number, first // _BYTES), Kind.JSONL, (str(path),), first, end)


def _texts(paths: Sequence[Path]) -> Iterator[Unit]:
    for first in range(0, len(paths), _FILES):
        some = tuple(map(str, paths[first : first + _FILES]))
        yield Unit(_name(first // _FILES, 0), Kind.TEXTS, some)


def _name(number: int, place: int) -> str:
    return f"part-{number:05}-{place:05}"
