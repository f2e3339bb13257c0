"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberd.bulk import durable


def test_what_was_there_stays_until_what_is_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with durable.written(path) as file:
        file.write(b"half ")
        file.flush()
        assert path.read_bytes() == b"old"
        file.write(b"whole")
    assert path.read_bytes() == b"half whole"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        _fail_half_way(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_two_names_or_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"content")
    durable.linked(tmp_path / "x", tmp_path / "y")
    assert (tmp_path / "x").samefile(tmp_path / "y")
    monkeypatch.setattr("os.link", _refuse)
    durable.linked(tmp_path / "x", tmp_path / "z")
    assert (tmp_path / "z").read_bytes() == b"content"


def _fail_half_way(path: Path) -> None:
    with durable.written(path) as file:
        file.write(b"half")
        raise RuntimeError


def _refuse(*_: object) -> None:
    raise PermissionError("one name only")
