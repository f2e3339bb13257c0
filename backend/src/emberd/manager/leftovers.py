"""What a dead supervisor's server left behind: processes, temporary files, shared memory."""

from __future__ import annotations

from pathlib import Path

from emberd.manager import folders, leavings, record
from emberd.manager.timing import Timing
from emberd.system import processes


def end(folder: Path, timing: Timing) -> None:
    """End and remove it; the caller knows that the supervisor of ``folder`` is dead."""
    processes.end_marked(str(folder), timing.kill_s)
    own = record.read_last(folder)
    if own is None:
        # The record is lost; the log's first line names the last start too.
        start_id = folders.log_start_id(folder)
        leavings.remove(folder, leavings.scratch(start_id) if start_id else "")
    elif not own.found:
        leavings.remove(folder, own.scratch)
