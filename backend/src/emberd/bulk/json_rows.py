"""Rows of JSON lines: each line an object, kept as the bytes that it is."""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from emberd.bulk import arrow
from emberd.bulk.rows import CHUNK_BYTES, CHUNK_ROWS, Chunk, Cursor, Flaw
from emberd.errors import EmberdError, SettingError

LINE: Final = "line"
"""The column of the kept tables: the line as it stood, without its end."""

_MARK: Final = b"\xef\xbb\xbf"  # what some editors write at the beginning of a file
_SHOWN: Final = 80


class JsonRows:
    """Reads files of JSON lines; those that end with .gz through gzip.

    Args:
        files: In the order of their rows.
        column: The field that holds the texts.
        added: The field that will be added; None when the rows are not kept.

    Raises:
        SettingError: The first objects have no such field, or all have the one to be added.
    """

    unit = "bytes"

    def __init__(self, files: Sequence[Path], column: str, added: str | None) -> None:
        self._files = files
        self._column = column
        self._added = added
        self._sizes = [path.stat().st_size for path in files]
        self.total: int = sum(self._sizes)
        self._check_first()

    def empty(self) -> Any:
        """Return a table like those of the chunks, without a row."""
        return _table([])

    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """Yield the rows after ``start``; lines with nothing but white space are no rows.

        Raises:
            EmberdError: A file cannot be read, and is named.
        """
        for index in range(start.file, len(self._files)):
            cursor = start if index == start.file else Cursor(index)
            yield from self._of_file(self._files[index], index, cursor)

    def _of_file(self, path: Path, index: int, cursor: Cursor) -> Iterator[Chunk]:
        before = sum(self._sizes[:index])
        row = cursor.row
        with _opened(path) as (file, raw):
            for numbers, lines in _groups(file, cursor):
                row += len(lines)
                # Of a packed file the place in the packed bytes counts: only its size is known.
                units = before + min(
                    raw.tell() if raw is not file else file.tell(), self._sizes[index]
                )
                after = Cursor(index, row, numbers[-1], file.tell(), units)
                yield self._chunk(path, numbers, lines, after)

    def _chunk(self, path: Path, numbers: list[int], lines: list[bytes], after: Cursor) -> Chunk:
        texts = [self._text(line) for line in lines]
        return Chunk(
            texts,
            _table(lines),
            lambda index: {"file": str(path), "line": numbers[index]},
            after,
        )

    def _text(self, line: bytes) -> str | Flaw:
        row = parsed(line)
        if isinstance(row, Flaw):
            return row
        if self._column not in row:
            return Flaw(f"The object has no field {self._column!r}.")
        if self._added in row:
            return Flaw(
                f"The object has a field {self._added!r} already. "
                f"Name the new one: --embedding-column NAME"
            )
        text = row[self._column]
        if text is None:
            return Flaw("The text is null.")
        if not isinstance(text, str):
            return Flaw(f"The text is of type {type(text).__name__}, not a string.")
        return text

    def _check_first(self) -> None:
        """Refuse a name that no object of the first has: no run should find it out at its end."""
        first = next(self.chunks(Cursor()), None)
        rows = [] if first is None else [parsed(line) for line in first.kept[LINE].to_pylist()]
        objects = [row for row in rows if not isinstance(row, Flaw)]
        names = list(dict.fromkeys(name for row in objects for name in row))
        if objects and all(self._added in row for row in objects):
            raise SettingError(
                f"The objects of {self._files[0]} have a field {self._added!r} already. Name the "
                f"new one: --embedding-column NAME"
            )
        if not objects or self._column in names:
            return
        near = difflib.get_close_matches(self._column, names, n=1)
        wanted = f"Did you mean --column {near[0]!r}?" if near else "Name one: --column NAME"
        raise SettingError(
            f"{self._files[0]} has no field {self._column!r} in its first objects. Their fields "
            f"are: {', '.join(names) or 'none'}. {wanted}"
        )


def parsed(line: bytes) -> dict[str, Any] | Flaw:
    """Return the object that ``line`` holds, or why it holds none that can be written again."""
    try:
        row = json.loads(line.decode())
        if b"\\u" in line:
            # Half a surrogate pair can stand in JSON, and in no UTF-8.
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return Flaw(f"The line is not UTF-8 at byte {error.start} ({line[error.start]:#04x}).")
    except UnicodeEncodeError as error:
        return Flaw(f"The line holds the lone surrogate {error.object[error.start]!r}.")
    except (ValueError, RecursionError) as error:
        return Flaw(f"The line is no JSON: {error}.")
    if not isinstance(row, dict):
        return Flaw(f"The line is no JSON object but {str(row)[:_SHOWN]!r}.")
    return row


def _table(lines: list[bytes]) -> Any:
    lib, _ = arrow.modules()
    return lib.table({LINE: lib.array(lines, lib.large_binary())})


def _groups(file: BinaryIO, cursor: Cursor) -> Iterator[tuple[list[int], list[bytes]]]:
    """Yield the numbers and bytes of the next lines that are not blank, a chunk at a time."""
    file.seek(cursor.offset)
    numbers: list[int] = []
    lines: list[bytes] = []
    size = 0
    for number, line in enumerate(iter(file.readline, b""), start=cursor.line + 1):
        bare = (line.removeprefix(_MARK) if number == 1 else line).strip()
        if not bare:
            continue
        numbers.append(number)
        lines.append(bare)
        size += len(bare)
        if len(lines) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield numbers, lines
            numbers, lines, size = [], [], 0
    if lines:
        yield numbers, lines


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Yield the file of lines, and the one whose bytes are counted."""
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        if path.suffix.casefold() != ".gz":
            yield raw, raw
            return
        packed: Any = stack.enter_context(gzip.GzipFile(fileobj=raw))
        try:
            yield packed, raw
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise EmberdError(
                f"{path} cannot be unpacked: {error}. Fetch or pack it again."
            ) from error
