"""What a dead keeper's server left behind: processes, temporary files, shared memory."""

from __future__ import annotations

from pathlib import Path

from emberd.manager import folders, leavings, process, record
from emberd.manager.timing import Timing


def end(folder: Path, timing: Timing) -> None:
    """End and remove it; the caller knows that the keeper of ``folder`` is dead."""
    process.end_marked(str(folder), timing.kill_s)
    own = record.read_last(folder)
    if own is None:
        # The record is lost; the log's first line names the last start too.
        nonce = folders.log_nonce(folder)
        leavings.remove(folder, leavings.scratch(nonce) if nonce else "")
    elif not own.found:
        leavings.remove(folder, own.scratch)
