"""The files of a model: where they are on this machine, and readers for them.

A model is a folder, or a name on the hub. This is the only reader of the hub's cache. The layout
and the variables are those of huggingface_hub, which is not imported: it is installed in the
engines' environments only. Files are opened without blocking, so that a named pipe in a folder is
an error and not a hang. The module needs the standard library only: engines' own interpreters
import it too.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import math
import os
import stat
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from emberd.errors import SettingError

CONFIG: Final = "config.json"
"""Configuration of Transformers; a folder without it is not a checkpoint."""

SAFETENSORS: Final = "*.safetensors"
"""Pattern of the files that hold weights."""

DESCRIBING: Final = ("*.json", "*.txt", "*.model", "*/config.json")
"""Patterns of the files beside the weights: configuration, tokenizer, modules."""

_HASHED: Final = (*DESCRIBING, SAFETENSORS, "*.bin", "*.gguf")
_YES: Final = ("1", "ON", "TRUE", "YES")
_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 4096
_LENGTH_BYTES: Final = 8  # a safetensors file begins with the length of its header, little-endian
_MAX_HEADER_BYTES: Final = 100_000_000
_HEAD: Final = "lm_head."
# What reading a header of any content raises.
_DAMAGED: Final = (
    *(ArithmeticError, AttributeError, LookupError),
    *(RecursionError, TypeError, ValueError),
)


def is_folder(name: str) -> bool:
    """Return whether the model ``name`` is a folder on this machine, not a name on the hub."""
    return os.path.isdir(name)


def is_path(name: str) -> bool:
    """Return whether ``name`` can only mean a folder, whether or not it exists."""
    return name.startswith(("/", "./", "../", "~"))


def absolute(name: str) -> str:
    """Return the real path of a folder, so that it has one name; other names unchanged."""
    path = os.path.expanduser(name)
    return os.path.realpath(path) if is_path(name) or is_folder(path) else name


# ------------------------------------------------------------ the hub's cache


def hub_cache() -> Path:
    """Return the folder of the hub's cache.

    As in ``huggingface_hub.constants``: HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else ``hub``
    in the hub's home. A variable that is empty counts as unset, unlike there.
    """
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _expanded(given) if given else _hub_home(os.environ) / "hub"


def hub_token_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the file in which the hub's client keeps the user's token."""
    given = environ.get("HF_TOKEN_PATH")
    return _expanded(given) if given else _hub_home(environ) / "token"


def hub_modules() -> Path:
    """Return the folder into which Transformers copies code of models before it imports it."""
    given = os.environ.get("HF_MODULES_CACHE")
    return _expanded(given) if given else _hub_home(os.environ) / "modules"


def _hub_home(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(environ.get("HF_HOME") or os.path.join(base, "huggingface"))


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path)))


def hub_is_offline() -> bool:
    """Return whether a variable tells the hub's libraries to download nothing."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in _YES for name in names)


def hub_folder(model: str) -> Path:
    """Return the folder of the cache for all revisions of a model; it need not exist."""
    return hub_cache() / f"models--{model.replace('/', '--')}"


def hub_snapshot(model: str, revision: str | None) -> Path | None:
    """Return the folder with a commit, branch or tag (None: the default) of a model on the hub.

    Files may be missing there: libraries download only what they read.

    Returns:
        None if there is no such folder.
    """
    folder, revision = hub_folder(model), revision or "main"
    try:
        commit = (folder / "refs" / revision).read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = revision  # a commit has no reference file
    found = folder / "snapshots" / commit
    return found if os.path.isdir(found) else None


def hub_lacks(snapshot: Path, name: str) -> bool:
    """Return whether the hub said that a commit has no file of this name.

    huggingface_hub keeps that answer beside the snapshots.
    """
    return (snapshot.parents[1] / ".no_exist" / snapshot.name / name).is_file()


def is_downloaded(model: str) -> bool:
    """Return whether some revision of a model appears to be in the cache, with no download open."""
    folder = hub_folder(model)
    has_config = any(folder.glob(f"snapshots/*/{CONFIG}"))
    return has_config and not any(folder.glob("blobs/*.incomplete"))


# ------------------------------------------------------------ JSON


class ModelFileError(Exception):
    """A file of a model folder cannot be used.

    Attributes:
        cause: The fact, with file and value, without a full stop.
        advice: What to do, in sentences.
    """

    def __init__(
        self, cause: str, advice: str = "Compare the file with the original and copy it again."
    ) -> None:
        super().__init__(f"{cause}. {advice}")
        self.cause = cause
        self.advice = advice


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, without waiting for a named pipe or a device.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return open(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def read_text(path: Path) -> str:
    """Return the text of a regular file in UTF-8; raises as ``open_regular``, and UnicodeError."""
    with open_regular(path) as file:
        return file.read().decode("utf-8")


def load_json(path: Path) -> object | None:
    """Return the content of a JSON file; None if the file does not exist.

    Raises:
        ModelFileError: The file cannot be read, is not JSON, or holds null.
    """
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
        raise ModelFileError(f"{path} cannot be read ({error})") from error
    try:
        found: object = json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"{path} is not JSON ({error})") from error
    except RecursionError as error:
        raise ModelFileError(f"{path} is JSON that is nested too deeply") from error
    if found is None:  # must differ from a missing file
        raise ModelFileError(f"{path} contains null")
    return found


def as_object(path: Path, found: object, key: str = "") -> dict[str, Any]:
    """Return ``found``, which ``load_json`` read, or its part under ``key``, if it is an object.

    Raises:
        ModelFileError: It is not an object, or the file does not exist.
    """
    if isinstance(found, dict):
        return found
    if found is None and not key:
        raise ModelFileError(f"there is no {path}")
    raise ModelFileError(f"{path} does not contain a JSON object{f' under {key}' if key else ''}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty if there is none to read."""
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# ------------------------------------------------------------ safetensors


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The header of one file of weights.

    Attributes:
        elements: Name -> number of elements of each tensor.
        file_bytes: Size that the file must have; a smaller one was cut short.
    """

    elements: Mapping[str, int]
    file_bytes: int


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Return the header of a safetensors file; the tensors themselves are not read.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file does not begin with a valid header.
    """
    with open_regular(path) as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"{path} is not a safetensors file")
        content = file.read(length)
    try:
        header = json.loads(content)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        elements = {name: math.prod(map(int, e["shape"])) for name, e in tensors.items()}
        end = max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except _DAMAGED as error:
        raise ValueError(f"{path} has a damaged safetensors header") from error
    return SafetensorsHeader(elements, _LENGTH_BYTES + length + end)


