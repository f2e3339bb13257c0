"""What ``emberd up`` does about missing weights, apart from the whole way from nothing."""

from __future__ import annotations

import pytest

from emberd import hub_weights
from emberd.cli import downloads
from emberd.cli.downloads import Downloads
from emberd.errors import HubError
from emberd.settings import ServerSpec

MISSING = Downloads(ServerSpec(), engine=None, weights=True)


def _refuse(*_: object) -> None:
    raise HubError("asked")


def test_without_huggingface_hub_an_allowed_download_is_left_to_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_weights, "list_files", _refuse)
    reports: list[str] = []
    with pytest.raises(HubError):
        MISSING.obtain(reports.append, assume_yes=True)
    monkeypatch.setattr(downloads, "find_spec", lambda name: None)
    MISSING.obtain(reports.append, assume_yes=True)
    assert "huggingface_hub" in reports[-1]
