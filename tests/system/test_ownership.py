"""Who can have written a file: owner, mode, links, and groups that count as the user."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path

import pytest

import damage
import other_user
from emberd.errors import StateFolderError
from emberd.system import ownership
from other_user import needs_root


def refused(path: Path, *, by_root: bool = False) -> str:
    """Return the reason why ``path`` is refused; empty if it is not."""
    try:
        ownership.check(path, os.lstat(path), by_root=by_root)
    except StateFolderError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("mode", "is_refused"), [(0o600, False), (0o644, False), (0o606, True), (0o666, True)]
)
def test_file_that_everyone_can_write_is_refused_with_the_command_that_fixes_it(
    tmp_path: Path, mode: int, is_refused: bool
) -> None:
    file = tmp_path / "it's"
    file.touch()
    file.chmod(mode)
    reason = refused(file)
    assert bool(reason) is is_refused
    assert ownership.is_own(os.lstat(file)) is not is_refused
    if is_refused:
        assert os.system(reason.partition("Run: ")[2]) == 0
        assert not refused(file)


@needs_root
def test_file_of_another_user_is_refused_with_the_command_that_fixes_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    other_user.give(file)
    reason = refused(file)
    assert str(other_user.OTHER) in reason
    assert not ownership.is_own(os.lstat(file))
    assert os.system(reason.partition("run as root: ")[2]) == 0
    assert not refused(file)


@needs_root
def test_file_of_root_is_accepted_where_an_administrator_may_install(tmp_path: Path) -> None:
    file = other_user.reachable(tmp_path) / "file"
    file.touch()

    def as_other() -> tuple[str, str]:
        return refused(file), refused(file, by_root=True)

    strict, lenient = other_user.run_as(other_user.OTHER, as_other)
    assert strict
    assert not lenient


@needs_root
def test_group_is_trusted_only_if_nobody_else_is_in_it(tmp_path: Path) -> None:
    user = other_user.with_private_group()
    own, foreign, roots = (other_user.reachable(tmp_path) / name for name in "abc")
    for file, gid in ((own, user.pw_gid), (foreign, other_user.OTHER), (roots, 0)):
        file.touch()
        other_user.give(file, user.pw_uid, gid)
        file.chmod(0o660)

    def as_user() -> list[str]:
        return [refused(own), refused(foreign), refused(roots), refused(roots, by_root=True)]

    private, others, of_root, installed = other_user.run_as(user.pw_uid, as_user, user.pw_gid)
    assert not private
    assert str(other_user.OTHER) in others
    assert of_root
    assert not installed


@needs_root
def test_group_that_is_the_first_one_of_another_user_is_not_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = other_user.with_private_group()
    file = other_user.reachable(tmp_path) / "file"
    file.touch()
    other_user.give(file, user.pw_uid, user.pw_gid)
    file.chmod(0o660)
    fields = ("another", "x", user.pw_uid + 1, user.pw_gid, "", "/", "/bin/sh")
    monkeypatch.setattr(pwd, "getpwall", lambda: [user, pwd.struct_passwd(fields)])
    assert other_user.run_as(user.pw_uid, lambda: refused(file), user.pw_gid)


def test_mode_of_a_shared_folder_is_not_to_be_changed(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    for examine in (ownership.check_folder, ownership.check_private):
        with pytest.raises(StateFolderError) as raised:
            examine(tmp_path)
        assert "chmod" not in str(raised.value)


@needs_root
def test_group_without_a_name_is_not_trusted(tmp_path: Path) -> None:
    """The arbitrary uid of a container has no account, so nothing says who is in its group."""
    file = other_user.reachable(tmp_path) / "file"
    file.touch()
    other_user.give(file)
    file.chmod(0o660)
    assert other_user.run_as(other_user.OTHER, lambda: refused(file))


@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "socket"])
def test_what_is_no_regular_file_is_not_opened_and_not_waited_for(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "path"
    if kind == "link":
        (tmp_path / "target").touch()
        path.symlink_to("target")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        damage.make_socket(path)
    expected = {"link": errno.ELOOP, "socket": errno.ENXIO}.get(kind, errno.EINVAL)
    with pytest.raises(OSError, match=os.strerror(expected) if expected != errno.EINVAL else "not"):
        ownership.open_file(path)


def test_link_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StateFolderError, match="not a folder"):
        ownership.check_folder(tmp_path / "link")
