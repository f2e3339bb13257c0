"""Embedding on a Ray cluster: one server per GPU or node, found or started by the manager.

``embed`` adds vectors to a Ray dataset, with arguments chosen for the cluster; ``EmbedBatches`` is
the class behind it, for your own calls of ``map_batches``. ``executor`` runs the jobs of
``emberd embed --ray``, ``placement`` decides which server belongs to an actor and how many actors
there are.
"""

from __future__ import annotations

from emberd.ray.map_batches import EmbedBatches, embed

__all__ = ["EmbedBatches", "embed"]