def count_weights(folder: Path) -> int:
    """Return how many numbers a folder's weights are, without the head of a language model.

    Raises:
        ModelFileError: There are no weights, or a file of them is damaged or incomplete.
    """
    files = sorted(folder.glob(SAFETENSORS))
    if not files:
        raise ModelFileError(f"{folder} has no weights ({SAFETENSORS})")
    numbers = 0
    for path in files:
        try:
            header = read_safetensors_header(path)
            size = path.stat().st_size
        except (OSError, ValueError) as error:
            raise ModelFileError(
                f"the weights in {path} are damaged: they have no readable header"
            ) from error
        if size < header.file_bytes:
            raise ModelFileError(
                f"the weights in {path} are incomplete: {size} of {header.file_bytes} bytes"
            )
        numbers += sum(count for name, count in header.elements.items() if _HEAD not in name)
    return numbers


# ------------------------------------------------------------ content


def content_hash(name: str) -> str | None:
    """Return 16 hexadecimal digits that identify the content of a model's folder.

    The hash changes with any change of the configuration or the tokenizer. Of weights, it covers
    the size and 64 samples of each file, so any training changes it.

    Returns:
        None for a name on the hub, or a folder that does not exist.

    Raises:
        SettingError: The folder cannot be read.
    """
    folder = Path(name)
    if not is_folder(name):
        return None
    with _readable(name):
        stats = [(file, file.stat()) for file in _hashed_files(folder)]
        return _hash(tuple((os.fspath(f), s.st_size, s.st_mtime_ns, s.st_ino) for f, s in stats))


def changed_s(name: str) -> float:
    """Return when a file of a model's folder last changed, in seconds of the wall clock.

    Uses the inode's ctime, because copying tools set the mtime back.

    Raises:
        SettingError: The folder cannot be read.
    """
    with _readable(name):
        return max((file.stat().st_ctime for file in _hashed_files(Path(name))), default=0.0)


@contextmanager
def _readable(name: str) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise SettingError(
            f"The folder model={name!r} cannot be read: {error}. Correct its permissions."
        ) from error


def _hashed_files(folder: Path) -> Iterator[Path]:
    for pattern in _HASHED:
        yield from sorted(folder.glob(pattern))


@functools.lru_cache(maxsize=32)
def _hash(files: tuple[tuple[str, int, int, int], ...]) -> str:
    # Unchanged files are read once a process: any change shows in the arguments.
    whole = hashlib.sha256()
    root = Path(files[0][0]).parent if files else Path()
    for name, size, _, _ in files:
        path = Path(name)
        # Relative to the folder: the same files elsewhere are the same model.
        whole.update(f"{os.path.relpath(path, root)} {size}\n".encode())
        with open_regular(path) as file:
            if path.match("*.json") or size <= _SAMPLES * _SAMPLE_BYTES:
                whole.update(file.read())
                continue
            for number in range(_SAMPLES):
                file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                whole.update(file.read(_SAMPLE_BYTES))
    return whole.hexdigest()[:16]
