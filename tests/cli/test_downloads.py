"""What ``emberd up`` does about missing weights, apart from the whole way from nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberd import engines, hub_weights
from emberd.cli import downloads
from emberd.cli.downloads import Downloads
from emberd.engines import Choice, load
from emberd.errors import HubError
from emberd.settings import ServerSpec, StartOptions

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


@pytest.mark.parametrize("words", [("--download-dir", "/models"), ("--downl=/models",)])
def test_weights_that_the_engine_takes_from_elsewhere_are_not_offered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(engines, "explain", lambda spec: Choice(load("sglang"), None, {}))
    assert downloads.find(ServerSpec(), StartOptions()) == MISSING
    assert downloads.find(ServerSpec(), StartOptions(arguments=words)) is None
    monkeypatch.setenv("SGLANG_USE_MODELSCOPE", "false")
    assert downloads.find(ServerSpec(), StartOptions()) == MISSING
    monkeypatch.setenv("SGLANG_USE_MODELSCOPE", "True")
    assert downloads.find(ServerSpec(), StartOptions()) is None
