"""The files that vectors are written to, a window at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol

from emberd.errors import SettingError

if TYPE_CHECKING:
    from emberd.client.vectors import Floats

_NPY_MAGIC: Final = b"\x93NUMPY\x01\x00"
_NPY_HEADER_BYTES: Final = 128


class Format(StrEnum):
    """How vectors are written."""

    JSONL = "jsonl"
    NPY = "npy"
    PARQUET = "parquet"

    @property
    def is_text(self) -> bool:
        """Whether it can be shown on a terminal and written to a pipe as it comes."""
        return self is Format.JSONL


class Writer(Protocol):
    """Writes one file."""

    def __enter__(self) -> Writer:
        """Return itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the file, whatever happened: one that failed is thrown away as a whole."""

    def write(self, texts: Sequence[str], vectors: Floats) -> None:
        """Append texts and their vectors, ``(len(texts), d)`` float32."""


def of(name: Format | None, output: Path | None) -> Format:
    """Return the format that was named, else the one of the file's ending, else JSON lines.

    Raises:
        SettingError: The ending is of no format, or the format needs a package that is not there.
    """
    chosen = name or _of_ending(output.suffix if output else "")
    if chosen is Format.PARQUET:
        _parquet()
    return chosen


def _of_ending(ending: str) -> Format:
    endings = {"": Format.JSONL} | {f".{known}": known for known in Format}
    chosen = endings.get(ending.casefold())
    if chosen is None:
        known = ", ".join(filter(None, endings))
        raise SettingError(
            f"--output ends with {ending}, which is no format. Endings are {known}; with another, "
            f"give --format."
        )
    return chosen


def writer(chosen: Format, file: BinaryIO, dimensions: int) -> Writer:
    """Return a writer of vectors with ``dimensions`` numbers into ``file``."""
    if chosen is Format.NPY:
        return _Npy(file, dimensions)
    return _Parquet(file) if chosen is Format.PARQUET else _Jsonl(file)


class _Plain:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *raised: object) -> None:
        """Nothing is left to be done."""


class _Jsonl(_Plain):
    """One object a line: text and embedding."""

    def write(self, texts: Sequence[str], vectors: Floats) -> None:
        for text, vector in zip(texts, vectors.tolist(), strict=True):
            line = json.dumps({"text": text, "embedding": vector}, ensure_ascii=False)
            self._file.write(f"{line}\n".encode())
        self._file.flush()


class _Npy(_Plain):
    """One array; its header holds the number of rows, so it is written again at the end."""

    def __init__(self, file: BinaryIO, dimensions: int) -> None:
        super().__init__(file)
        self._dimensions = dimensions
        self._rows = 0
        self._write_header()

    def write(self, texts: Sequence[str], vectors: Floats) -> None:
        self._file.write(vectors.astype("<f4", copy=False).tobytes())
        self._rows += len(texts)

    def __exit__(self, *raised: object) -> None:
        self._file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        shape = (self._rows, self._dimensions)
        text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
        room = _NPY_HEADER_BYTES - len(_NPY_MAGIC) - struct.calcsize("<H")
        self._file.write(_NPY_MAGIC + struct.pack("<H", room) + text.ljust(room - 1) + b"\n")


class _Parquet(_Plain):
    """Columns ``text`` and ``embedding``, a row group a window."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._arrow, parquet = _parquet()
        numbers = self._arrow.list_(self._arrow.float32())
        self._schema = self._arrow.schema([("text", self._arrow.string()), ("embedding", numbers)])
        self._writer = parquet.ParquetWriter(file, self._schema)

    def write(self, texts: Sequence[str], vectors: Floats) -> None:
        arrow = self._arrow
        dimensions = vectors.shape[1]
        ends = arrow.array(range(0, vectors.size + 1, dimensions), type=arrow.int32())
        embeddings = arrow.ListArray.from_arrays(ends, arrow.array(vectors.reshape(-1)))
        texts_column = arrow.array(texts, type=arrow.string())
        self._writer.write_table(
            arrow.Table.from_arrays([texts_column, embeddings], schema=self._schema)
        )

    def __exit__(self, *raised: object) -> None:
        self._writer.close()


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SettingError(
            f"--format parquet needs pyarrow ({error}). Run: pip install 'emberd[parquet]'"
        ) from None
    return pyarrow, parquet
