"""The hub's cache is found where huggingface_hub keeps it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

import checkpoints_made
from emberd import model_files

VARIABLES: Final = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
ENVIRONMENTS: Final = [
    ({}, "{home}/.cache/huggingface/hub"),
    ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
    ({"HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, "/c/hub"),
    ({"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/b"),
    ({"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/a"),
    ({"HF_HOME": "~/models"}, "{home}/models/hub"),
    ({"HF_HUB_CACHE": "$HF_HOME/elsewhere", "HF_HOME": "/c"}, "/c/elsewhere"),
]


@pytest.mark.parametrize(("environ", "expected"), ENVIRONMENTS)
def test_the_cache_is_found_by_the_hubs_own_variables_in_their_order(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], expected: str
) -> None:
    _set(monkeypatch, environ)
    assert str(model_files.hub_cache()) == expected.format(home=Path.home())


@pytest.mark.parametrize("environ", [environ for environ, _ in ENVIRONMENTS])
def test_the_cache_is_where_huggingface_hub_says(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    _set(monkeypatch, environ)
    program = (
        "from huggingface_hub import constants; "
        "print(constants.HF_HUB_CACHE, constants.HF_TOKEN_PATH, sep='|')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == f"{model_files.hub_cache()}|{model_files.hub_token_path()}", (
        done.stderr
    )


def test_a_model_is_downloaded_once_no_file_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert not model_files.is_downloaded("owner/model")
    kept = model_files.hub_folder("owner/model")
    checkpoints_made.write(kept / "snapshots" / "abc")
    assert model_files.is_downloaded("owner/model")
    (kept / "blobs").mkdir()
    (kept / "blobs" / "123.incomplete").touch()
    assert not model_files.is_downloaded("owner/model")


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"HF_HUB_CACHE": "{}"}, "."),
        ({"HUGGINGFACE_HUB_CACHE": "{}"}, "."),
        ({"HF_HOME": "{}"}, "hub"),
        ({"XDG_CACHE_HOME": "{}"}, "huggingface/hub"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else None,
)
def test_a_snapshot_is_found_where_the_hubs_client_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], place: str
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    kept = tmp_path / place / "models--owner--model"
    checkpoints_made.write_json(kept / "snapshots" / "abc" / "config.json", {})
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc\n")
    assert model_files.hub_snapshot("owner/model", None) == kept / "snapshots" / "abc"
    assert model_files.hub_snapshot("owner/model", "abc") == kept / "snapshots" / "abc"
    assert model_files.hub_snapshot("owner/model", "def") is None
    assert model_files.hub_snapshot("owner/other", None) is None


def _set(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    for name in (*VARIABLES, "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert os.environ["HOME"]
