"""The rows of a collection, as ``emberd reindex`` reads and writes them: Chroma, Qdrant, LanceDB.

A row is all that a store keeps of a text except its vector. Rows are read by pages of their ids, so
that the size of a collection does not matter, and written with all rows of an id at once: LanceDB
allows several, and LangChain uses that for equal texts.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from emberd.errors import CollectionRowError, EmberdError, IdentityError, SettingError
from emberd.stores import places

PAGE_ROWS: Final = 1024

_REQUEST_ROWS: Final = 128  # of long texts, more may exceed the limit of a server, 32 or 40 MB
NODE: Final = "_node_content"
"""The field in which LlamaIndex stores a node."""
_TEXT_FIELDS: Final = ("page_content", "text", "document")
_CHROMA_NAME: Final = 512  # most characters of the name of a collection

Rows = dict[Any, list["Row"]]
"""The rows of each id, in an order that does not depend on the store."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row; equal to another one with the same id and content.

    Attributes:
        id: Its id in the store.
        content: All that the store keeps except the vector.
        key: The content in a canonical form.
        length: The length of its vector; None if it was not read, or there is none.
    """

    id: Any
    content: Any = field(compare=False)
    key: str
    length: int | None = field(default=None, compare=False)


class RowStore(ABC):
    """A database with collections.

    Attributes:
        where: Its address or folder, for messages and for locks.
    """

    package: ClassVar[str]
    names: ClassVar[re.Pattern[str]]  # of the collections that can be created
    hint: ClassVar[str]  # what to do to use the new collection without a switch

    def __init__(self, client: Any, where: str) -> None:
        self.client = client
        self.where = where

    def place(self, name: str) -> places.Place:
        """Return the place of the identity of a collection."""
        return places.find(None, (self.client, name))

    def exists(self, name: str) -> bool:
        """Return whether there is a collection ``name``."""
        return self.place(name).exists()

    def resolve(self, name: str) -> str:
        """Return the name of the collection that ``name`` refers to."""
        return name

    def renamed(self, name: str) -> list[str]:  # noqa: ARG002 - only Chroma renames
        """Return the collections that a switch has renamed from ``name``."""
        return []

    def check_change(self, name: str, spare: str) -> None:  # noqa: B027 - only Chroma renames
        """Raise if the collection ``name`` may not be the old one, because ``spare`` exists.

        Raises:
            SettingError: It is unclear which of them is the old one.
        """

    @abstractmethod
    def check_switch(self, name: str, spare: str) -> None:
        """Raise unless ``switch`` is possible.

        Raises:
            SettingError: The store cannot do it, or not with these names.
        """

    def switch(self, name: str, new: str, spare: str) -> None:
        """Make ``name`` refer to the collection ``new``.

        Args:
            name: The name that applications use.
            new: The new collection.
            spare: The name of the old collection afterwards, if it needs another one.
        """
        raise NotImplementedError

    def check_name(self, name: str) -> None:
        """Raise unless a new collection can have this name.

        Raises:
            SettingError: The store does not allow it.
        """
        if not self.names.fullmatch(name):
            raise SettingError(
                f"{name!r} cannot be the name of a new collection: the store allows only "
                f"{self.names.pattern}. Pass another name with --to."
            )

    def check_create(self, name: str, like: str, identity: str) -> None:  # noqa: B027 - Chroma can do it
        """Raise unless ``create`` is possible.

        Raises:
            SettingError: The collection ``like`` has vectors that cannot be embedded again.
            IdentityError: There is an identity of ``name``, which does not exist.
        """

    @abstractmethod
    def create(self, name: str, like: str, dimensions: int, identity: str) -> None:
        """Create an empty collection like another one, whose identity is ``identity``."""

    def finish(self, name: str, like: str) -> None:  # noqa: B027 - Chroma needs nothing
        """Do what a filled collection needs before it is used."""

    @abstractmethod
    def count(self, name: str) -> int:
        """Return the number of rows."""

    @abstractmethod
    def id_pages(self, name: str) -> Iterator[list[Any]]:
        """Yield all ids, about ``PAGE_ROWS`` at a time."""

    @abstractmethod
    def rows(self, name: str, ids: Sequence[Any], *, lengths: bool = False) -> Rows:
        """Return the rows of those ``ids`` that the collection has.

        Args:
            name: The collection.
            ids: The ids.
            lengths: Read the vectors too, for ``Row.length``.
        """

    @abstractmethod
    def put(self, name: str, rows: Sequence[Row], vectors: Any) -> None:
        """Replace the rows of the ids of ``rows`` by these."""

    @abstractmethod
    def delete(self, name: str, ids: Sequence[Any]) -> None:
        """Delete all rows of ``ids``."""

    @abstractmethod
    def fields(self, content: Any) -> tuple[Mapping[str, Any], str | None]:
        """Return the fields of a row by name, and its text as LangChain stores it."""


def _row(row_id: Any, content: Any, length: int | None) -> Row:
    key = json.dumps(content, sort_keys=True, default=repr)
    return Row(row_id, content, key, length)


def _grouped(rows: Iterator[Row]) -> Rows:
    found: Rows = {}
    for row in rows:
        found.setdefault(row.id, []).append(row)
    return {each: sorted(group, key=lambda row: row.key) for each, group in found.items()}


class _ChromaRows(RowStore):
    package = "chromadb"
    names = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
    hint = "pass its name to the application"

    def renamed(self, name: str) -> list[str]:
        names = [collection.name for collection in self.client.list_collections()]
        return sorted(each for each in names if each.startswith(f"{name}-before-"))

    def check_change(self, name: str, spare: str) -> None:
        if self.exists(spare):
            raise SettingError(
                f"The collection {spare!r} ({self.count(spare)} rows) exists beside {name!r} "
                f"({self.count(name)} rows). Either an earlier switch left it, or a switch was "
                f"interrupted and an application has written to a new {name!r} since; then "
                f"{spare!r} has the old rows. Rename or delete the one that is not the old "
                f"collection, and run the command again."
            )

    def check_switch(self, name: str, spare: str) -> None:  # noqa: ARG002 - of other stores
        if len(spare) > _CHROMA_NAME:
            raise SettingError(
                f"--switch renames the old collection to {spare!r}, which has {len(spare)} "
                f"characters; Chroma allows {_CHROMA_NAME}. Omit --switch, and pass the name of "
                f"the new collection to the application."
            )

    def create(self, name: str, like: str, dimensions: int, identity: str) -> None:  # noqa: ARG002 - the first vectors decide
        old = self._collection(like)
        metadata = {k: v for k, v in (old.metadata or {}).items() if not k.startswith("hnsw:")}
        index = {kind: old.configuration.get(kind) for kind in ("hnsw", "spann")}
        self.client.create_collection(
            name,
            configuration={kind: value for kind, value in index.items() if value},
            metadata={**metadata, places.KEY: identity},
            embedding_function=None,
        )

    def count(self, name: str) -> int:
        return int(self._collection(name).count())

    def id_pages(self, name: str) -> Iterator[list[Any]]:
        collection, offset = self._collection(name), 0
        while ids := collection.get(limit=PAGE_ROWS, offset=offset, include=[])["ids"]:
            yield ids
            offset += len(ids)

    def rows(self, name: str, ids: Sequence[Any], *, lengths: bool = False) -> Rows:
        columns = ["documents", "metadatas", "uris"]
        more = ["embeddings"] if lengths else []
        found = self._collection(name).get(ids=list(ids), include=columns + more)
        vectors = found["embeddings"] if lengths else [None] * len(found["ids"])
        parts = zip(found["ids"], vectors, *(found[column] for column in columns), strict=True)
        return _grouped(
            _row(
                row_id,
                dict(zip(columns, values, strict=True)),
                None if vector is None else len(vector),
            )
            for row_id, vector, *values in parts
        )

    def fields(self, content: Any) -> tuple[Mapping[str, Any], str | None]:
        return content["metadatas"] or {}, content["documents"]

    def put(self, name: str, rows: Sequence[Row], vectors: Any) -> None:
        # Deleted first: an update keeps the keys of the metadata that the new ones lack.
        collection = self._collection(name)
        if present := collection.get(ids=[row.id for row in rows], include=[])["ids"]:
            collection.delete(ids=present)
        for with_text in (True, False):
            chosen = [
                number
                for number, row in enumerate(rows)
                if (row.content["documents"] is not None) is with_text
            ]
            for begin in range(0, len(chosen), _REQUEST_ROWS):
                part = chosen[begin : begin + _REQUEST_ROWS]
                contents = [rows[number].content for number in part]
                uris = [content["uris"] for content in contents]
                collection.add(
                    ids=[rows[number].id for number in part],
                    embeddings=vectors[part],
                    metadatas=[content["metadatas"] for content in contents],
                    documents=[each["documents"] for each in contents] if with_text else None,
                    uris=uris if any(uris) else None,
                )

    def delete(self, name: str, ids: Sequence[Any]) -> None:
        self._collection(name).delete(ids=list(ids))

    def switch(self, name: str, new: str, spare: str) -> None:
        if self.exists(name):
            if not self.exists(spare):
                self._collection(name).modify(name=spare)
            elif self.count(name) == 0:
                # An application has created it since a switch was interrupted.
                self.client.delete_collection(name)
            else:
                self.check_change(name, spare)
        self._collection(new).modify(name=name)

    def _collection(self, name: str) -> Any:
        return self.client.get_collection(name, embedding_function=None)


class _QdrantRows(RowStore):
    package = "qdrant_client"
    names = re.compile(r"""[^<>:"/\\|?*\x00\x1f]{1,255}""")
    hint = "pass its name to the application, or point an alias to it"

    def resolve(self, name: str) -> str:
        return self._aliases().get(name, name)

    def check_switch(self, name: str, spare: str) -> None:  # noqa: ARG002 - an alias needs none
        if name not in self._aliases():
            raise SettingError(
                f"--switch changes an alias, and {name!r} is a collection, which Qdrant cannot "
                f"rename. Omit --switch and pass the name of the new collection to the "
                f"application; or let the application use an alias."
            )

    def switch(self, name: str, new: str, spare: str) -> None:  # noqa: ARG002 - the old one keeps its name
        from qdrant_client import models

        self.client.update_collection_aliases(
            [
                models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)),
                models.CreateAliasOperation(
                    create_alias=models.CreateAlias(collection_name=new, alias_name=name)
                ),
            ]
        )

    def check_create(self, name: str, like: str, identity: str) -> None:  # noqa: ARG002 - of LanceDB
        from qdrant_client import models

        dense = self._dense(like)
        vectors = self.client.get_collection(like).config.params.vectors
        datatype = (vectors[dense] if dense else vectors).datatype
        if datatype == models.Datatype.UINT8:
            raise SettingError(
                f"The Qdrant collection {like!r} has vectors of {datatype.value}; only vectors of "
                f"floating-point numbers can be embedded again."
            )

    def create(self, name: str, like: str, dimensions: int, identity: str) -> None:
        from qdrant_client import models

        def given(kind: type[Any], found: Any) -> Any:
            """Return the settings of a collection in the form in which one is created."""
            return (
                None if found is None else kind(**found.model_dump(include=set(kind.model_fields)))
            )

        info = self.client.get_collection(like)
        config, shards = info.config, info.config.params
        dense = self._dense(like)
        resized = shards.vectors[dense] if dense else shards.vectors
        resized = resized.model_copy(update={"size": dimensions})
        self.client.create_collection(
            name,
            vectors_config={dense: resized} if dense else resized,
            sparse_vectors_config=shards.sparse_vectors,
            shard_number=shards.shard_number,
            replication_factor=shards.replication_factor,
            write_consistency_factor=shards.write_consistency_factor,
            on_disk_payload=shards.on_disk_payload,
            hnsw_config=given(models.HnswConfigDiff, config.hnsw_config),
            optimizers_config=given(models.OptimizersConfigDiff, config.optimizer_config),
            strict_mode_config=given(models.StrictModeConfig, config.strict_mode_config),
            quantization_config=config.quantization_config,
            metadata={**(config.metadata or {}), places.KEY: identity},
        )
        try:
            self.place(name).require_kept()
        except EmberdError:
            self.client.delete_collection(name)
            raise

    def count(self, name: str) -> int:
        return int(self.client.count(name, exact=True).count)

    def id_pages(self, name: str) -> Iterator[list[Any]]:
        offset: Any = None
        while True:
            points, offset = self.client.scroll(
                name, limit=PAGE_ROWS, offset=offset, with_payload=False, with_vectors=False
            )
            if points:
                yield [point.id for point in points]
            if offset is None:
                return

    def rows(self, name: str, ids: Sequence[Any], *, lengths: bool = False) -> Rows:
        dense = self._dense(name)
        wanted = list(self.client.get_collection(name).config.params.sparse_vectors or {})
        found = self.client.retrieve(
            name, list(ids), with_payload=True, with_vectors=lengths or wanted
        )
        return _grouped(self._point(point, dense) for point in found)

    def fields(self, content: Any) -> tuple[Mapping[str, Any], str | None]:
        payload = content["payload"]
        texts = (payload[name] for name in _TEXT_FIELDS if isinstance(payload.get(name), str))
        return payload, None if NODE in payload else next(texts, None)

    def put(self, name: str, rows: Sequence[Row], vectors: Any) -> None:
        from qdrant_client import models

        dense = self._dense(name)
        points = []
        for row, vector in zip(rows, vectors.tolist(), strict=True):
            sparse = {
                kind: models.SparseVector(**value) for kind, value in row.content["sparse"].items()
            }
            whole = {dense or "": vector, **sparse} if dense or sparse else vector
            points.append(
                models.PointStruct(id=row.id, vector=whole, payload=row.content["payload"])
            )
        for begin in range(0, len(points), _REQUEST_ROWS):
            self.client.upsert(name, points[begin : begin + _REQUEST_ROWS], wait=True)

    def delete(self, name: str, ids: Sequence[Any]) -> None:
        self.client.delete(name, list(ids), wait=True)

    def finish(self, name: str, like: str) -> None:
        for field_name, found in self.client.get_collection(like).payload_schema.items():
            schema = found.params or found.data_type
            self.client.create_payload_index(name, field_name, field_schema=schema)

    def _aliases(self) -> dict[str, str]:
        return {each.alias_name: each.collection_name for each in self.client.get_aliases().aliases}

    def _dense(self, name: str) -> str:
        """Return the name of the dense vector; empty if it has none."""
        vectors = self.client.get_collection(name).config.params.vectors
        named = vectors if isinstance(vectors, dict) else {"": vectors}
        if len(named) != 1 or next(iter(named.values())).multivector_config:
            raise SettingError(
                f"The Qdrant collection {name!r} has the vectors {', '.join(named) or 'none'}; "
                f"only a collection with one dense vector for each point can be embedded again."
            )
        return str(next(iter(named)))

    def _point(self, point: Any, dense: str) -> Row:
        vectors = point.vector if isinstance(point.vector, dict) else {"": point.vector}
        vector = vectors.pop(dense, None)
        sparse = {kind: value.model_dump() for kind, value in vectors.items() if value is not None}
        content = {"payload": point.payload or {}, "sparse": sparse}
        return _row(point.id, content, None if vector is None else len(vector))


