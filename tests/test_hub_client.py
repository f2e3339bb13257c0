"""The errors of huggingface_hub, in words: by their names, because releases move the classes."""

from __future__ import annotations

import errno
from types import SimpleNamespace

import pytest

from emberd import hub_client


class LocalEntryNotFoundError(FileNotFoundError):
    pass


class RepositoryNotFoundError(OSError):
    pass


class GatedRepoError(RepositoryNotFoundError):
    pass


class RevisionNotFoundError(OSError):
    pass


class HFValidationError(ValueError):
    pass


class _Response(SimpleNamespace):
    def __bool__(self) -> bool:
        return False  # as one of requests with such a status


class _RefusedError(OSError):
    response = _Response(status_code=429)


class _UnreachableError(OSError):
    response = None  # requests has errors of this kind


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "offline", "cause"),
    [
        (GatedRepoError(), False, "a/b is gated"),
        (RepositoryNotFoundError(), False, "a/b is neither a folder here nor a model"),
        (HFValidationError(), False, "a/b is neither a folder here nor a model"),
        (RevisionNotFoundError(), False, "a/b has no revision main"),
        (LocalEntryNotFoundError(), True, "HF_HUB_OFFLINE forbids a download"),
        (LocalEntryNotFoundError(), False, "the hub could not be reached"),
        (
            _caused(LocalEntryNotFoundError(), _UnreachableError()),
            False,
            "the hub could not be reached",
        ),
        (ConnectionRefusedError(), False, "the hub could not be reached"),
        (
            _caused(LocalEntryNotFoundError(), _RefusedError()),
            False,
            "the hub refused the download of a/b with status 429",
        ),
        (
            _caused(RuntimeError(), OSError(errno.ENOSPC, "No space left on device")),
            False,
            "the disk is full: there is no space for a/b in /cache",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/cache/x"),
            False,
            "the download of a/b failed (PermissionError",
        ),
    ],
)
def test_each_refusal_of_the_hub_is_explained(
    monkeypatch: pytest.MonkeyPatch, error: Exception, offline: bool, cause: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1" if offline else "0")
    monkeypatch.setenv("HF_HUB_CACHE", "/cache")
    told, advice = hub_client.explain(error, "a/b", "main")
    assert cause in told
    assert advice
    # The reader of the log takes what follows the first full stop for advice.
    assert ". " not in told


def test_a_slash_at_the_end_of_the_endpoint_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert hub_client.endpoint() == "https://mirror.example"
