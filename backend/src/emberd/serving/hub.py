"""The folder of a model: one on this machine, or the files of a model on the Hugging Face hub."""

from __future__ import annotations

import errno
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from emberd import hub_cache, model_files
from emberd.errors import StartError
from emberd.serving.encoder import Checkpoint
from emberd.serving.watching import telling

_FILES: Final = ("*.json", "*.safetensors", "*.txt")
_CHATTY: Final = ("filelock", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub")
_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
_ELSEWHERE: Final = "download it elsewhere with `hf download {model}` and give the folder as model="


def folder_of(checkpoint: Checkpoint) -> Path:
    """Return the folder that holds the files of a model; those of the hub are downloaded.

    ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_TOKEN`` are the hub's own and hold.

    Raises:
        StartError: There is no such folder or model, or the hub did not give it out.
    """
    path = Path(os.path.expanduser(checkpoint.model))
    if path.is_dir():
        return path
    if model_files.is_path(checkpoint.model):
        raise StartError(
            f"there is no folder {checkpoint.model}",
            advice="Correct the path (model= or EMBERD_MODEL): the folder that holds config.json.",
        )
    return _downloaded(checkpoint)


def _downloaded(checkpoint: Checkpoint) -> Path:
    hub: Any = importlib.import_module("huggingface_hub")
    importlib.import_module("huggingface_hub.errors")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    hub.utils.disable_progress_bars()
    kept = hub_cache.model_folder(checkpoint.model)
    try:
        with telling("downloading", lambda: _bytes_in(kept / "blobs"), None):
            return Path(
                hub.snapshot_download(
                    checkpoint.model, revision=checkpoint.revision, allow_patterns=list(_FILES)
                )
            )
    except Exception as error:
        raise _explained(hub, checkpoint, error) from error


def _bytes_in(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.is_file())
    except OSError:
        return 0


def _explained(hub: Any, checkpoint: Checkpoint, error: Exception) -> StartError:
    model = checkpoint.model
    for kinds, explain in _CAUSES.items():
        if isinstance(error, tuple(getattr(hub.errors, kind) for kind in kinds)):
            cause, advice = explain(checkpoint)
            return StartError(cause, advice=advice)
    if is_disk_full(error):
        return StartError(
            f"the disk is full: there is no room for {model} in {hub_cache.root()}",
            advice="Free some space there, or let HF_HOME name a folder on another disk.",
        )
    if isinstance(error, hub.errors.LocalEntryNotFoundError) and hub.constants.HF_HUB_OFFLINE:
        return StartError(
            f"{model} is not in the hub's cache on this machine, and HF_HUB_OFFLINE forbids a "
            f"download",
            advice=f"Unset HF_HUB_OFFLINE, or {_ELSEWHERE.format(model=model)}.",
        )
    answers = [found.response for found in _chain(error) if hasattr(found, "response")]
    if answers:
        return StartError(
            f"the hub did not give out {model}: it answered {answers[0].status_code}",
            advice="Try again later; `hf auth login` raises the limit of requests.",
        )
    return StartError(
        f"the hub could not be reached, and {model} is not in its cache on this machine "
        f"({type(error).__name__})",
        advice=f"Check the network (HTTPS_PROXY, HF_ENDPOINT), or {_ELSEWHERE.format(model=model)}",
    )


def is_disk_full(error: BaseException) -> bool:
    """Return whether a disk was full: this error says so, or one that it came from."""
    return any(
        isinstance(found, OSError) and found.errno == errno.ENOSPC for found in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# In this order: what is gated counts as not found, too.
_CAUSES: Final[dict[tuple[str, ...], Callable[[Checkpoint], tuple[str, str]]]] = {
    ("GatedRepoError",): lambda wanted: (
        f"{wanted.model} is gated: the hub gives it only to those who were let in",
        f"Ask for access on the model's page, then {_LOG_IN}.",
    ),
    ("RevisionNotFoundError",): lambda wanted: (
        f"{wanted.model} has no revision {wanted.revision} on the hub",
        "Give revision= a commit, branch or tag from the model's page, or leave it out.",
    ),
    ("RepositoryNotFoundError", "HFValidationError"): lambda wanted: (
        f"{wanted.model} is neither a folder here nor a model on the hub that you may see",
        f"Check the name, which has the form owner/name; if it is private, {_LOG_IN}.",
    ),
}
