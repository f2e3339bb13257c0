"""Rows of a folder of texts: each file is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emberd.bulk import arrow
from emberd.bulk.rows import CHUNK_BYTES, CHUNK_ROWS, Chunk, Cursor, Flaw
from emberd.errors import SettingError

_COLUMNS = ("path", "text")


class TextRows:
    """Reads files whole; keeps the columns ``path``, as the command line leads there, and ``text``.

    Args:
        files: In the order of the rows.
        added: The column that will be added.

    Raises:
        SettingError: ``added`` is one of those columns.
    """

    unit = "files"

    def __init__(self, files: Sequence[Path], added: str) -> None:
        if added in _COLUMNS:
            raise SettingError(
                f"--embedding-column {added!r} is taken: rows of texts have the columns "
                f"{' and '.join(_COLUMNS)}. Give another name."
            )
        self._files = files
        self.total = len(files)

    def empty(self) -> Any:
        """Return a table like those of the chunks, without a row."""
        return _table([], [])

    def chunks(self, start: Cursor) -> Iterator[Chunk]:
        """Yield the files after ``start``."""
        paths: list[Path] = []
        texts: list[str | Flaw] = []
        size = 0
        for done, path in enumerate(self._files[start.file :], start=start.file + 1):
            text = _text(path)
            paths.append(path)
            texts.append(text)
            size += len(text) if isinstance(text, str) else 0
            if len(paths) == CHUNK_ROWS or size >= CHUNK_BYTES or done == self.total:
                yield _chunk(paths, texts, Cursor(done, units=done))
                paths, texts, size = [], [], 0


def _chunk(paths: list[Path], texts: list[str | Flaw], after: Cursor) -> Chunk:
    return Chunk(texts, _table(paths, texts), lambda index: {"file": str(paths[index])}, after)


def _table(paths: list[Path], texts: list[str | Flaw]) -> Any:
    lib, _ = arrow.modules()
    shown = [path.as_posix().encode(errors="replace").decode() for path in paths]
    kept = ["" if isinstance(text, Flaw) else text for text in texts]
    columns = [lib.array(shown, lib.string()), lib.array(kept, lib.large_string())]
    return lib.table(dict(zip(_COLUMNS, columns, strict=True)))


def _text(path: Path) -> str | Flaw:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Flaw(f"The file is not UTF-8 at byte {error.start}.")
    except OSError as error:
        return Flaw(f"The file cannot be read: {error.strerror}.")
