"""emberd, its integrations and the platform."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import pytest

import emberd
import examined
from emberd.catalog import EMBED, RERANK
from emberd.doctor import host
from emberd.doctor.findings import Finding, Level


def look(tmp_path: Path, **more: Any) -> list[Finding]:
    return list(host.check_software(examined.wanted(tmp_path, **more)))


def versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    """Let these distributions be all that is installed."""

    def version(name: str) -> str:
        try:
            return installed[name.replace("-", "_")]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_versions_are_shown(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert examined.named(found, "emberd").fact.startswith(f"emberd {emberd.__version__} in ")
    assert platform.python_version() in examined.named(found, "python").fact
    assert platform.machine() in examined.named(found, "platform").fact


def test_an_integration_of_another_version_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, langchain_emberd="0.0.1", langchain_core="1.0")
    [found] = examined.worse(look(tmp_path))
    assert found.fact.startswith(
        f"langchain-emberd 0.0.1 is installed with emberd {emberd.__version__}"
    )
    assert found.advice == "pip install --upgrade emberd langchain-emberd"


def test_a_framework_without_its_integration_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, llama_index_core="0.14")
    [found] = examined.worse(look(tmp_path))
    assert found.advice.endswith("pip install llama-index-embeddings-emberd")


@pytest.mark.parametrize("task", [EMBED, RERANK])
def test_the_reranker_of_llama_index_is_only_missed_if_a_reranker_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    here = emberd.__version__
    versions(monkeypatch, llama_index_core="0.14", llama_index_embeddings_emberd=here)
    advice = [finding.advice for finding in examined.worse(look(tmp_path, task=task))]
    missed = ["To use emberd with it: pip install llama-index-postprocessor-emberd"]
    assert advice == (missed if task == RERANK else [])


def test_a_reranker_of_llama_index_of_another_version_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, llama_index_postprocessor_emberd="0.0.1")
    [found] = examined.worse(look(tmp_path))
    assert found.advice == "pip install --upgrade emberd llama-index-postprocessor-emberd"


def test_without_frameworks_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(monkeypatch, openai="3.0")
    found = look(tmp_path)
    assert examined.worse(found) == []
    assert examined.named(found, "packages").fact == "openai 3.0, numpy absent"


@pytest.mark.parametrize(
    ("base_url", "level"), [(None, Level.NOTE), ("http://127.0.0.1:9", Level.OK)]
)
def test_on_windows_a_server_has_to_be_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_url: str | None, level: Level
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    assert examined.named(look(tmp_path, base_url=base_url), "platform").level is level
