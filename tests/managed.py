"""The session's server of ``emberd/demo``: as for users, the first use finds or starts it.

A conftest imports ``stopped_at_the_end``; objects that its tests construct then share one server.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import emberd

MODEL: Final = "emberd/demo"
DIMENSIONS: Final = 384
SAME: Final = 1e-6  # the order of the encoder's sums depends on the batch size

# By name, so that a test can name the passage that it expects.
PASSAGES: Final = {
    "sea": "The Baltic Sea has little salt, because many rivers flow into it.",
    "lock": "A lock file is stale when the process that is named in it no longer exists.",
    "bread": "Sourdough rises slowly: wild yeast needs twelve hours at room temperature.",
    "curie": "Marie Curie is the only person with Nobel Prizes in two different sciences.",
}
QUERIES: Final = {
    "Why is the Baltic almost fresh water?": "sea",
    "¿Quién ganó el Nobel en dos ciencias?": "curie",
    "Wie lange muss ein Teig mit wilder Hefe gehen?": "bread",
}


@pytest.fixture(scope="session", autouse=True)
def stopped_at_the_end(managed_home: Path) -> Iterator[None]:
    """Stop the session's servers, whichever test started them."""
    yield
    emberd.Manager(managed_home).stop()
    stop_resource_tracker()


def stop_resource_tracker() -> None:
    """End the resource tracker, which multiprocessing otherwise keeps until this process ends."""
    # Tests of the supervisor reap every child of this process, including an ended tracker.
    with suppress(ChildProcessError):
        resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def same(one: Any, other: Any) -> bool:
    """Return whether two (lists of) vectors are the same."""
    return bool(np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=0, atol=SAME))


def live_servers() -> list[str]:
    """Return the start_ids of the servers that run in the session's home."""
    return [
        status.start_id for status in emberd.Manager().status() if status.supervisor_pid is not None
    ]


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a Python process that imports what this one imports."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return {**os.environ, "PYTHONPATH": path, **more}
