"""Fetches the small files that describe a model on the hub, into the hub's cache.

They are configuration, tokenizer, modules and prompts; never weights, which are the work of
``hub_weights``.
"""

from __future__ import annotations

from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, Final

from emberd import hub_client, model_card, model_files
from emberd.errors import HubError
from emberd.system import background

TIMEOUT_S: Final = 60.0
OPTIONAL_TIMEOUT_S: Final = 10.0
"""How long all files together may take, in seconds; the library repeats what failed."""


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
    try:
        download = hub_client.load("hf_hub_download")
    except ImportError as error:
        cause = f"huggingface_hub cannot be imported ({error})"
        raise _error(model, revision, cause, hub_client.INSTALL) from error
    # In a thread, because its timeouts are those of each step, and it repeats some steps.
    fetching = background.run(lambda: _fetch(download, model, revision), "hub")
    try:
        return fetching.result(timeout_s)
    except FutureTimeoutError as error:
        cause = f"the hub did not send them within {timeout_s:g} s"
        raise _error(model, revision, cause, "Check the network, or try again later") from error
    except Exception as error:
        raise _known(model, revision, error) from error


def _fetch(download: Any, model: str, revision: str | None) -> Path:
    def get(name: str, at: str | None) -> Path:
        cache, endpoint = model_files.hub_cache(), hub_client.endpoint()
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
                if not _is_missing_there(error):
                    raise
    return snapshot


def _is_missing_there(error: Exception) -> bool:
    names = hub_client.names(error)
    # The error of a file that is not in the cache either is derived from that one.
    return "EntryNotFoundError" in names and "LocalEntryNotFoundError" not in names


def _known(model: str, revision: str | None, error: Exception) -> HubError:
    if _is_missing_there(error):
        cause = f"the hub has no {model_files.CONFIG} of it, so it is not a model of Transformers"
        return _error(model, revision, cause, "Correct model=")
    return _error(model, revision, *hub_client.explain(error, model, revision))


def _error(model: str, revision: str | None, cause: str, advice: str) -> HubError:
    what = model + (f" at {revision}" if revision else "")
    return HubError(
        f"The files that describe {what} are not all on this machine, and emberd cannot fetch "
        f"them: {cause}. {advice}."
    )
