"""Errors of the operating system: the path, the fact and what to do, as an ``EmberdError``."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from emberd.errors import SettingError, StateFolderError
from emberd.system import atomic_file, os_errors

KNOWN = [
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG),
    *(errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOMEM, errno.EAGAIN),
]


@pytest.mark.parametrize("number", KNOWN)
@pytest.mark.parametrize("name", ["/a/path", b"/a/path", None])
def test_known_error_names_path_fact_and_next_step(number: int, name: str | bytes | None) -> None:
    with pytest.raises(StateFolderError) as raised, os_errors.raised_as(StateFolderError):
        raise OSError(number, os.strerror(number), name)
    text = str(raised.value)
    assert ("/a/path" in text) is (name is not None)
    assert os.strerror(number) in text
    assert os_errors.advice(OSError(number, "")) in text


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "closed"), OSError("no number")])
def test_error_of_another_kind_is_not_changed(error: OSError) -> None:
    with pytest.raises(OSError, match=str(error).split("]")[-1]) as raised:
        with os_errors.raised_as(StateFolderError):
            raise error
    assert raised.value is error


def test_error_of_ours_is_not_wrapped_again() -> None:
    with pytest.raises(SettingError), os_errors.raised_as(StateFolderError):
        raise SettingError("wrong")


def test_full_disk_is_named_although_the_system_names_no_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(OSError, match="No space") as raised, atomic_file.replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(path)


def test_error_of_creating_a_file_names_the_file_and_not_the_unfinished_one(
    tmp_path: Path,
) -> None:
    path = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError) as raised:
        atomic_file.write(path, b"content")
    assert raised.value.filename == str(path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO])
def test_file_system_that_cannot_sync_folders_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EIO:
        with pytest.raises(OSError, match=os.strerror(number)):
            atomic_file.sync_folder(tmp_path)
    else:
        atomic_file.sync_folder(tmp_path)
