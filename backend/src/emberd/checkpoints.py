"""What a model says of itself, where it is a folder on this machine.

A folder is described by the files in it, as sentence-transformers and Transformers write them.
What the files do not say comes from the catalog, if the folder is named like one of its models.
Nothing here needs either library: the files are JSON, and only samples of the weights are read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from emberd import catalog, pipeline
from emberd.catalog import Model
from emberd.errors import SettingError
from emberd.pipeline import Prompts

CONFIG: Final = "config.json"

_TOKENIZER: Final = "tokenizer.json"
_DESCRIBING: Final = (CONFIG, pipeline.PROMPTS_FILE, _TOKENIZER)
_TEXTS: Final = ("*.json", "*.txt", "*.model", "*/config.json")
_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.gguf")
_MAIN: Final = "main"
_SAMPLES: Final = 64
_SAMPLE_BYTES: Final = 4096
_HASH_DIGITS: Final = 16
_PATHS: Final = ("/", "./", "../", "~")


def describe(name: str) -> Model:
    """Return what is known of a model: from its folder's files, else from the catalog.

    The files win: a folder named like a model of the catalog may hold a fine-tuned one. The
    catalog fills in what the files do not say.
    """
    if not is_folder(name):
        return catalog.lookup(name)
    return _described(name, *(_changed_ns(Path(name) / file) for file in _DESCRIBING))


@functools.lru_cache(maxsize=32)
def _described(name: str, *_changed: int) -> Model:
    # Asked for at each query, and read again only when one of the files has changed.
    config = read_json(Path(name) / CONFIG)
    told: dict[str, Any] = {
        "dimensions": _whole(config.get("hidden_size")),
        "context_tokens": _whole(config.get("max_position_embeddings")),
        "end_of_text_id": end_of_text_id(name),
        "matryoshka": _matryoshka(config),
        "cut_to": pipeline.truncate_dim(Path(name)),
    }
    facts = {field: value for field, value in told.items() if value is not None}
    known = replace(catalog.lookup(name), name=name, **facts)
    prompts = pipeline.prompts_of(Path(name))
    return known if prompts is None else replace(known, **_templates(prompts))


def is_folder(name: str) -> bool:
    """Return whether ``name`` is a folder on this machine and not a name on the hub."""
    return os.path.isdir(name)


def is_path(name: str) -> bool:
    """Return whether ``name`` can only be meant as a folder, whether it is there or not."""
    return name.startswith(_PATHS)


def absolute(name: str) -> str:
    """Return a folder's real path, so that it has one name from everywhere; others as they are."""
    path = os.path.expanduser(name)
    return os.path.realpath(path) if is_path(name) or is_folder(path) else name


