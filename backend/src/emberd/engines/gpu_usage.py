"""What servers on this machine used of a GPU, compared with what was planned for them.

At the end of each start the supervisor compares the memory that NVML reports for the server's
processes with the plan. The start with the largest difference is kept, and if it used more than
planned, the next plan adds the difference. A plan is never made smaller: at the end of its start a
server has not yet computed its largest batch, so what it uses then is a lower bound.

Only the memory of the server's own processes counts. What is free on the card also changes with
other processes, and would be counted for or against the server. Where NVML cannot report the memory
of these processes (in a container, whose pids it does not use, and on some GPUs), nothing is kept.

What a server was planned to take and has not taken yet is not free for another one: see
``GpuServer``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from emberd.engines import gpus
from emberd.engines.gpus import Gpu
from emberd.errors import StateFolderError
from emberd.settings import ServerSpec
from emberd.system import atomic_file, ownership, processes

_LOG: Final = logging.getLogger("emberd")
_FOLDER: Final = "gpu-memory"
_MOST_BYTES: Final = 1 << 16
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The memory that the plan of a server takes on each of its GPUs.

    Attributes:
        gpus: UUIDs of its GPUs.
        planned_bytes: The most that it takes.
        loaded_bytes: What it has taken for certain once it is ready. The rest it takes with its
            first large batch.
    """

    gpus: tuple[str, ...]
    planned_bytes: int
    loaded_bytes: int

    def pending_bytes(self, uuid: str, pids: Collection[int], *, is_ready: bool) -> int:
        """Return what its processes will still take on a GPU; NVML reports that as free.

        Args:
            uuid: The GPU.
            pids: The processes of the server.
            is_ready: Whether it has started. Used where NVML does not say what the processes have.
        """
        if uuid not in self.gpus:
            return 0
        used_bytes = memory_of([uuid], pids) or (self.loaded_bytes if is_ready else 0)
        return max(0, self.planned_bytes - used_bytes)


@dataclass(frozen=True, slots=True)
class GpuServer:
    """A server of emberd on this machine, as the plan of another one sees it.

    Attributes:
        spec: What it serves.
        memory: What was planned for it; None if it has no plan, or not yet.
        pending: UUID of a GPU -> what it will still take there, in bytes; negative for what a
            server that is to be restarted would free.
        is_placed: Whether it needs no memory beyond this: it has started, or has a plan.
    """

    spec: ServerSpec
    memory: GpuMemory | None = None
    pending: Mapping[str, int] = field(default_factory=dict)
    is_placed: bool = True

    @property
    def model(self) -> str:
        """Its model."""
        return self.spec.model

    def serves(self, spec: ServerSpec) -> bool:
        """Return whether it has the identity of ``spec``."""
        return self.spec.key == spec.key


def without_pending(seen: Sequence[Gpu], servers: Sequence[GpuServer]) -> tuple[Gpu, ...]:
    """Return GPUs whose free memory excludes what servers of emberd will still take of it."""
    return tuple(
        replace(gpu, free_bytes=min(gpu.total_bytes, max(0, gpu.free_bytes - pending)))
        for gpu in seen
        for pending in [sum(server.pending.get(gpu.uuid, 0) for server in servers)]
    )


@dataclass(frozen=True, slots=True)
class Usage:
    """The start of one kind of server that exceeded its plan most, or came closest to it.

    Attributes:
        file: Where it is kept, one file for each kind.
        kind: What the figures depend on: GPU, engine and version, shape of the model.
        used_bytes: The memory of its processes at the end of the start; 0 if none was measured.
        planned_bytes: What was planned for it, without what earlier starts had added.
        notes: That the file is damaged.
    """

    file: Path
    kind: Mapping[str, Any]
    used_bytes: int = 0
    planned_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def extra_bytes(self) -> int:
        """What the next plan must add."""
        return max(0, self.used_bytes - self.planned_bytes)

    def in_words(self) -> tuple[str, str] | None:
        """Return what was used and why it is shown, for display; None if it was not measured."""
        if not self.used_bytes:
            return None
        used, planned = (f"{size / _GIB:.1f} GiB" for size in (self.used_bytes, self.planned_bytes))
        why = f"by an earlier start here, for which {planned} were planned"
        more = "; the difference is part of the overhead" if self.extra_bytes else ""
        return f"used {used}", why + more


@dataclass(frozen=True, slots=True)
class PlannedUsage:
    """What a plan expects a server to use, to be compared with what it uses.

    Attributes:
        earlier: What earlier starts of this kind used.
        gpus: UUIDs of its GPUs.
        planned_bytes: What it may use on each, without ``earlier.extra_bytes``.
    """

    earlier: Usage
    gpus: Sequence[str]
    planned_bytes: int

    def compare(self, pids: Collection[int]) -> None:
        """Keep what the processes of a started server use, if that is the largest difference.

        Does not raise: a server is not worse because its memory cannot be measured or written.
        """
        used_bytes = memory_of(self.gpus, pids)
        if used_bytes is None:
            return
        now = read(self.earlier.file.parent.parent, self.earlier.kind)
        excess_bytes = used_bytes - self.planned_bytes
        if now.used_bytes and now.used_bytes - now.planned_bytes >= excess_bytes:
            return
        content = {
            "kind": now.kind,
            "used_bytes": used_bytes,
            "planned_bytes": self.planned_bytes,
        }
        try:
            now.file.parent.mkdir(mode=0o700, exist_ok=True)
            atomic_file.write(now.file, json.dumps(content, indent=1).encode(), follow_links=False)
        except OSError as error:
            _LOG.warning("the memory that a server uses cannot be kept: %s", error)


def read(home: str | os.PathLike[str], kind: Mapping[str, Any]) -> Usage:
    """Return what is kept of servers of this kind in a folder of all state.

    A file that is damaged, or that another user can have written, counts as missing, with a note.
    """
    canonical = json.dumps(kind, sort_keys=True, separators=(",", ":"))
    name = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    file = Path(home, _FOLDER, f"{name}.json")
    try:
        descriptor = ownership.open_file(file)
    except FileNotFoundError:
        return Usage(file, kind)
    except OSError as error:
        return _ignored(file, kind, error.strerror or "it cannot be read")
    try:
        with open(descriptor, "rb") as opened:
            ownership.check(file, os.fstat(descriptor))
            content = json.loads(opened.read(_MOST_BYTES))
        used_bytes, planned_bytes = content["used_bytes"], content["planned_bytes"]
        if content["kind"] != json.loads(canonical):
            return _ignored(file, kind, "it is of another kind of server")
        if not all(type(size) is int and size > 0 for size in (used_bytes, planned_bytes)):
            return _ignored(file, kind, "its sizes are not numbers of bytes")
    except StateFolderError as error:
        return _ignored(file, kind, str(error))
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        return _ignored(file, kind, f"it is damaged ({type(error).__name__})")
    return Usage(file, kind, used_bytes, planned_bytes)


def _ignored(file: Path, kind: Mapping[str, Any], why: str) -> Usage:
    note = f"the memory that earlier servers used is not considered: {file}: {why}; remove it"
    return Usage(file, kind, notes=(note,))


def memory_of(uuids: Sequence[str], pids: Collection[int]) -> int | None:
    """Return the most that these processes use on one of the GPUs; None if that is not known."""
    if not processes.has_pids_of_host():
        return None
    most_bytes = 0
    for uuid in uuids:
        own = [size for pid, size in gpus.processes_on(uuid) if pid in pids]
        sizes = [size for size in own if size is not None]
        if not own or len(sizes) < len(own):
            return None
        most_bytes = max(most_bytes, sum(sizes))
    return most_bytes or None
