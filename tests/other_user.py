"""Another user of the machine: its files, and calls as this user. Both need root."""

from __future__ import annotations

import grp
import os
import pickle
import pwd
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

OTHER: Final = 54_321
"""A uid and gid that no account has."""

needs_root: Final = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can make files of another user"
)


def give(path: Path, uid: int = OTHER, gid: int = OTHER) -> None:
    """Let a file or folder belong to another user."""
    os.chown(path, uid, gid, follow_symlinks=False)


def give_group(path: Path, mode: int) -> None:
    """Let a group of others write a file or folder."""
    os.chown(path, -1, OTHER)
    path.chmod(mode)


def with_private_group() -> pwd.struct_passwd:
    """Return an account, not root, that has a group of the same name."""
    groups = {group.gr_gid: group for group in grp.getgrall()}
    for user in pwd.getpwall():
        group = groups.get(user.pw_gid)
        if user.pw_uid and group and group.gr_name == user.pw_name and not group.gr_mem:
            return user
    pytest.skip("no account of this machine has a private group")


def reachable(path: Path) -> Path:
    """Let every user enter ``path``, a folder of pytest, and those above it."""
    for above in (path, *path.parents[:-1]):
        if above.stat().st_uid == os.geteuid():
            above.chmod(above.stat().st_mode | 0o011)
    return path


def run_as(uid: int, work: Callable[[], Any], gid: int | None = None) -> Any:
    """Return what ``work`` returns when a child of this process calls it as another user.

    An exception of ``work`` is returned, not raised.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(uid if gid is None else gid)
            os.setuid(uid)
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - it is the result
                result = error
            os.write(writing, pickle.dumps(result))
        except BaseException:  # noqa: BLE001 - shown; the parent finds no result
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(content)
