"""What was embedded so far: parts of some thousand rows, each there whole or not at all.

A part's name says which rows of the input it covers, and its metadata where reading goes on after
it. Rows that were set aside stand in a file of their own, which is there before its part is: so a
part that is there makes all of its rows count, and one that is not none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from emberd.bulk import arrow, durable, json_values
from emberd.bulk.rows import Cursor
from emberd.errors import EmberdError

_NAME: Final = re.compile(r"part-(\d{12})-(\d{12})\.parquet")
CURSOR_KEY: Final = b"emberd.cursor"


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        path: Its Parquet file: rows with their vectors.
        start: The number of its first row in the input, from 0.
        stop: The number after its last.
    """

    path: Path
    start: int
    stop: int

    @property
    def rejects_path(self) -> Path:
        """Where the rows are that were set aside: an object a line, maybe no file."""
        return self.path.with_suffix(".rejects.jsonl")

    def rejects(self) -> Iterator[dict[str, Any]]:
        """Yield the rows that were set aside, in order."""
        with suppress(FileNotFoundError), self.rejects_path.open("rb") as file:
            yield from map(json.loads, file)

    def table(self) -> Any:
        """Return its rows.

        Raises:
            EmberdError: The file is damaged.
        """
        lib, parquet = arrow.modules()
        try:
            with parquet.ParquetFile(self.path) as file:
                return file.read()
        except (lib.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    def metadata(self) -> Any:
        """Return the metadata of its file; raises as ``table``."""
        lib, parquet = arrow.modules()
        try:
            return parquet.read_metadata(self.path)
        except (lib.ArrowException, OSError) as error:
            raise self._damaged(error) from error

    @property
    def after(self) -> Cursor:
        """Where reading goes on after it; raises as ``table``."""
        return Cursor(**json.loads(self.metadata().metadata[CURSOR_KEY]))

    @property
    def dimensions(self) -> int:
        """The length of its vectors; raises as ``table``."""
        length: int = self.metadata().schema.to_arrow_schema().field(-1).type.list_size
        return length

    def _damaged(self, error: Exception) -> EmberdError:
        return EmberdError(
            f"{self.path} is damaged: {error}. Delete it, and run the same command again: it and "
            f"what comes after it is embedded again."
        )


def found(folder: Path) -> list[Part]:
    """Return the parts in ``folder`` from the first row on; delete what follows a gap."""
    parts: list[Part] = []
    for path in sorted(folder.iterdir()):
        if (match := _NAME.fullmatch(path.name)) is not None:
            part = Part(path, int(match[1]), int(match[2]))
            expected = parts[-1].stop if parts else 0
            if part.start == expected:
                parts.append(part)
            else:
                path.unlink()
    return parts


def commit(
    folder: Path, rows: range, table: Any, rejects: list[dict[str, Any]], after: Cursor
) -> Part:
    """Write a part, and return it when it cannot be lost any more.

    Args:
        folder: Where parts are.
        rows: The numbers of its rows in the input.
        table: The rows with their vectors, in a column that comes last.
        rejects: What to tell of the rows that were set aside.
        after: Where reading goes on.
    """
    name = f"part-{rows.start:012d}-{rows.stop:012d}.parquet"
    part = Part(folder / name, rows.start, rows.stop)
    # One of a part that was never finished would be taken for this one's.
    part.rejects_path.unlink(missing_ok=True)
    if rejects:
        with durable.written(part.rejects_path) as file:
            file.writelines(_line(reject) for reject in rejects)
    cursor = json.dumps(asdict(after)).encode()
    schema = table.schema.with_metadata({**(table.schema.metadata or {}), CURSOR_KEY: cursor})
    with (
        durable.written(part.path) as file,
        arrow.writer(file, schema, schema.names[-1]) as writer,
    ):
        writer.write_table(table.replace_schema_metadata(schema.metadata))
    return part


def _line(reject: dict[str, Any]) -> bytes:
    try:
        return json_values.dumped(reject).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(reject, default=str).encode() + b"\n"
