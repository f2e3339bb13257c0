"""The state folder: whose it is, who may read it, whether it can lock, what lies in it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from emberd.doctor.filesystems import Ground, existing, ground
from emberd.doctor.findings import Finding, note, ok, problem, split
from emberd.doctor.wanted import Wanted
from emberd.errors import StateFolderError
from emberd.manager import paths

_ELSEWHERE: Final = "Set EMBERD_HOME to a folder of your own on a local disk."
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_MOST_SKEW_S: Final = 2.0
_OPEN_AGAIN: Final = "/proc/self/fd/{}"
_EARLIEST_S: Final = 1_735_689_600  # 1 January 2025: no emberd was there before


def look(wanted: Wanted) -> Iterator[Finding]:
    """Yield whether servers' state can be kept in the home."""
    under = ground(wanted.home)
    yield _home(wanted.home)
    if under.is_shared:
        yield note(
            "file system",
            f"{wanted.home} is on {under.kind}, another machine's disk: whether its locks hold is "
            f"that machine's matter",
            _ELSEWHERE,
        )
    if not under.writable:
        yield problem("home", f"{under.path} may not be written by this user", _ELSEWHERE)
        return
    yield from _tried(under)
    own = paths.Home(Path(os.path.realpath(wanted.home)))
    needed = {own.machine, own.servers, *own.server_folders(wanted.spec.key)}
    for folder in sorted({*needed, *own.all_server_folders()}):
        yield from _private(folder, problem if folder in needed else note)


def _home(home: Path) -> Finding:
    if not home.exists():
        return ok("home", f"{home} is not there yet; the first start makes it")
    if not home.is_dir():
        return problem("home", f"{home} is not a folder", _ELSEWHERE)
    facts = home.stat()
    mode = stat.S_IMODE(facts.st_mode)
    if facts.st_uid != os.geteuid():
        return note("home", f"{home} belongs to user {facts.st_uid} (mode {mode:o})", _ELSEWHERE)
    if mode & _OTHERS_WRITE:
        return note("home", f"{home} may be written by others (mode {mode:o})", f"chmod 700 {home}")
    return ok("home", f"{home} (mode {mode:o})")


def _private(folder: Path, told: Callable[..., Finding]) -> Iterator[Finding]:
    try:
        paths.check_private(folder)
    except FileNotFoundError:
        return
    except StateFolderError as error:
        yield told("state folder", *split(str(error)))


def _tried(under: Ground) -> Iterator[Finding]:
    """Write to a file that has no name and look what locks and times it has."""
    try:
        with tempfile.TemporaryFile(dir=existing(under.path)) as probe:
            yield _locks(probe)
            yield _clock(probe)
    except OSError as error:
        yield problem("home", f"{under.path} cannot be written ({error.strerror})", _ELSEWHERE)


def _locks(probe: IO[bytes]) -> Finding:
    try:
        fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_free_again(probe):
            return problem("locks", "two processes can hold the same lock there", _ELSEWHERE)
    except OSError as error:
        return problem("locks", f"locks do not work there ({error.strerror})", _ELSEWHERE)
    return ok("locks", "locks work there")


def _is_free_again(probe: IO[bytes]) -> bool:
    """Return whether the lock can be taken a second time, by another opening of the file."""
    with contextlib.suppress(FileNotFoundError), _opened_again(probe) as again:
        try:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        return True
    return False


def _opened_again(probe: IO[bytes]) -> Any:
    # Linux alone opens the file anew here; elsewhere the path is not there.
    return open(_OPEN_AGAIN.format(probe.fileno()), "rb")


def _clock(probe: IO[bytes]) -> Finding:
    probe.write(b"what time is it?")
    probe.flush()
    os.fsync(probe.fileno())
    now = time.time()
    skew = os.fstat(probe.fileno()).st_mtime - now
    if now < _EARLIEST_S:
        return note(
            "clock",
            f"this machine's clock says {time.strftime('%Y-%m-%d', time.gmtime(now))}: "
            f"certificates of the hub are refused",
            "Set the clock (timedatectl set-ntp true).",
        )
    if abs(skew) > _MOST_SKEW_S:
        return note(
            "clock",
            f"files there are stamped {skew:+.0f} s from this machine's clock",
            "Set the clocks of both machines (timedatectl set-ntp true).",
        )
    return ok("clock", "files there are stamped with this machine's time")
