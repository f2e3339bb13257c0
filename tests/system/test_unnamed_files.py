"""``atomic_file.replacing`` with a file that has no name before it is complete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emberd.system import atomic_file


@pytest.fixture(params=["unnamed", "named", "no-proc"])
def _files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")
    if request.param == "no-proc":
        monkeypatch.setattr(atomic_file, "_OPEN_FILES", "/missing")


@pytest.mark.usefixtures("_files")
def test_the_file_is_replaced_when_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    with atomic_file.replacing(path, unnamed=True) as file:
        file.write(b"after")
        file.flush()
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("_files")
def test_after_an_error_the_file_is_unchanged_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic_file.replacing(path, unnamed=True):
        raise RuntimeError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="Linux only")
def test_an_unfinished_file_has_no_name(tmp_path: Path) -> None:
    with atomic_file.replacing(tmp_path / "out", unnamed=True) as file:
        file.write(b"after")
        assert list(tmp_path.iterdir()) == []
    assert (tmp_path / "out").read_bytes() == b"after"
