"""What the users of huggingface_hub share: its import, the hub's address, and its errors in words.

huggingface_hub is not a dependency of emberd, and it is imported at first use only. Its own
variables apply: HF_ENDPOINT (the hub or a mirror of it), HF_TOKEN, HF_HUB_OFFLINE, ...
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any, Final

from emberd import model_files
from emberd.system import fork, os_errors, redaction

INSTALL: Final = "Run `pip install huggingface_hub`"

_CHATTY: Final = ("filelock", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub")
_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
# Name of an error of huggingface_hub, or of one that it is derived from -> what is wrong, and what
# to do. By name, because releases have them in different modules. The first that applies counts.
_KNOWN: Final = (
    (
        "GatedRepoError",  # a RepositoryNotFoundError too
        "{model} is gated, and this account has no access to it",
        f"Request access on the model's page, then {_LOG_IN}",
    ),
    (
        "RevisionNotFoundError",
        "{model} has no revision {revision} on the hub",
        "Set revision= to a commit, branch or tag from the model's page, or omit it",
    ),
    *(
        (
            name,
            "{model} is neither a folder here nor a model on the hub that you can access",
            f"Correct model=, which has the form owner/name; if it is private, {_LOG_IN}",
        )
        for name in ("RepositoryNotFoundError", "HFValidationError")
    ),
)
_NOT_IN_CACHE: Final = "LocalEntryNotFoundError"
# Of huggingface_hub, its HTTP libraries (requests, httpx) and Python.
_NETWORK: Final = {_NOT_IN_CACHE, "RequestException", "TransportError", "ConnectionError"}


def load(name: str, module: str = "huggingface_hub") -> Any:
    """Return a public name of ``huggingface_hub``, or of one of its modules.

    Raises:
        ImportError: It is not installed, or cannot be imported.
    """
    with fork.no_fork():  # the package imports its modules when a name is first used
        return getattr(importlib.import_module(module), name)


def quiet(level: int = logging.WARNING) -> None:
    """Turn off the progress bars of huggingface_hub, and its log below ``level``.

    For processes of emberd's own: the settings apply to the whole process.
    """
    for name in _CHATTY:
        logging.getLogger(name).setLevel(level)
    load("utils").disable_progress_bars()


def endpoint() -> str | None:
    """Return the URL in HF_ENDPOINT; None for the hub. The library itself reads it only once."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def names(error: BaseException) -> set[str]:
    """Return the names of an error's class and of those that it is derived from."""
    return {kind.__name__ for kind in type(error).__mro__}


def explain(error: Exception, model: str, revision: str | None) -> tuple[str, str]:
    """Return why the hub did not give a model's files, and what to do, without full stops."""
    known_names = names(error)
    for name, cause, advice in _KNOWN:
        if name in known_names:
            return cause.format(model=model, revision=revision), advice
    chain = list(os_errors.causes(error))
    missing = f"{model} is not in the hub's cache on this machine"
    elsewhere = f"download it elsewhere with `hf download {model}` and give the folder as model="
    if os_errors.is_disk_full(error):
        return (
            f"the disk is full: there is no space for {model} in {model_files.hub_cache()}",
            "Free some space there, or set HF_HOME to a folder on another disk",
        )
    if _NOT_IN_CACHE in known_names and model_files.hub_is_offline():
        cause = f"{missing}, and HF_HUB_OFFLINE forbids a download"
        return cause, f"Unset HF_HUB_OFFLINE, or {elsewhere}"
    responses = [getattr(found, "response", None) for found in chain]
    # A response of requests is false if its status is that of an error.
    for response in (each for each in responses if each is not None):
        return (
            f"the hub refused the download of {model} with status {response.status_code}",
            "Try again later; `hf auth login` raises the limit of requests",
        )
    if any(_NETWORK & names(found) for found in chain):
        cause = f"the hub could not be reached ({type(error).__name__}), and {missing}"
        return cause, f"Check the network (HTTPS_PROXY, HF_ENDPOINT), or {elsewhere}"
    # An error of the library contains long advice about itself, after an empty line.
    said = redaction.redactor()(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return (
        f"the download of {model} failed ({said.rstrip('.')})",
        os_errors.advice(error).rstrip(".") or "Try again",
    )
