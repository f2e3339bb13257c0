"""Vectors for Ray datasets: ``EmbedBatches`` for ``map_batches``, and ``embed`` for a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from emberd.bulk.request import BadRows, Role
from emberd.bulk.units import RowError, checked_text, column_values, text_row_error
from emberd.client.inputs import check_texts
from emberd.errors import SettingError, TextError
from emberd.ray import placement
from emberd.settings import Settings

if TYPE_CHECKING:
    from ray.data import Dataset

    from emberd.client.vectors import Floats
    from emberd.embedder import Embedder

ERROR: Final = "error"
"""Column with the reason why a row has no vector."""

BATCH_ROWS: Final = 1024
"""Enough for several requests in flight; a batch that fails is repeated as a whole."""

_EXCERPT_CHARACTERS: Final = 60
_FORMER_NAMES: Final = {"raise": "fail"}


class EmbedBatches:
    """Adds vectors to batches: a class for ``ray.data.Dataset.map_batches``.

    Each actor finds or starts the server of its GPU, or of its node, at its first batch. Pass
    ``batch_format="pyarrow"``: vectors become lists of fixed size, which every Parquet reader
    knows. In batches of NumPy arrays they are one array of float32, ``(n, dimensions)``.

    Args:
        column: Column of the texts.
        role: ``"document"`` or ``"query"``.
        output: Column of the vectors, float32; replaces an existing one.
        bad_rows: ``"fail"``, or ``"set-aside"``: such a row has no vector, and the reason in a
            column ``error``, which is null in all other rows and replaces an existing one. The
            former name of ``"fail"``, ``"raise"``, is still accepted.
        **settings: Arguments of ``emberd.Embedder``, without keys, clients and managers. They take
            precedence over the environment of the node; None is a value here.

    Raises:
        SettingError: A value cannot be used.
    """

    def __init__(
        self,
        column: str = "text",
        *,
        role: str = Role.DOCUMENT,
        output: str = "embedding",
        bad_rows: str = BadRows.FAIL,
        **settings: Any,
    ) -> None:
        _check_portable(settings)
        Settings.resolve().changed(**settings)
        self._column = column
        self._role = _member(Role, role, "role")
        self._output = output
        self._bad_rows = _member(BadRows, _FORMER_NAMES.get(bad_rows, bad_rows), "bad_rows")
        self._settings = settings
        self._embedder: Embedder | None = None

    def __call__(self, batch: Any) -> Any:
        """Return ``batch`` with vectors.

        Raises:
            SettingError: It has no such column, or a format that cannot be used.
            TextError: A row cannot be embedded, and ``bad_rows`` is ``"fail"``; notes give its
                index in the batch and the beginning of its text.
            ServerError: No server could be found or started.
            RequestError: The server refused, failed, or returned something unexpected.
        """
        if isinstance(batch, Mapping):
            return self._embed_numpy(batch)
        if not hasattr(batch, "column_names"):
            raise SettingError(
                f"A batch of type {type(batch).__name__} cannot be used. "
                f"Pass map_batches(batch_format='pyarrow'), or 'numpy'."
            )
        return self._embed_arrow(batch)

    def __getstate__(self) -> dict[str, Any]:
        # The receiver is another node, which has its own server.
        return {**self.__dict__, "_embedder": None}

    @property
    def embedder(self) -> Embedder:
        """The embedder of this actor, on the server of its GPU or node."""
        if self._embedder is None:
            self._embedder = placement.embedder_for(self._settings)
        return self._embedder

    def _embed_numpy(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self._bad_rows is BadRows.SET_ASIDE:
            raise SettingError(
                "NumPy arrays cannot represent rows without vectors. "
                "Pass map_batches(batch_format='pyarrow')."
            )
        texts = self._texts(batch, list(batch))
        check_texts(texts)  # map() passes single rows, with one text
        vectors, _ = self._embed(list(texts))
        return {**batch, self._output: vectors}

    def _embed_arrow(self, batch: Any) -> Any:
        import numpy as np
        import pyarrow

        names = batch.column_names
        vectors, reasons = self._embed(column_values(self._texts(batch, names)))
        missing = np.zeros(len(vectors), bool)
        missing[list(reasons)] = True
        column = pyarrow.FixedSizeListArray.from_arrays(
            pyarrow.array(vectors.reshape(-1)),
            vectors.shape[1],
            mask=pyarrow.array(missing) if reasons else None,
        )
        added = {self._output: column}
        if self._bad_rows is BadRows.SET_ASIDE:
            shown = [reasons.get(row) for row in range(batch.num_rows)]
            added[ERROR] = pyarrow.array(shown, pyarrow.string())
        table = batch.select([name for name in names if name not in added])
        for name, values in added.items():
            table = table.append_column(name, values)
        return table

    def _texts(self, batch: Any, columns: Sequence[str]) -> Any:
        if self._column not in columns:
            raise SettingError(
                f"There is no column {self._column!r}. The columns are: "
                f"{', '.join(map(repr, columns))}."
            )
        return batch[self._column]

    def _embed(self, values: Sequence[Any]) -> tuple[Floats, dict[int, str]]:
        """Return the vectors of all rows, zeros for bad ones; and why those are bad, by index."""
        import numpy as np

        embed, dimensions = placement.connect(self.embedder, self._role)
        vectors = np.zeros((len(values), dimensions), np.float32)
        reasons: dict[int, str] = {}
        texts: dict[int, str] = {}
        for row, value in enumerate(values):
            text = checked_text(value)
            if isinstance(text, RowError):
                reasons[row] = text.reason
                self._fail(TextError(text.reason, index=row), value)
            else:
                texts[row] = text
        for row, outcome in zip(texts, embed(texts.values()), strict=True):
            if isinstance(outcome, TextError):
                reasons[row] = text_row_error(outcome).reason
                outcome.index = row  # it counted only the good rows
                self._fail(outcome, texts[row])
            else:
                vectors[row] = outcome
        return vectors, reasons

    def _fail(self, error: TextError, text: Any) -> None:
        if self._bad_rows is BadRows.FAIL:
            shown = repr(text)
            if len(shown) > _EXCERPT_CHARACTERS:
                shown = f"{shown[:_EXCERPT_CHARACTERS]}..."
            error.add_note(
                f"It is row {error.index} of its batch, column {self._column!r}: {shown}. "
                f"Pass bad_rows='set-aside' to continue without such rows."
            )
            raise error


def embed(
    dataset: Dataset,
    column: str = "text",
    *,
    role: str = Role.DOCUMENT,
    output: str = "embedding",
    bad_rows: str = BadRows.FAIL,
    batch_rows: int = BATCH_ROWS,
    num_gpus: float | None = None,
    actors: int | None = None,
    **settings: Any,
) -> Dataset:
    """Return ``dataset`` with a column of vectors; rows are embedded when they are consumed.

    What is not passed comes from the environment of this process, not from those of the nodes.

    Args:
        dataset: A dataset with a column of texts.
        column: That column.
        role: ``"document"`` or ``"query"``.
        output: Column of the vectors, lists of float32 of fixed size.
        bad_rows: ``"fail"`` or ``"set-aside"``; see ``EmbedBatches``.
        batch_rows: Rows that an actor receives at once. Ray calls this ``batch_size``, which here,
            as with ``Embedder``, is the maximum number of texts in a request.
        num_gpus: GPUs of a server; None for one if the cluster has any and the model uses it.
        actors: Number of actors; None for two per server. Servers are counted now.
        **settings: Arguments of ``emberd.Embedder``, without keys, clients and managers.

    Raises:
        SettingError: A value cannot be used.
    """
    _check_portable(settings)
    resolved = Settings.resolve(**settings)
    arguments = {"column": column, "role": role, "output": output, "bad_rows": bad_rows}
    arguments |= placement.portable_settings(resolved)
    EmbedBatches(**arguments)  # what it would refuse on a node, it refuses here
    return dataset.map_batches(
        EmbedBatches,
        fn_constructor_kwargs=arguments,
        batch_size=batch_rows,
        batch_format="pyarrow",
        udf_modifying_row_count=False,
        **placement.actor_arguments(resolved, num_gpus=num_gpus, actors=actors),
    )


def _check_portable(settings: Mapping[str, Any]) -> None:
    if settings.get("api_key") is not None:
        raise SettingError(
            "api_key would be readable in what Ray sends to the nodes. Omit it, and set "
            "EMBERD_API_KEY in the environment of each node."
        )


def _member(kind: type[StrEnum], value: str, name: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        known = " or ".join(repr(str(each)) for each in kind)
        raise SettingError(f"{name}={value!r} is not known: pass {known}.") from None
