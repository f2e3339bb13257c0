"""The rows of one batch, embedded by the actor that has them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from emberd.bulk.rows import Flaw
from emberd.client.inputs import check_texts
from emberd.errors import SettingError, TextError
from emberd.ray import nodes
from emberd.settings import Settings

if TYPE_CHECKING:
    from emberd.client.vectors import Floats
    from emberd.embedder import Embedder

ERROR: Final = "error"
"""The column that says why a row was set aside."""

_EXCERPT: Final = 60
# Of the texts that it was given, the embedder counts; of those the user knows nothing.
_NUMBERED: Final = re.compile(r"\bText \d+\b")


class Role(StrEnum):
    """What the texts are."""

    DOCUMENT = "document"
    QUERY = "query"


class BadRows(StrEnum):
    """What becomes of a row whose text cannot be embedded."""

    RAISE = "raise"
    SET_ASIDE = "set-aside"


class EmbedBatches:
    """Adds vectors to batches: for ``ray.data.Dataset.map_batches``.

    Each actor finds or starts the server of its GPU, or of its node, at its first batch. Give
    ``batch_format="pyarrow"``: vectors become lists of a fixed size, which every reader of Parquet
    knows; in batches of NumPy arrays they are one array of float32, ``(n, dimensions)``.

    Args:
        column: The column of texts.
        role: ``"document"`` or ``"query"``.
        output: The column of vectors, float32; one that is there already is replaced.
        bad_rows: ``"raise"``, or ``"set-aside"``: such a row has no vector, and the reason in a
            column ``error``, which is null in all others; one that is there already is replaced.
        **settings: What ``emberd.Embedder`` takes, without keys, clients and managers. Wins over
            the environment of the node; None is a value here, and not "not given".

    Raises:
        SettingError: A value cannot be used; it is named.
    """

    def __init__(
        self,
        column: str = "text",
        *,
        role: str = Role.DOCUMENT,
        output: str = "embedding",
        bad_rows: str = BadRows.RAISE,
        **settings: Any,
    ) -> None:
        refuse_what_cannot_travel(settings)
        Settings.resolve().changed(**settings)
        self._column = column
        self._role = _one_of(Role, role, "role")
        self._output = output
        self._bad_rows = _one_of(BadRows, bad_rows, "bad_rows")
        self._settings = settings
        self._in_use: Embedder | None = None

    def __call__(self, batch: Any) -> Any:
        """Return ``batch`` with its vectors.

        Raises:
            SettingError: It has no such column, or is of a kind that cannot be used.
            TextError: A row cannot be embedded, and is not to be set aside; its place in the batch
                and the beginning of its text are named.
            ServerError: No server could be had.
            RequestError: The server refused, failed, or answered with something else than asked.
        """
        if isinstance(batch, Mapping):
            return self._numpy(batch)
        if not hasattr(batch, "column_names"):
            raise SettingError(
                f"A batch of type {type(batch).__name__} cannot be used. "
                f"Give map_batches(batch_format='pyarrow'), or 'numpy'."
            )
        return self._arrow(batch)

    def added_to(self, batch: Any) -> tuple[Any, dict[int, str]]:
        """Return a table with its vectors, and why the rows that have none are bad, by their place.

        Raises:
            What a call does.
        """
        texts = _listed(self._texts(batch, batch.column_names))
        vectors, reasons = self._embed(texts)
        kept = [name for name in batch.column_names if name != self._output]
        return batch.select(kept).append_column(self._output, _lists(vectors, reasons)), reasons

    def __getstate__(self) -> dict[str, Any]:
        # On the other side is another node, with a server of its own.
        return {**self.__dict__, "_in_use": None}

    @property
    def embedder(self) -> Embedder:
        """The embedder of this actor, on the server of its GPU or node."""
        if self._in_use is None:
            from emberd.embedder import Embedder  # imported late: this is pickled on the driver

            self._in_use = Embedder(manager=nodes.manager()).replace(**self._settings)
        return self._in_use

    def _numpy(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self._bad_rows is BadRows.SET_ASIDE:
            raise SettingError(
                "Arrays of NumPy cannot be without a value, as rows that are set aside are. "
                "Give map_batches(batch_format='pyarrow')."
            )
        texts = self._texts(batch, list(batch))
        check_texts(texts)  # map() hands over single rows, with one text
        vectors, _ = self._embed(list(texts))
        return {**batch, self._output: vectors}

    def _arrow(self, batch: Any) -> Any:
        table, reasons = self.added_to(batch)
        if self._bad_rows is BadRows.RAISE:
            return table
        kept = [name for name in table.column_names if name != ERROR]
        return table.select(kept).append_column(ERROR, _words(reasons, table.num_rows))

    def _texts(self, batch: Any, columns: Sequence[str]) -> Any:
        if self._column not in columns:
            raise SettingError(
                f"There is no column {self._column!r}. There are: {', '.join(map(repr, columns))}."
            )
        return batch[self._column]

    def _embed(self, texts: Sequence[Any]) -> tuple[Floats, dict[int, str]]:
        """Return the vectors of all rows, zeros for bad ones, and why those are bad."""
        import numpy as np

        nodes.free_threads()
        length = self.embedder.settings.dimensions or self.embedder.endpoint().dimensions
        vectors = np.zeros((len(texts), length), np.float32)
        reasons = _without_text(texts)
        for place, reason in reasons.items():
            self._refuse(TextError(reason, index=place), texts[place])
        good = [place for place in range(len(texts)) if place not in reasons]
        iterate = getattr(self.embedder, _METHODS[self._role])
        outcomes = iterate((texts[place] for place in good), set_aside=True)
        for place, outcome in zip(good, outcomes, strict=True):
            if isinstance(outcome, TextError):
                reasons[place] = _NUMBERED.sub("The text", str(outcome))
                outcome.index = place  # it counted the good ones alone
                self._refuse(outcome, texts[place])
            else:
                vectors[place] = outcome
        return vectors, reasons

    def _refuse(self, error: TextError, text: Any) -> None:
        if self._bad_rows is BadRows.RAISE:
            error.add_note(
                f"It is row {error.index} of its batch, column {self._column!r}: {_excerpt(text)}. "
                f"bad_rows='set-aside' goes on without such rows."
            )
            raise error


_METHODS: Final = {Role.DOCUMENT: "iter_documents", Role.QUERY: "iter_queries"}


def refuse_what_cannot_travel(settings: Mapping[str, Any]) -> None:
    """Refuse what no pickle may carry.

    Raises:
        SettingError: It is among the settings; the text says what to do instead.
    """
    if settings.get("api_key") is not None:
        raise SettingError(
            "api_key would lie open in what Ray sends to the nodes. Leave it out, and set "
            "EMBERD_API_KEY in the environment of each node."
        )


def _without_text(texts: Sequence[Any]) -> dict[int, str]:
    """Return the places that hold no text, and what they hold."""
    wrong = {place: text for place, text in enumerate(texts) if not isinstance(text, str)}
    return {place: _told(text) for place, text in wrong.items()}


def _told(text: Any) -> str:
    if isinstance(text, Flaw):
        return text.reason
    if text is None:
        return "The text is null."
    return f"The text is of type {type(text).__name__}, not a string."


def _listed(column: Any) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        # Nothing checked the texts when they were written. The others are fine.
        values = [_value(each) for each in column]
    return values


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return Flaw("The text is not UTF-8.")


def _lists(vectors: Floats, reasons: Mapping[int, str]) -> Any:
    import numpy as np
    import pyarrow

    missing = np.zeros(len(vectors), bool)
    missing[list(reasons)] = True
    mask = pyarrow.array(missing) if reasons else None
    numbers = pyarrow.array(vectors.reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(numbers, vectors.shape[1], mask=mask)


def _words(reasons: Mapping[int, str], rows: int) -> Any:
    import pyarrow

    return pyarrow.array([reasons.get(place) for place in range(rows)], pyarrow.string())


def _excerpt(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= _EXCERPT else f"{shown[:_EXCERPT]}..."


def _one_of(kind: type[Any], given: str, name: str) -> Any:
    try:
        return kind(given)
    except ValueError:
        known = " or ".join(repr(str(each)) for each in kind)
        raise SettingError(f"{name}={given!r} is not known: give {known}.") from None
