"""Who can have written a file or a folder that emberd trusts: the only check of owner and mode.

A path is not checked before it is opened, because another user may replace the file in between:
files are opened first, without following a link and without waiting for a named pipe, and the open
descriptor is checked.

Write access of a group counts as write access of others, except for the user's private group (of
the same name and with no other member), which many systems give to every new file (umask 002).
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from pathlib import Path
from typing import Any, Final

from emberd.errors import StateFolderError
from emberd.system import os_errors

_ROOT: Final = 0
_OWN_FOLDER: Final = "Use a file in your own folder."
_ACCESS_OF_OTHERS: Final = 0o077
_PRIVATE_MODE: Final = 0o700
_SAFELY: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def open_file(path: str | os.PathLike[str], flags: int = os.O_RDONLY, mode: int = 0o600) -> int:
    """Open a regular file and return its descriptor; links are not followed.

    Args:
        path: The file.
        flags: How to open it.
        mode: Its mode if ``flags`` create it; by default only this user can read and write it.

    Raises:
        OSError: It cannot be opened, or is not a regular file (``EINVAL``; ``ELOOP`` for a link).
    """
    descriptor = os.open(path, flags | _SAFELY, mode)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def is_own(facts: os.stat_result) -> bool:
    """Return whether only this user can have written what ``facts`` describe."""
    return facts.st_uid == os.geteuid() and not _writers(facts, by_root=False)


def check(
    path: str | os.PathLike[str],
    facts: os.stat_result,
    *,
    by_root: bool = False,
    so: str = "",
    instead: str = "",
    within: str | os.PathLike[str] | None = None,
) -> None:
    """Check that no other user can have written ``path``.

    Args:
        path: A file or a folder, for the message.
        facts: Of its open descriptor, or of a path that no other user can replace.
        by_root: Root may own it, as what an administrator installs for all users.
        so: The consequence, for the message: "so its programs are not run".
        instead: What to do if it belongs to another user, in sentences.
        within: The folder whose whole content is to get another mode; None for ``path`` only.

    Raises:
        StateFolderError: Another user can have written it.
    """
    _check_owner(path, facts, by_root=by_root, so=so, instead=instead)
    if writers := _writers(facts, by_root=by_root):
        what = f"go-w {_quoted(path)}" if within is None else f"-R go-w {_quoted(within)}"
        # A folder such as /tmp is open to all by intention.
        advice = _OWN_FOLDER if facts.st_mode & stat.S_ISVTX else f"Run: chmod {what}"
        raise StateFolderError(
            f"{path} can be written by {writers} (mode {stat.S_IMODE(facts.st_mode):o})"
            f"{_clause(so)}. {advice}"
        )


def check_folder(folder: str | os.PathLike[str], **how: Any) -> None:
    """Check that ``folder`` is a real folder in which no other user can have put files.

    Args:
        folder: The folder.
        **how: See ``check``.

    Raises:
        StateFolderError: It is not.
        OSError: It does not exist or cannot be examined.
    """
    check(folder, _folder(folder), **how)


def check_private(folder: Path, variable: str = "EMBERD_HOME") -> None:
    """Check that ``folder`` is a real folder that belongs to this user and is closed to others.

    Args:
        folder: The folder.
        variable: The environment variable that decides where it is; named in errors.

    Raises:
        StateFolderError: It is not: any user could have written its files.
        FileNotFoundError: There is no such folder.
    """
    instead = f"Set {variable} to your own folder."
    if os.geteuid() == _ROOT:
        instead += " A file server may give root's files to another user: run emberd as a user."
    try:
        facts = _folder(folder)
    except (FileNotFoundError, StateFolderError):
        raise
    except OSError as error:  # part of its path is a file, too long, or closed to this user
        raise StateFolderError(
            f"{folder} cannot be used ({error.strerror}). "
            f"Set {variable} to a folder that you may write to."
        ) from error
    _check_owner(folder, facts, instead=instead)
    if facts.st_mode & _ACCESS_OF_OTHERS:
        is_shared = facts.st_mode & stat.S_ISVTX  # such as /tmp: open to all by intention
        raise StateFolderError(
            f"{folder} is open to other users (mode {stat.S_IMODE(facts.st_mode):o}). "
            f"{instead if is_shared else f'Run: chmod 700 {_quoted(folder)}'}"
        )


def make_private(folder: Path) -> Path:
    """Create ``folder`` and missing parents, and check that it is private to this user.

    Raises:
        StateFolderError: It cannot be created, belongs to another user, or is open to others.
    """
    try:
        # One by one: ``parents=True`` would open missing parents to others, and one of them may be
        # an emberd folder that another process has just removed.
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(mode=_PRIVATE_MODE, exist_ok=True)
    except OSError as error:
        raise StateFolderError(
            f"{folder} cannot be created ({error.strerror}). {os_errors.advice(error)} "
            f"EMBERD_HOME sets the folder of emberd's files."
        ) from error
    check_private(folder)
    return folder


def _folder(folder: str | os.PathLike[str]) -> os.stat_result:
    facts = os.lstat(folder)
    if stat.S_ISDIR(facts.st_mode):
        return facts
    raise StateFolderError(f"{folder} is not a folder (a link?). Remove it, then try again.")


def _check_owner(
    path: str | os.PathLike[str],
    facts: os.stat_result,
    *,
    by_root: bool = False,
    so: str = "",
    instead: str,
) -> None:
    me = os.geteuid()
    if facts.st_uid == me or (by_root and facts.st_uid == _ROOT):
        return
    or_root = " or root" if by_root and me != _ROOT else ""
    own = f"If you trust its content, run as root: chown {me} {_quoted(path)}"
    raise StateFolderError(
        f"{path} belongs to user {facts.st_uid}, not to {me}{or_root}{_clause(so)}. "
        f"{instead or own}"
    )


def _quoted(path: str | os.PathLike[str]) -> str:
    return shlex.quote(os.fspath(path))


def _clause(so: str) -> str:
    return f", {so}" if so else ""


def _writers(facts: os.stat_result, *, by_root: bool) -> str:
    """Return which other users may write, in words; empty if none may."""
    if facts.st_mode & stat.S_IWOTH:
        return "everyone"
    if facts.st_mode & stat.S_IWGRP and not _is_own_group(facts.st_gid, by_root=by_root):
        return f"the group {facts.st_gid}"
    return ""


def _is_own_group(gid: int, *, by_root: bool) -> bool:
    # Root's own group: images for containers with an arbitrary uid give it all rights of root.
    if gid == _ROOT and (by_root or os.geteuid() == _ROOT):
        return True
    # Imported late: seldom needed, and absent on platforms without users.
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False  # who is in a group without a name is unknown
    if (group.gr_gid, group.gr_name) != (user.pw_gid, user.pw_name):
        return False
    # The members of a group are those that it lists, and the users whose first group it is.
    first = {other.pw_name for other in pwd.getpwall() if other.pw_gid == gid}
    return first.union(group.gr_mem) <= {user.pw_name}
