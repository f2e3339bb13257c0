"""``emberd embed`` of texts: lines of files or of stdin, streamed to a file or to stdout.

Vectors are written as they arrive, a window of texts at a time, so the size of the input does not
matter. The formats are written by the writers of bulk jobs.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, TextIO

from emberd.bulk.formats import (
    NpyWriter,
    json_lines,
    parquet_writer,
    require_pyarrow,
    vector_array,
    with_identity,
)
from emberd.cli import output, up
from emberd.errors import EmberdError, SettingError, TextError
from emberd.system import atomic_file, os_errors

if TYPE_CHECKING:
    from emberd.client.vectors import Floats
    from emberd.embedder import Embedder

STDIN: Final = "-"
# A byte order mark, which some editors write, is not part of the first text.
_ENCODING: Final = "utf-8-sig"
# Invalid bytes are decoded as lone surrogates, which valid UTF-8 never contains: an error of the
# decoder would come a block before the line with the byte.
_ERRORS: Final = "surrogateescape"
_INVALID: Final = re.compile("[\udc80-\udcff]")
_INVALID_FROM: Final = 0xDC00

_OTHER_OUTPUT: Final = "Or pass another --output."

_TEXT: Final = "text"
_EMBEDDING: Final = "embedding"

# A window takes about two seconds, within these bounds: short enough for a progress display on a
# laptop, long enough that a GPU does not wait at the end of each window.
_WINDOW_S: Final = 2.0
_MIN_WINDOW_TEXTS: Final = 256
_MAX_WINDOW_TEXTS: Final = 4096


class FileFormat(StrEnum):
    """Format of a file of vectors."""

    JSONL = "jsonl"
    NPY = "npy"
    PARQUET = "parquet"


class TextLine(NamedTuple):
    """A text and where it is from.

    Attributes:
        text: Without the end of the line; may be blank.
        source: Name of the file, ``"stdin"`` or ``"--text"``.
        number: Number of the line there, from 1.
    """

    text: str
    source: str
    number: int


def choose_format(name: FileFormat | None, target: Path | None) -> FileFormat:
    """Return the format that was named, or that of the ending of ``target``, or JSON lines.

    Raises:
        SettingError: No format has this ending, or PyArrow is needed and not installed.
    """
    if name is None:
        ending = target.suffix.casefold() if target else ""
        endings = {"": FileFormat.JSONL} | {f".{known}": known for known in FileFormat}
        if ending not in endings:
            raise SettingError(
                f"--output ends with {ending}, which is not a format. Endings are "
                f"{', '.join(filter(None, endings))}; for others, pass --format."
            )
        name = endings[ending]
    if name is FileFormat.PARQUET:
        require_pyarrow()
    return name


def check_folder(target: Path | None) -> None:
    """Check that the folder of ``target`` exists, before a server is started.

    Raises:
        SettingError: It does not.
    """
    if target is not None and not target.parent.exists():
        folder = str(target.parent)
        raise SettingError(
            f"{target} cannot be written: the folder {folder} does not exist. "
            f"Create it: mkdir -p {shlex.quote(folder)}"
        )


def embed_texts(
    files: Sequence[str],
    texts: Sequence[str],
    target: Path | None,
    format_name: FileFormat | None,
    embedder: Embedder,
    *,
    role: str,
) -> None:
    """Embed ``texts`` and the lines of ``files``, or of stdin if both are empty.

    Args:
        files: Text files; ``-`` is stdin.
        texts: Texts of the command line.
        target: Output; None for stdout.
        format_name: The format, if it was named.
        embedder: What embeds.
        role: ``"document"`` or ``"query"``.

    Raises:
        SettingError: An argument cannot be used.
        EmberdError: A text cannot be embedded, or the output cannot be written.
    """
    chosen = choose_format(format_name, target)
    check_folder(target)
    is_binary = chosen is not FileFormat.JSONL
    if target is None and is_binary and sys.stdout.isatty():
        raise SettingError(f"--format {chosen} is not for a terminal. Pass --output FILE.")
    lines = _lines(_check_sources(files, texts), texts)
    with (
        _open_output(target, seeks=chosen is FileFormat.NPY) as file,
        _progress(quiet=target is None and sys.stdout.isatty()) as advance,
    ):
        identity = embedder.identity  # a model without prompts is refused before a start
        native = up.ensure(embedder.settings).endpoint.dimensions
        # EMBERD_DIMENSIONS may have set those of the embedder.
        dimensions = embedder.settings.dimensions or native
        embed = embedder.embed_queries if role == "query" else embedder.embed_documents
        with _writer(chosen, file, dimensions, identity) as write:
            size = _MIN_WINDOW_TEXTS
            while window := list(islice(lines, size)):
                begin_s = time.monotonic()
                with _line_named(window):
                    vectors = embed([line.text for line in window])
                size = _next_size(len(window), time.monotonic() - begin_s)
                write([line.text for line in window], vectors)
                advance(len(window))


def _next_size(texts: int, seconds: float) -> int:
    wanted = int(texts * _WINDOW_S / seconds) if seconds else _MAX_WINDOW_TEXTS
    return min(_MAX_WINDOW_TEXTS, max(_MIN_WINDOW_TEXTS, wanted))


# ---------------------------------------------------------------- reading


def _check_sources(files: Sequence[str], texts: Sequence[str]) -> Sequence[str]:
    if not files and not texts:
        if sys.stdin is not None and sys.stdin.isatty():
            raise SettingError("There is no input. Pass files, --text TEXT, or lines on stdin.")
        files = [STDIN]
    for name in files:
        if name == STDIN:
            if sys.stdin is None:
                raise SettingError("stdin is closed. Pass files, or --text TEXT.")
            continue
        if not Path(name).exists():
            raise SettingError(
                f"The file {name} does not exist. To embed a text of the command line, use --text: "
                f"emberd embed --text {name!r}"
            )
        _check_source(name)
    return files


def _check_source(name: str) -> None:
    with os_errors.reading(name, SettingError):
        kind = os.stat(name).st_mode
        # A pipe is opened only once: its writer would end when it is closed.
        if stat.S_ISFIFO(kind):
            if stat.S_ISFIFO(os.lstat(name).st_mode):
                output.note(f"{name} is a named pipe: waiting until a program writes to it")
            return
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        # Other devices have no end, such as /dev/zero.
        is_text = stat.S_ISREG(kind) or os.isatty(descriptor) or os.path.samefile(name, os.devnull)
    finally:
        os.close(descriptor)
    if not is_text:
        raise SettingError(f"{name} is a device. Pass a file, or - for stdin.")


def _lines(files: Iterable[str], texts: Iterable[str]) -> Iterator[TextLine]:
    for number, text in enumerate(texts, start=1):
        yield TextLine(text, "--text", number)
    for name in files:
        if name == STDIN:
            # Not closed at the end: it belongs to the process.
            stdin = io.TextIOWrapper(sys.stdin.buffer, encoding=_ENCODING, errors=_ERRORS)
            with os_errors.reading("stdin"):
                yield from _lines_of(stdin, "stdin", "")
            stdin.detach()
        else:
            with (
                os_errors.reading(name),
                Path(name).open(encoding=_ENCODING, errors=_ERRORS) as file,
            ):
                yield from _lines_of(file, name, f" {shlex.quote(name)}")


def _lines_of(file: TextIO, source: str, argument: str) -> Iterator[TextLine]:
    for number, line in enumerate(file, start=1):
        if (invalid := _INVALID.search(line)) is not None:
            byte = ord(invalid[0]) - _INVALID_FROM
            raise EmberdError(
                f"{source} is not UTF-8 in line {number} (byte {byte:#04x}). "
                f"Convert it: iconv -f ENCODING -t UTF-8{argument}"
            )
        yield TextLine(line.removesuffix("\n"), source, number)


@contextmanager
def _line_named(window: Sequence[TextLine]) -> Iterator[None]:
    try:
        yield
    except TextError as error:
        # The index counts in the window, which the user does not know.
        line = window[error.index]
        error.add_note(f"Text {error.index} is line {line.number} of {line.source}.")
        raise


# ---------------------------------------------------------------- writing


@contextmanager
def _writer(
    chosen: FileFormat, file: BinaryIO, dimensions: int, identity: str
) -> Iterator[Callable[[Sequence[str], Floats], None]]:
    """Yield what writes texts and their vectors, ``(n, dimensions)`` float32."""
    if chosen is FileFormat.NPY:
        npy = NpyWriter(file, "<f4", (dimensions,))
        yield lambda texts, vectors: npy.write(vectors)  # noqa: ARG005 - an array has no texts
        npy.close()
    elif chosen is FileFormat.PARQUET:
        import pyarrow

        def table(texts: Sequence[str], vectors: Any) -> Any:
            columns = [pyarrow.array(texts, pyarrow.string()), vector_array(vectors, dimensions)]
            return with_identity(pyarrow.table(columns, names=[_TEXT, _EMBEDDING]), identity)

        with parquet_writer(file, table([], []).schema) as writer:
            yield lambda texts, vectors: writer.write_table(table(texts, vectors))
    else:

        def write(texts: Sequence[str], vectors: Floats) -> None:
            file.writelines(json_lines(({_TEXT: text} for text in texts), _EMBEDDING, vectors))
            file.flush()

        yield write


@contextmanager
def _open_output(target: Path | None, *, seeks: bool) -> Iterator[BinaryIO]:
    """Yield the file to write to: a regular file appears when it is complete.

    Args:
        target: The file; None for stdout.
        seeks: Whether the writer goes back to the beginning, which streams cannot.

    Raises:
        EmberdError: It, or the temporary file of a stream, cannot be written.
    """
    if target is not None and (target.is_file() or not target.exists()):
        with (
            os_errors.raised_as(EmberdError, _OTHER_OUTPUT),
            atomic_file.replacing(target, unnamed=True) as file,
        ):
            yield file
    elif seeks:
        with (
            os_errors.raised_as(EmberdError, "Or set TMPDIR to a folder on another disk."),
            os_errors.named(tempfile.gettempdir()),
            tempfile.TemporaryFile() as file,
        ):
            yield file
            file.seek(0)
            with _open_stream(target) as stream:
                shutil.copyfileobj(file, stream)
    else:
        with _open_stream(target) as stream:
            yield stream


@contextmanager
def _open_stream(target: Path | None) -> Iterator[BinaryIO]:
    with os_errors.raised_as(EmberdError, _OTHER_OUTPUT), os_errors.named(target or "stdout"):
        # A device or a pipe that is named as output is written to, and never replaced.
        if target is not None:
            with target.open("wb") as file:
                yield file
        else:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()


# ---------------------------------------------------------------- progress


def _progress(*, quiet: bool) -> AbstractContextManager[Callable[[int], None]]:
    return _summary() if quiet or not sys.stderr.isatty() else _bar()


@contextmanager
def _bar() -> Iterator[Callable[[int], None]]:
    from emberd.cli import progress_bars

    with progress_bars.text_progress(output.console(stderr=True)) as progress:
        task = progress.add_task("embedding", total=None)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _summary() -> Iterator[Callable[[int], None]]:
    counts: list[int] = []
    begin_s = time.monotonic()
    yield counts.append
    seconds = time.monotonic() - begin_s
    speed = f"{output.rate(sum(counts) / seconds)} texts/s"
    output.note(f"{output.pluralize(sum(counts), 'text')} in {seconds:.1f} s ({speed})")
