"""The servers of this user on this machine, as the plan of another server sees them.

A server takes some of its planned memory only with its first large batch, and NVML reports that as
free until then. So each supervisor publishes its plan in its record, and each new plan subtracts
what the running servers will still take. Starts on the same GPU follow one another, because each
holds the lock on the GPU from its plan until it is ready: two plans never count the same memory.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from emberd.engines import gpu_usage
from emberd.engines.gpu_usage import GpuServer
from emberd.errors import StateFolderError
from emberd.manager import lost_records, paths, state
from emberd.manager.lost_records import Marks
from emberd.manager.state import RUNNING, Record, ServerStatus, State
from emberd.settings import ServerSpec


def of_home(
    home: str | os.PathLike[str],
    *,
    without: Path | None = None,
    restarted: ServerSpec | None = None,
) -> list[GpuServer]:
    """Return the running servers of a home, those in other network namespaces included.

    Args:
        home: The folder of all state.
        without: The folder of a server that is left out.
        restarted: What a dry run is for: the memory of its running server counts as free.
    """
    marks = lost_records.marks_read_once()
    found = []
    for folder in paths.Home(Path(os.path.realpath(home))).server_folders_of_machine():
        if folder == without:
            continue
        with suppress(StateFolderError):  # one unusable folder does not prevent a start
            seen = state.snapshot(folder)
            if seen.record is not None and seen.state in RUNNING:
                server = _server(seen.record, marks)
                is_restarted = restarted is not None and server.serves(restarted)
                found.append(_as_if_stopped(server) if is_restarted else server)
    return found


def used_bytes(server: ServerStatus, marks: Marks) -> dict[str, int]:
    """Return what a server uses of each of its GPUs, by uuid; only where that is known.

    Args:
        server: The server.
        marks: Reads the marked processes.
    """
    uuids = server.gpu_memory.gpus if server.gpu_memory else ()
    pids = _pids(server.start_id, marks) if uuids else []
    used = {uuid: gpu_usage.memory_of([uuid], pids) for uuid in uuids}
    return {uuid: size for uuid, size in used.items() if size is not None}


def _server(own: Record, marks: Marks) -> GpuServer:
    memory, is_ready = own.gpu_memory, own.state is not State.STARTING
    if memory is None:
        return GpuServer(own.spec, is_placed=is_ready)
    pids = _pids(own.start_id, marks)
    pending = {uuid: memory.pending_bytes(uuid, pids, is_ready=is_ready) for uuid in memory.gpus}
    return GpuServer(own.spec, memory, pending)


def _pids(start_id: str, marks: Marks) -> list[int]:
    """Return the processes of a start; its id is random, and so is unique on the machine."""
    return [found.pid for found, _, started in marks() if started == start_id]


def _as_if_stopped(server: GpuServer) -> GpuServer:
    planned = server.memory.planned_bytes if server.memory else 0
    freed = {uuid: pending - planned for uuid, pending in server.pending.items()}
    return GpuServer(server.spec, pending=freed, is_placed=False)
