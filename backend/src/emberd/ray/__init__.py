"""Embedding on a Ray cluster: one server a GPU of each node, found or started by the manager.

``embed`` adds vectors to a Ray dataset, with arguments chosen for the cluster; ``EmbedBatches`` is
the class behind it, for those who call ``map_batches`` themselves.

``nodes``    which server belongs to an actor
``batches``  the rows of one batch, embedded by the actor that has them
``pools``    how many actors, and on what
``datasets`` a whole dataset
``units``    files cut into pieces of work that are the same at each run
``reading``  the rows of a piece
``parts``    what a piece becomes: written whole, or not at all
``jobs``     all pieces of a job, of which a next run does those that are missing
"""

from __future__ import annotations

from emberd.ray.batches import EmbedBatches
from emberd.ray.datasets import embed

__all__ = ["EmbedBatches", "embed"]
