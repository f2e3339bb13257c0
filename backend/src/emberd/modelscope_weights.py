"""Downloads a model from ModelScope, with its package ``modelscope``, which is no dependency.

The package resumes interrupted downloads, and compares the SHA-256 of each file with the one that
ModelScope has. It downloads into its own cache, so the result is used as a folder.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from emberd import model_files, weight_files
from emberd.errors import HubError
from emberd.system import fork, redaction

_SHOWN_CHARACTERS: Final = 400


def fetch(model: str, revision: str | None) -> Path:
    """Download what a server reads of a model, and return its folder.

    Raises:
        HubError: It cannot be downloaded.
    """
    try:
        with fork.no_fork():
            download = importlib.import_module("modelscope").snapshot_download
    except (ImportError, AttributeError) as error:
        cause = f"the package modelscope cannot be imported ({error})"
        raise _error(model, cause, "Run `pip install modelscope`, or use the hub") from error
    patterns = [*model_files.DESCRIBING, model_files.SAFETENSORS]
    try:
        folder = Path(download(model, revision=revision, allow_patterns=patterns))
    except Exception as error:
        text = " ".join(str(error).split())[:_SHOWN_CHARACTERS]  # one line for each file
        said = redaction.redactor()(f"{type(error).__name__}: {text}")
        advice = "Correct the name and the revision, check the network, or try again"
        raise _error(model, f"modelscope failed ({said.rstrip('.')})", advice) from error
    if missing := weight_files.missing_files(folder):
        cause = f"{folder} is incomplete: {', '.join(missing)}"
        raise _error(model, cause, "Use a repository with weights in the safetensors format")
    return folder


def find(model: str, revision: str | None) -> Path | None:
    """Return the folder of a complete model in the cache of the package; None if there is none.

    No file is downloaded. It takes seconds to import the package.
    """
    if find_spec("modelscope") is None:
        return None
    try:
        with fork.no_fork():
            download = importlib.import_module("modelscope").snapshot_download
        folder = Path(download(model, revision=revision, local_files_only=True))
    except Exception:  # noqa: BLE001 - each version of the package raises other errors
        return None
    return None if weight_files.missing_files(folder) else folder


def _error(model: str, cause: str, advice: str) -> HubError:
    return HubError(f"{model} cannot be downloaded from ModelScope: {cause}. {advice}.")
