"""A cache that another user can have written is not used: forged vectors would be believed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import other_user
from cache.made import filled, keys, right, units
from emberd.cache import open_cache, sqlite  # noqa: F401 - imported before the user changes
from other_user import needs_root


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))
    path.symlink_to("elsewhere.db")


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere.db")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _log_of_another(path: Path) -> None:
    log = path.with_name(f"{path.name}-wal")
    log.touch(mode=0o600)
    other_user.give(log)


CHANGES: dict[str, Callable[[Path], object]] = {
    "writable-by-all": lambda path: path.chmod(0o666),
    "writable-by-a-group": lambda path: other_user.give_group(path, 0o660),
    "link": _link,
    "dangling-link": _dangling,
    "fifo": _fifo,
    "directory": _directory,
    "of-another-user": other_user.give,
    "log-of-another-user": _log_of_another,
    "folder-writable-by-all": lambda path: path.parent.chmod(0o1777),
    "folder-writable-by-a-group": lambda path: other_user.give_group(path.parent, 0o770),
    "folder-of-another-user": lambda path: other_user.give(path.parent),
}
NEEDS_ROOT = [name for name in CHANGES if "another" in name or "group" in name]


@pytest.mark.parametrize(
    "change",
    [pytest.param(name, marks=[needs_root] if name in NEEDS_ROOT else []) for name in CHANGES],
)
def test_cache_that_another_user_can_have_written_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    url = f"sqlite://{folder}/v.db"
    filled(url, range(3))
    CHANGES[change](folder / "v.db")
    cache = open_cache(url)
    assert right(cache, range(3)) == 0
    cache.put_many(keys([7]), units([7]))
    assert cache.stats().misses == 3
    assert caplog.messages
    assert all(str(folder) in said for said in caplog.messages)
    assert len(caplog.messages) <= 2  # one for reading, one for writing


@needs_root
def test_cache_in_a_folder_of_the_users_private_group_is_used(tmp_path: Path) -> None:
    """With the umask 002, every folder of a user can be written by the user's own group."""
    user = other_user.with_private_group()
    folder = other_user.reachable(tmp_path) / "cache"
    folder.mkdir()
    other_user.give(folder, user.pw_uid, user.pw_gid)
    folder.chmod(0o2775)
    url = f"sqlite://{folder}/v.db"

    def as_user() -> int:
        return right(filled(url, range(3)), range(3))

    assert other_user.run_as(user.pw_uid, as_user, user.pw_gid) == 3


@needs_root
def test_cache_in_a_volume_of_root_is_used_by_an_arbitrary_uid(tmp_path: Path) -> None:
    """Its folder in the volume was made by this user, or the file was."""
    volume = other_user.reachable(tmp_path) / "volume"
    volume.mkdir()
    volume.chmod(0o775)
    url = f"sqlite://{volume}/emberd/v.db"

    def as_user() -> int:
        return right(filled(url, range(3)), range(3))

    assert other_user.run_as(other_user.OTHER, as_user, gid=0) == 3


def test_file_of_a_cache_may_be_readable_by_others(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/v.db"
    filled(url, range(3))
    (tmp_path / "v.db").chmod(0o644)
    assert right(open_cache(url), range(3)) == 3


def test_folder_of_a_cache_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    filled(f"sqlite://{tmp_path}/link/v.db", range(3))
    assert right(open_cache(f"sqlite://{tmp_path}/real/v.db"), range(3)) == 3


def test_cache_that_is_repaired_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emberd.cache.cache.RETRY_AFTER_S", 0.0)
    url = f"sqlite://{tmp_path}/v.db"
    filled(url, range(3))
    (tmp_path / "v.db").chmod(0o666)
    cache = open_cache(url)
    assert right(cache, range(3)) == 0
    (tmp_path / "v.db").chmod(0o600)
    assert right(cache, range(3)) == 3
