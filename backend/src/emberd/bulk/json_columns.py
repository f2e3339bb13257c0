"""Lines of JSON as columns of one table, whatever types their values have.

The types are known when all lines have been seen. A field whose values no one type can hold
becomes a column of JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from emberd.bulk import arrow
from emberd.bulk.json_rows import parsed
from emberd.bulk.rows import Flaw

_UNFIT: Final = (ValueError, TypeError, OverflowError, NotImplementedError)


class UnfitError(Exception):
    """A value does not go into the type of its column.

    Attributes:
        column: The name of the column, which is one of JSON text from now on.
    """

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


class Columns:
    """The columns of some tables of lines.

    Args:
        tables: Each with a column of lines, and the vectors last; gone through once.
        first: The field that comes first where no line says otherwise.
    """

    def __init__(self, tables: Iterable[Any], first: str) -> None:
        self._types: dict[str, Any] = {}
        self._as_json: set[str] = set()
        for table in tables:
            self._learn(_objects(table))
        # Parquet has no structs without a field: what is still one now had none anywhere.
        for name in [name for name, kind in self._types.items() if _has_empty_struct(kind)]:
            self.turn_into_json(name)
        if not self._types:
            lib, _ = arrow.modules()
            self._types[first] = lib.string()

    def turn_into_json(self, column: str) -> None:
        """Write the values of ``column`` as JSON text."""
        lib, _ = arrow.modules()
        self._types[column] = lib.string()
        self._as_json.add(column)

    def table(self, lines: Any) -> Any:
        """Return ``lines`` as a table of these columns, with the vectors last.

        Raises:
            UnfitError: A value does not go into its column.
        """
        lib, _ = arrow.modules()
        objects = _objects(lines)
        names = [*self._types, lines.schema.names[-1]]
        arrays = [self._array(name, objects) for name in self._types]
        return lib.table([*arrays, lines.column(-1)], names=names)

    def _array(self, name: str, objects: list[dict[str, Any]]) -> Any:
        lib, _ = arrow.modules()
        values = [row.get(name) for row in objects]
        if name in self._as_json:
            values = [None if v is None else json.dumps(v, ensure_ascii=False) for v in values]
        try:
            return lib.array(values, self._types[name])
        except _UNFIT:
            raise UnfitError(name) from None

    def _learn(self, objects: list[dict[str, Any]]) -> None:
        for name in dict.fromkeys(name for row in objects for name in row):
            if name not in self._as_json:
                self._join(name, [row.get(name) for row in objects])

    def _join(self, name: str, values: list[Any]) -> None:
        lib, _ = arrow.modules()
        try:
            kind = lib.array(values).type
            pair = [lib.schema([(name, each)]) for each in (self._types.get(name, kind), kind)]
            joined = lib.unify_schemas(pair, promote_options="permissive").field(0).type
        except _UNFIT:
            self.turn_into_json(name)
        else:
            self._types[name] = joined


def _objects(table: Any) -> list[dict[str, Any]]:
    # By its place: the vectors may be called as it is.
    rows = [parsed(line) for line in table.column(0).to_pylist()]
    return [row for row in rows if not isinstance(row, Flaw)]


def _has_empty_struct(kind: Any) -> bool:
    lib, _ = arrow.modules()
    if lib.types.is_struct(kind) and kind.num_fields == 0:
        return True
    return any(_has_empty_struct(kind.field(i).type) for i in range(kind.num_fields))
