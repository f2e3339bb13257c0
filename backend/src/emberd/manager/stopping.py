"""Stopping a server because a person asked for it."""

from __future__ import annotations

import time
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Final

from emberd.errors import StartError
from emberd.manager import alive, process, record
from emberd.manager.process import ProcessIdentity
from emberd.manager.server import ServerStatus
from emberd.manager.slot import View, look
from emberd.manager.timing import Timing

_MARGIN_S: Final = 10.0


def stop(folder: Path, timing: Timing) -> ServerStatus | None:
    """Stop the server of ``folder``, wait until it is gone; return what it was, if anything.

    A server of somebody else's is forgotten, never stopped. A keeper that does not go is killed,
    and its server with it.

    Raises:
        StartError: Processes of the server are left that cannot be ended.
    """
    view = look(folder)
    was = view.status()
    if view.record is None or was is None:
        return None
    if view.record.found:
        _forget(folder)
        return was
    if not view.alive:
        return None
    keeper = _keeper(view, timing)
    if keeper is not None:
        process.send(keeper, SIGTERM)
        if not _ended(keeper, view.record.drain_s + timing.kill_s + _MARGIN_S, timing):
            process.send(keeper, SIGKILL)
            _ended(keeper, timing.kill_s, timing)
    _end_marked(folder, was.nonce, timing)
    return was


def _keeper(view: View, timing: Timing) -> ProcessIdentity | None:
    # In the first moments the record is the starter's, and names no keeper yet.
    deadline = time.monotonic() + timing.takeover_s
    while view.alive and view.record is not None and time.monotonic() < deadline:
        if view.record.keeper is not None:
            return view.record.keeper
        time.sleep(timing.poll_s)
        view = look(view.folder)
    return None


def _forget(folder: Path) -> None:
    with alive.held(folder) as free:
        if free:
            (folder / record.NAME).unlink(missing_ok=True)


def _ended(keeper: ProcessIdentity, seconds: float, timing: Timing) -> bool:
    # The keeper's own end, and not that of the proof of life: the next one may hold that already.
    deadline = time.monotonic() + seconds
    while keeper.is_running():
        if time.monotonic() > deadline:
            return False
        time.sleep(timing.poll_s)
    return True


def _end_marked(folder: Path, nonce: str, timing: Timing) -> None:
    left = process.end_marked(str(folder), timing.kill_s, nonce)
    if left:
        raise StartError(
            f"Processes of the server are left that cannot be ended: {', '.join(map(str, left))}",
            advice="They wait for the kernel (a hung disk or GPU driver); look at dmesg.",
        )