class _LanceRows(RowStore):
    package = "lancedb"
    names = re.compile(r"[a-zA-Z0-9._-]{1,200}")
    hint = "pass its name to the application, and create its indexes"

    def check_switch(self, name: str, spare: str) -> None:  # noqa: ARG002 - of other stores
        raise SettingError(
            f"LanceDB cannot rename the table {name!r}. Omit --switch and pass the name of the new "
            f"table to the application."
        )

    def check_create(self, name: str, like: str, identity: str) -> None:
        self._vector(like)
        self._check_leftover(name, self.place(name).read(), identity)

    def _check_leftover(self, name: str, kept: str | None, identity: str) -> None:
        # The same identity is that of a run that was killed before it created the table.
        if kept not in (None, identity):
            raise IdentityError(
                f"The LanceDB table {name!r} does not exist, but its identity does: {kept!r}. It "
                f"was left by a deleted table, or another process is about to create the table. "
                f"Delete the table emberd_identity_{name}, or pass another name with --to.",
                kept=str(kept),
                now=identity,
            )

    def create(self, name: str, like: str, dimensions: int, identity: str) -> None:
        import pyarrow

        schema = self.client.open_table(like).schema
        index = schema.get_field_index(self._vector(like))
        column = schema.field(index)
        resized = column.with_type(pyarrow.list_(column.type.value_type, dimensions))
        self._check_leftover(name, self.place(name).claim(identity), identity)
        self.client.create_table(name, schema=schema.set(index, resized))

    def count(self, name: str) -> int:
        return int(self.client.open_table(name).count_rows())

    def id_pages(self, name: str) -> Iterator[list[Any]]:
        for batch in self.client.open_table(name).search().select(["id"]).to_batches(PAGE_ROWS):
            ids = list(dict.fromkeys(batch["id"].to_pylist()))
            if None in ids:
                raise CollectionRowError(
                    f"The LanceDB table {name!r} has a row whose id is NULL, so it cannot be found "
                    f"again. Give each row an id, or delete those without.",
                    row=None,
                )
            yield ids

    def rows(self, name: str, ids: Sequence[Any], *, lengths: bool = False) -> Rows:
        from pyarrow import compute

        table, vector = self.client.open_table(name), self._vector(name)
        columns = [column for column in table.schema.names if lengths or column != vector]
        found = table.search().where(_among(ids)).select(columns).to_arrow()
        sizes = [None] * len(found)
        if lengths:
            sizes = compute.list_value_length(found[vector]).to_pylist()
            found = found.drop_columns([vector])
        return _grouped(
            _row(content["id"], content, size)
            for content, size in zip(found.to_pylist(), sizes, strict=True)
        )

    def fields(self, content: Any) -> tuple[Mapping[str, Any], str | None]:
        metadata = content.get("metadata")
        fields = {**metadata, **content} if isinstance(metadata, dict) else content
        return fields, content.get("text")

    def put(self, name: str, rows: Sequence[Row], vectors: Any) -> None:
        import pyarrow

        table = self.client.open_table(name)
        ids = {row.id for row in rows}
        if table.count_rows(_among(ids)):
            table.delete(_among(ids))
        column = self._vector(name)
        numbers = table.schema.field(column).type.value_type.to_pandas_dtype()
        contents = [
            {**row.content, column: vector}
            for row, vector in zip(rows, vectors.astype(numbers), strict=True)
        ]
        table.add(pyarrow.Table.from_pylist(contents, schema=table.schema))

    def delete(self, name: str, ids: Sequence[Any]) -> None:
        self.client.open_table(name).delete(_among(ids))

    def finish(self, name: str, like: str) -> None:  # noqa: ARG002 - of all stores
        self.client.open_table(name).optimize()  # each page was a separate file

    def _vector(self, name: str) -> str:
        """Return the name of the column of the vectors."""
        from pyarrow import types

        schema = self.client.open_table(name).schema
        found = [each for each in schema if types.is_fixed_size_list(each.type)]
        if len(found) != 1 or "id" not in schema.names:
            raise SettingError(
                f"The LanceDB table {name!r} has the columns {', '.join(schema.names)}; only a "
                f"table with a column id and one column of vectors can be embedded again."
            )
        (vector,), row_id = found, schema.field("id")
        is_text = types.is_string(row_id.type) or types.is_large_string(row_id.type)
        if not (is_text or types.is_integer(row_id.type)):
            raise SettingError(
                f"The column id of the LanceDB table {name!r} has the type {row_id.type}; only a "
                f"table whose ids are texts or integers can be embedded again."
            )
        if not types.is_floating(vector.type.value_type):
            raise SettingError(
                f"The column {vector.name} of the LanceDB table {name!r} has vectors of "
                f"{vector.type.value_type}; only vectors of floating-point numbers can be embedded "
                f"again."
            )
        return str(vector.name)


def _among(ids: Any) -> str:
    quoted = [
        "'" + each.replace("'", "''") + "'" if isinstance(each, str) else str(each) for each in ids
    ]
    return f"id IN ({', '.join(quoted)})"


KINDS: Final[dict[str, type[RowStore]]] = {
    "chroma": _ChromaRows,
    "qdrant": _QdrantRows,
    "lancedb": _LanceRows,
}
"""The stores by their names in a location."""