def snapshot(name: str, revision: str | None) -> Path | None:
    """Return the folder in the hub's cache that holds a revision of a model; None for none.

    Files may be missing there: libraries download only what they read.
    """
    kept = hub_cache() / f"models--{name.replace('/', '--')}"
    try:
        commit = (kept / "refs" / (revision or _MAIN)).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision or _MAIN  # a commit has no reference of its own
    folder = kept / "snapshots" / commit
    return folder if os.path.isdir(folder) else None


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the hub's cache, as huggingface_hub finds it."""
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    if not named:
        base = os.path.join(environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
        named = os.path.join(environ.get("HF_HOME") or base, "hub")
    return Path(os.path.expanduser(os.path.expandvars(named)))


def content(name: str) -> str | None:
    """Return 16 hexadecimal digits that stand for the files in a model's folder.

    They change when the configuration or the tokenizer changes at all, or the weights do in size
    or in one of 64 samples a file, which any training does.

    Returns:
        None for a name on the hub, or a folder that is not there.

    Raises:
        SettingError: The folder cannot be read.
    """
    folder = Path(name)
    if not is_folder(name):
        return None
    try:
        files = list(_files(folder))
        stats = [(file, file.stat()) for file in files]
        return _hash(tuple((os.fspath(f), s.st_size, s.st_mtime_ns, s.st_ino) for f, s in stats))
    except OSError as error:
        raise SettingError(
            f"model={name!r} is a folder that cannot be read: {error}. Correct its permissions."
        ) from error


def changed_s(name: str) -> float:
    """Return when a file of a model's folder last changed, in seconds of the wall clock.

    By the time that the kernel keeps of each inode: copying tools set the other one back.

    Raises:
        SettingError: The folder cannot be read.
    """
    try:
        return max((file.stat().st_ctime for file in _files(Path(name))), default=0.0)
    except OSError as error:
        raise SettingError(
            f"model={name!r} is a folder that cannot be read: {error}. Correct its permissions."
        ) from error


def architecture(name: str) -> str | None:
    """Return the class that a folder's configuration names, such as ``Qwen3ForCausalLM``."""
    listed = read_json(Path(name) / CONFIG).get("architectures")
    return str(listed[0]) if isinstance(listed, list) and listed else None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty when there is none to be read."""
    try:
        found = json.loads(pipeline.text_of(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return _object(found)


def _changed_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _matryoshka(config: dict[str, Any]) -> bool | None:
    keys = ("is_matryoshka", "matryoshka_dimensions")
    said = [config[key] for key in keys if config.get(key) is not None]
    return any(said) if said else None


def _templates(prompts: Prompts) -> dict[str, Any]:
    told = {
        "query_task": None,
        "query_template": f"{prompts.query or ''}{{text}}",
        "document_template": f"{prompts.document or ''}{{text}}",
        "query_problem": prompts.problem.get("query"),
        "document_problem": prompts.problem.get("document"),
    }
    if prompts.query == "":
        return told  # how the model takes a task, if the catalog knows it, still holds
    task = catalog.task_of(prompts.query or "")
    if task is None:
        return told | {"instruction_form": None}
    # A fine-tuned Qwen3-Embedding: tasks of the user's are put as its own is.
    own = {"query_template": "{text}", "query_task": task, "instruction_form": catalog.QWEN_FORM}
    return told | own


def end_of_text_id(name: str) -> int | None:
    """Return the token that a folder's tokenizer puts behind each text; None when it puts none.

    The format is that of the tokenizers library: a template, alone or in a sequence.
    """
    processor = _post_processor(Path(name) / _TOKENIZER)
    for part in map(_object, _list(processor.get("processors")) or [processor]):
        last = _object((_list(part.get("single")) or [None])[-1])
        token = _object(last.get("SpecialToken")).get("id")
        special = _object(part.get("special_tokens"))
        ids = _list(_object(special.get(token)).get("ids")) if isinstance(token, str) else []
        if len(ids) == 1:
            return _whole(ids[0])
    return None


def _object(found: object) -> dict[str, Any]:
    return found if isinstance(found, dict) else {}


def _list(found: object) -> list[Any]:
    return found if isinstance(found, list) else []


def _post_processor(tokenizer: Path) -> dict[str, Any]:
    # Not parsed whole: Qwen's has eleven megabytes of vocabulary, and this stands before it.
    key = '"post_processor":'
    try:
        text = pipeline.text_of(tokenizer)
        found, _ = json.JSONDecoder().raw_decode(text[text.index(key) + len(key) :].lstrip())
    except (OSError, ValueError, RecursionError):
        return {}
    return _object(found)


def _files(folder: Path) -> Iterator[Path]:
    for pattern in _TEXTS + _WEIGHTS:
        yield from sorted(folder.glob(pattern))


@functools.lru_cache(maxsize=32)
def _hash(files: tuple[tuple[str, int, int, int], ...]) -> str:
    # What does not change is read once a process: the arguments are all that a change would show.
    whole = hashlib.sha256()
    root = Path(files[0][0]).parent if files else Path()
    for name, size, _, _ in files:
        path = Path(name)
        # By its place in the folder: the same files elsewhere are the same model.
        whole.update(f"{os.path.relpath(path, root)} {size}\n".encode())
        for sample in _read(path, size):
            whole.update(sample)
    return whole.hexdigest()[:_HASH_DIGITS]


def _read(path: Path, size: int) -> Iterator[bytes]:
    with pipeline.open_regular(path) as file:
        if path.match("*.json") or size <= _SAMPLES * _SAMPLE_BYTES:
            yield file.read()
            return
        for place in range(_SAMPLES):
            file.seek(place * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
            yield file.read(_SAMPLE_BYTES)
