"""Which server belongs to an actor: that of its GPUs, or the one of its node.

An actor that Ray gave a GPU sees no other, and neither does what it starts. So each GPU gets a home
of its own in emberd's, and actors that share a GPU find one server there::

    <home>/                  the server of a node without GPUs, or with one
    <home>/gpus/<uuid>/      those of a node with several

A home of its own, and not a second server beside the first in the same: there, any server of the
model would do, and the actors of all GPUs would use the one that was there first. Where an actor
sees all that there is, it uses the node's own home, and with it what runs there already.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from emberd.engines import gpus
from emberd.engines.gpus import Gpu
from emberd.env import Places

if TYPE_CHECKING:
    from emberd.verified_manager import Manager

_FOLDER: Final = "gpus"
_DIGITS: Final = 16
_THREADS: Final = "OMP_NUM_THREADS"
_AT_START: Final = Path("/proc/self/environ")


def manager() -> Manager:
    """Return the manager of this actor's server; nothing is read but which GPUs it may use."""
    from emberd.verified_manager import (
        Manager,  # imported late: it takes locks and processes with it
    )

    free_threads()
    return Manager(home())


def home() -> str:
    """Return the home of this actor's server."""
    own = Places.resolve().home
    environment = {name: value for name, value in os.environ.items() if name != gpus.VISIBLE}
    held, there = gpus.survey().gpus, gpus.survey(environment).gpus
    if not held or len(held) == len(there):
        return own
    return os.path.join(own, _FOLDER, _name(held))


def free_threads() -> None:
    """Forget how many threads Ray allows this process, which its server would inherit.

    The server computes for all actors of a node; one of them has a fraction of a core.
    """
    if not _was_set_at_start():
        os.environ.pop(_THREADS, None)


def _was_set_at_start() -> bool:
    # What Ray itself sets, it sets in a running process, where the kernel does not show it.
    if sys.platform != "linux":
        return False
    variables = _AT_START.read_bytes().split(b"\0")
    return any(each.startswith(f"{_THREADS}=".encode()) for each in variables)


def _name(held: Sequence[Gpu]) -> str:
    # An instance of an old driver has slashes in its name, and eight names make no file name.
    names = sorted(gpu.uuid.replace("/", "_") for gpu in held)
    return (
        names[0] if len(names) == 1 else hashlib.sha256("+".join(names).encode()).hexdigest()[:16]
    )
