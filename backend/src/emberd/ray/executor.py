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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from emberd.bulk.pipeline import Executor, OnRows, UnitTask
from emberd.errors import EmberdError
from emberd.ray import placement
from emberd.settings import Settings

if TYPE_CHECKING:
    from emberd.embedder import Embedder

_UNIT: Final = "unit"
_ROWS: Final = "rows"
_SIZE: Final = "size"
_FAILURE: Final = "failure"
"""Column of the pickled error of a unit; empty if the unit is done."""

# A block costs Ray some milliseconds, and more blocks do not spread the work better.
_MAX_BLOCKS: Final = 10_000


def ray_executor(settings: Settings) -> Executor:
    """Return an executor that embeds units on the cluster that Ray is connected to.

    Args:
        settings: Settings of the embedder. The key stays here: nodes have their own, or none.
    """

    def embed_units(task: UnitTask, units: Sequence[int], on_rows: OnRows) -> None:
        import ray

        blocks = min(len(units), _MAX_BLOCKS)
        dataset = ray.data.from_items([{_UNIT: unit} for unit in units], override_num_blocks=blocks)
        worker: Any = UnitWorker  # Ray accepts classes too, but its types do not
        done = dataset.map(
            worker,
            fn_constructor_kwargs={
                "task": task,
                "folder": Path.cwd(),
                "settings": placement.portable_settings(settings),
            },
            **placement.actor_arguments(settings, max_actors=len(units)),
        )
        for row in done.iter_rows():
            on_rows(row[_ROWS], row[_SIZE])
            if row[_FAILURE]:
                error: Exception = pickle.loads(row[_FAILURE])  # noqa: S301 - from our own workers
                raise error

    return embed_units


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
        its own pages.
        """
        counts = {_ROWS: 0, _SIZE: 0}

        def on_rows(rows: int, size: int) -> None:
            counts[_ROWS] += rows
            counts[_SIZE] += size

        failure = b""
        try:
            if self._embedder is None:
                self._embedder = placement.embedder_for(self._settings)
            connection = placement.connect(self._embedder, self._task.request.role)
            # Parts are not cut by time: two workers that embed one unit write the same parts.
            self._task.embed([int(row[_UNIT])], *connection, math.inf, on_rows)
        except (EmberdError, OSError) as error:
            failure = pickle.dumps(error)
        return {**counts, _FAILURE: failure}
