"""Fetches the small files that describe a model on the hub, into the hub's cache.

They are configuration, tokenizer, modules and prompts; never weights. huggingface_hub does it, so
its variables apply (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, ...). It is not a dependency of emberd,
and it is imported at first use only.
"""

from __future__ import annotations

import os
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, Final

from emberd import model_card, model_files
from emberd.errors import HubError
from emberd.system import background, fork, redaction

TIMEOUT_S: Final = 60.0
OPTIONAL_TIMEOUT_S: Final = 10.0
"""How long all files together may take, in seconds; the library repeats what failed."""

_LOG_IN: Final = "Request access on the hub, then run `hf auth login`, or set HF_TOKEN"
# Name of an error of huggingface_hub, or of one that it is derived from -> what is wrong, and what
# to do. By name, because releases have them in different modules. The first that applies counts.
_KNOWN: Final = (
    ("GatedRepoError", "the model is gated, and this user may not read it", _LOG_IN),
    (
        "RepositoryNotFoundError",
        "the hub has no such model, or it is private",
        "Correct model=; for a private model run `hf auth login`, or set HF_TOKEN",
    ),
    ("RevisionNotFoundError", "the hub has no such revision of it", "Correct revision="),
    ("HFValidationError", "the hub cannot have a model of this name", "Correct model="),
    (
        "LocalEntryNotFoundError",
        "the hub cannot be reached",
        "Check the network and HF_ENDPOINT, or copy the result of `hf download {model}` here",
    ),
)


# Models whose files could not be fetched: a model that can do without is not delayed by it again.
_failed: set[tuple[str, str | None]] = set()


def fetch(model: str, revision: str | None, *, optional: bool) -> None:
    """Fetch the files that describe a model and that are not in the hub's cache.

    Returns when they are there, or when the hub said that it does not have them.

    Args:
        model: A name on the hub.
        revision: Commit, branch or tag; None for the default.
        optional: The model can be used without them. Then they are tried only once in a process,
            and not waited for as long.

    Raises:
        HubError: They cannot be fetched; the text says why and what to do.
    """
    if optional and (model, revision) in _failed:
        return
    try:
        snapshot = _fetch_in_time(model, revision, OPTIONAL_TIMEOUT_S if optional else TIMEOUT_S)
    except HubError:
        _failed.add((model, revision))
        raise
    model_card.choose(model, revision, snapshot)


def _fetch_in_time(model: str, revision: str | None, timeout_s: float) -> Path:
    if model_files.hub_is_offline():
        raise _error(
            model, revision, "HF_HUB_OFFLINE disables downloads", "Unset it, or fetch them before"
        )
    with fork.no_fork():
        try:
            from huggingface_hub import hf_hub_download
        except ImportError as error:
            advice = "Run `pip install huggingface_hub`"
            raise _error(
                model, revision, f"huggingface_hub cannot be imported ({error})", advice
            ) from error
    # In a thread, because its timeouts are those of each step, and it repeats some steps.
    fetching = background.run(lambda: _fetch(hf_hub_download, model, revision), "hub")
    try:
        return fetching.result(timeout_s)
    except FutureTimeoutError as error:
        cause = f"the hub did not send them within {timeout_s:g} s"
        raise _error(model, revision, cause, "Check the network, or try again later") from error
    except Exception as error:
        raise _known(model, revision, error) from error


def _fetch(download: Any, model: str, revision: str | None) -> Path:
    def get(name: str, at: str | None) -> Path:
        endpoint = os.environ.get("HF_ENDPOINT") or None  # read here: the library reads it once
        cache = model_files.hub_cache()
        return Path(download(model, name, revision=at, cache_dir=cache, endpoint=endpoint))

    snapshot = get(model_files.CONFIG, revision).parent
    # All of the same commit, which a branch may leave at any time.
    asked: set[str] = set()
    while missing := set(model_card.missing_files(snapshot, optional=True)) - asked:
        for name in sorted(missing):
            asked.add(name)
            try:
                get(name, snapshot.name)
            except Exception as error:
                # The error of a file that is not in the cache either is derived from that one.
                names = _names(error)
                if "EntryNotFoundError" not in names or "LocalEntryNotFoundError" in names:
                    raise
    return snapshot


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _known(model: str, revision: str | None, error: Exception) -> HubError:
    names = _names(error)
    for name, cause, advice in _KNOWN:
        if name in names:
            return _error(model, revision, cause, advice.format(model=model))
    if "EntryNotFoundError" in names:
        cause = f"the hub has no {model_files.CONFIG} of it, so it is not a model of Transformers"
        return _error(model, revision, cause, "Correct model=")
    # An error of the library contains long advice about itself, after an empty line.
    said = redaction.redactor()(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return _error(model, revision, f"the download failed ({said})", "Try again")


def _error(model: str, revision: str | None, cause: str, advice: str) -> HubError:
    what = model + (f" at {revision}" if revision else "")
    return HubError(
        f"The files that describe {what} are not all on this machine, and emberd cannot fetch "
        f"them: {cause}. {advice}; or give query_instruction= and document_instruction=, '' for "
        f"no prompt, and emberd does not need them."
    )
