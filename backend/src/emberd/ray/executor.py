"""The executor of bulk jobs on a Ray cluster: units are embedded by actors.

Everything but embedding is done by the process of the command. Actors write parts into the work
folder, so input and output must have the same paths on all nodes.
"""

from __future__ import annotations

import math
import os
import pickle
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emberd.bulk.pipeline import Embed, OnRows, UnitTask
from emberd.bulk.request import Role
from emberd.errors import EmberdError
from emberd.ray import placement
from emberd.settings import Settings

if TYPE_CHECKING:
    from emberd.embedder import Embedder

UNIT: Final = "unit"
"""Column of the index of a unit."""
ROWS: Final = "rows"
SIZE: Final = "size"
FAILURE: Final = "failure"
"""Column of the pickled error of a unit; empty if the unit is done."""

# A block costs Ray some milliseconds, and more blocks do not spread the work better.
_MAX_BLOCKS: Final = 10_000


@dataclass(frozen=True, slots=True)
class RayExecutor:
    """Embeds units on the cluster that Ray is connected to.

    Attributes:
        settings: Settings of the embedder. The key stays here: nodes have their own, or none.
    """

    settings: Settings

    def __call__(self, task: UnitTask, units: Sequence[int], on_rows: OnRows) -> None:
        """Embed ``units``.

        Raises:
            EmberdError: A unit could not be embedded; what is finished is kept.
        """
        import ray

        blocks = min(len(units), _MAX_BLOCKS)
        dataset = ray.data.from_items([{UNIT: unit} for unit in units], override_num_blocks=blocks)
        worker: Any = UnitWorker  # Ray accepts classes too, but its types do not
        done = dataset.map(
            worker,
            fn_constructor_kwargs={
                "task": task,
                "folder": Path.cwd(),
                "settings": placement.portable_settings(self.settings),
            },
            **placement.actor_arguments(self.settings, max_actors=len(units)),
        )
        for row in done.iter_rows():
            on_rows(row[ROWS], row[SIZE])
            if row[FAILURE]:
                error: Exception = pickle.loads(row[FAILURE])  # noqa: S301 - from our own workers
                raise error


class UnitWorker:
    """An actor: embeds units, each of which becomes one part or, if it is large, some.

    Args:
        task: The task.
        folder: Working directory of the command, for relative paths.
        settings: Keywords for the embedder.
    """

    def __init__(self, task: UnitTask, folder: Path, settings: dict[str, Any]) -> None:
        with suppress(OSError):  # without relative paths, the folder need not exist on the node
            os.chdir(folder)
        self._task = task
        self._settings = settings
        self._embedder: Embedder | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Embed the unit in ``row``.

        An error is returned, pickled: of an error that is raised, Ray keeps only the text and adds
        pages of its own.
        """
        counts = {ROWS: 0, SIZE: 0}

        def on_rows(rows: int, size: int) -> None:
            counts[ROWS] += rows
            counts[SIZE] += size

        failure = b""
        try:
            embed, dimensions = self._connect()
            # Parts are not cut by time: two workers that embed one unit write the same parts.
            self._task.embed([int(row[UNIT])], embed, dimensions, math.inf, on_rows)
        except (EmberdError, OSError) as error:
            failure = pickle.dumps(error)
        return {**counts, FAILURE: failure}

    def _connect(self) -> tuple[Embed, int]:
        placement.free_threads()
        if self._embedder is None:
            self._embedder = placement.embedder_for(self._settings)
        embedder = self._embedder
        is_query = self._task.request.role == Role.QUERY
        iterate = embedder.iter_queries if is_query else embedder.iter_documents
        dimensions = embedder.settings.dimensions or embedder.endpoint().dimensions
        return partial(iterate, set_aside=True), dimensions
