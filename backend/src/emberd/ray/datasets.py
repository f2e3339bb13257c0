"""A whole dataset: vectors added to each row, with arguments chosen for the cluster."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final

from emberd.ray import pools
from emberd.ray.batches import BadRows, EmbedBatches, Role, refuse_what_cannot_travel
from emberd.settings import Settings

if TYPE_CHECKING:
    from ray.data import Dataset

BATCH_ROWS: Final = 1024
"""Enough for some requests in flight at once; a batch that fails is done again as a whole."""


def embed(
    dataset: Dataset,
    column: str = "text",
    *,
    role: str = Role.DOCUMENT,
    output: str = "embedding",
    bad_rows: str = BadRows.RAISE,
    batch_rows: int = BATCH_ROWS,
    num_gpus: float | None = None,
    actors: int | None = None,
    **settings: Any,
) -> Dataset:
    """Return ``dataset`` with a column of vectors; nothing is embedded before it is consumed.

    What is not given comes from the environment of this process, whatever that of the nodes says.

    Args:
        dataset: Any dataset with a column of texts.
        column: That column.
        role: ``"document"`` or ``"query"``.
        output: The column of vectors, lists of float32 of a fixed size.
        bad_rows: ``"raise"`` or ``"set-aside"``; see ``EmbedBatches``.
        batch_rows: Rows that an actor takes at once: what Ray calls ``batch_size``, which is the
            most texts in one request here, as with ``Embedder``.
        num_gpus: GPUs of one server; None for one where the cluster has any and the model uses it.
        actors: How many actors; None for two a server. Servers are counted now.
        **settings: What ``emberd.Embedder`` takes, without keys, clients and managers.

    Raises:
        SettingError: A value cannot be used; it is named.
    """
    refuse_what_cannot_travel(settings)
    resolved = Settings.resolve(**settings)
    given = {"column": column, "role": role, "output": output, "bad_rows": bad_rows}
    given |= travelling(resolved)
    EmbedBatches(**given)  # what it would refuse on a node, it refuses here
    return dataset.map_batches(
        EmbedBatches,
        fn_constructor_kwargs=given,
        batch_size=batch_rows,
        batch_format="pyarrow",
        udf_modifying_row_count=False,
        **pools.arguments(resolved, num_gpus=num_gpus, actors=actors),
    )


def travelling(settings: Settings) -> dict[str, Any]:
    """Return the settings as keywords for ``EmbedBatches`` on a node: all of them but the key."""
    return {
        each.name: getattr(settings, each.name)
        for each in fields(settings)
        if each.name != "api_key"
    }
