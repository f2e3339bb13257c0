"""The rows of a collection, as ``emberd reindex`` reads and writes them: Chroma, Qdrant, LanceDB.

A row is all that a store keeps of a text except its vector. Rows are read by pages of their ids, so
that the size of a collection does not matter, and written with all rows of an id at once: LanceDB
allows several, and LangChain uses that for equal texts.
"""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from emberd import env
from emberd.errors import SettingError
from emberd.stores import places
from emberd.system import redaction

PAGE_ROWS: Final = 1024

_QDRANT_POINTS: Final = 128  # a request of more may exceed the limit of the server, 32 MB
_NODE: Final = "_node_content"
_TEXT_NODES: Final = ("TextNode", "IndexNode", "Node", "Document", "")
_TEXT_FIELDS: Final = ("page_content", "text", "document")

Rows = dict[Any, list["Row"]]
"""The rows of each id, in an order that does not depend on the store."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row; equal to another one with the same id and content.

    Attributes:
        id: Its id in the store.
        content: All that the store keeps except the vector.
        text: What is embedded; None if there is no text.
        key: The content in a canonical form.
    """

    id: Any
    content: Any = field(compare=False)
    text: str | None = field(compare=False)
    key: str


class RowStore(ABC):
    """A database with collections.

    Attributes:
        where: Its address or folder, for people and for locks.
        text_field: Where the texts are; None for where the frameworks put them.
    """

    package: ClassVar[str]
    hint: ClassVar[str]  # how an application changes over where there is no switch

    def __init__(self, client: Any, where: str, text_field: str | None) -> None:
        self.client = client
        self.where = where
        self.text_field = text_field

    def place(self, name: str) -> places.Place:
        """Return the place of the identity of a collection."""
        return places.find(None, (self.client, name))

    def exists(self, name: str) -> bool:
        """Return whether there is a collection ``name``."""
        return self.place(name).exists()

    def resolve(self, name: str) -> str:
        """Return the name of the collection that ``name`` stands for."""
        return name

    def check_switch(self, name: str) -> None:  # noqa: B027 - Chroma has nothing to check
        """Raise unless ``switch`` is possible for ``name``.

        Raises:
            SettingError: The store cannot do it.
        """

    def switch(self, name: str, new: str, spare: str) -> None:
        """Let ``name`` stand for the collection ``new``.

        Args:
            name: The name that applications use.
            new: The new collection.
            spare: The name of the old collection afterwards, if it needs another one.
        """
        raise NotImplementedError

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
    def rows(self, name: str, ids: Sequence[Any]) -> Rows:
        """Return the rows of those ``ids`` that the collection has."""

    @abstractmethod
    def put(self, name: str, rows: Sequence[Row], vectors: Any) -> None:
        """Replace the rows of the ids of ``rows`` by these."""

    @abstractmethod
    def delete(self, name: str, ids: Sequence[Any]) -> None:
        """Delete all rows of ``ids``."""

    def _row(self, row_id: Any, content: Any, text: str | None, fields: Mapping[str, Any]) -> Row:
        if self.text_field is not None:
            found = fields.get(self.text_field)
            text = found if isinstance(found, str) else None
        elif isinstance(node := fields.get(_NODE), str):
            text = _llama_index_text(json.loads(node), text)
        key = json.dumps(content, sort_keys=True, default=repr)
        return Row(row_id, content, text, key)


def _grouped(rows: Iterator[Row]) -> Rows:
    found: Rows = {}
    for row in rows:
        found.setdefault(row.id, []).append(row)
    return {each: sorted(group, key=lambda row: row.key) for each, group in found.items()}


def _llama_index_text(node: Mapping[str, Any], stored: str | None) -> str | None:
    """Return what LlamaIndex embeds for a node: its metadata in a template, and its text."""
    kind = str(node.get("class_name") or "")
    if kind not in _TEXT_NODES:
        return None
    text = stored
    if text is None:
        text = node.get("text") or (node.get("text_resource") or {}).get("text") or ""
    template = str(node.get("metadata_template") or "{key}: {value}")
    separator = node.get("metadata_separator", node.get("metadata_seperator", "\n"))
    excluded = node.get("excluded_embed_metadata_keys") or ()
    metadata = str(separator).join(
        template.format(key=key, value=str(value))
        for key, value in (node.get("metadata") or {}).items()
        if key not in excluded
    )
    if kind not in ("Node", "Document"):
        metadata = metadata.strip()
    if not metadata:
        return text
    whole = str(node.get("text_template") or "{metadata_str}\n\n{content}")
    return whole.format(content=text, metadata_str=metadata).strip()


class _ChromaRows(RowStore):
    package = "chromadb"
    hint = "pass its name to the application"

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

    def rows(self, name: str, ids: Sequence[Any]) -> Rows:
        columns = ["documents", "metadatas", "uris"]
        found = self._collection(name).get(ids=list(ids), include=columns)
        parts = zip(found["ids"], *(found[column] for column in columns), strict=True)
        return _grouped(
            self._row(row_id, dict(zip(columns, values, strict=True)), values[0], values[1] or {})
            for row_id, *values in parts
        )

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
            if chosen:
                contents = [rows[number].content for number in chosen]
                uris = [content["uris"] for content in contents]
                collection.add(
                    ids=[rows[number].id for number in chosen],
                    embeddings=vectors[chosen],
                    metadatas=[content["metadatas"] for content in contents],
                    documents=[each["documents"] for each in contents] if with_text else None,
                    uris=uris if any(uris) else None,
                )

    def delete(self, name: str, ids: Sequence[Any]) -> None:
        self._collection(name).delete(ids=list(ids))

    def switch(self, name: str, new: str, spare: str) -> None:
        # After a kill in between, only the second step is left to do.
        if self.exists(name):
            self._collection(name).modify(name=spare)
        self._collection(new).modify(name=name)

    def _collection(self, name: str) -> Any:
        return self.client.get_collection(name, embedding_function=None)


class _QdrantRows(RowStore):
    package = "qdrant_client"
    hint = "pass its name to the application, or let an alias stand for it"

    def resolve(self, name: str) -> str:
        return self._aliases().get(name, name)

    def check_switch(self, name: str) -> None:
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

    def create(self, name: str, like: str, dimensions: int, identity: str) -> None:
        from qdrant_client import models

        info = self.client.get_collection(like)
        config, shards = info.config, info.config.params
        dense = self._dense(like)
        resized = shards.vectors[dense] if dense else shards.vectors
        resized = resized.model_copy(update={"size": dimensions})
        hnsw = config.hnsw_config.model_dump(include=set(models.HnswConfigDiff.model_fields))
        self.client.create_collection(
            name,
            vectors_config={dense: resized} if dense else resized,
            sparse_vectors_config=shards.sparse_vectors,
            shard_number=shards.shard_number,
            replication_factor=shards.replication_factor,
            write_consistency_factor=shards.write_consistency_factor,
            on_disk_payload=shards.on_disk_payload,
            hnsw_config=models.HnswConfigDiff(**hnsw),
            quantization_config=config.quantization_config,
            metadata={**(config.metadata or {}), places.KEY: identity},
        )

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

    def rows(self, name: str, ids: Sequence[Any]) -> Rows:
        sparse = list(self.client.get_collection(name).config.params.sparse_vectors or {})
        found = self.client.retrieve(name, list(ids), with_payload=True, with_vectors=sparse)
        return _grouped(self._point(point) for point in found)

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
        for begin in range(0, len(points), _QDRANT_POINTS):
            self.client.upsert(name, points[begin : begin + _QDRANT_POINTS], wait=True)

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

    def _point(self, point: Any) -> Row:
        payload = point.payload or {}
        vectors = point.vector if isinstance(point.vector, dict) else {}
        sparse = {kind: value.model_dump() for kind, value in vectors.items()}
        texts = (payload[name] for name in _TEXT_FIELDS if isinstance(payload.get(name), str))
        text = None if _NODE in payload else next(texts, None)
        return self._row(point.id, {"payload": payload, "sparse": sparse}, text, payload)


class _LanceRows(RowStore):
    package = "lancedb"
    hint = "pass its name to the application, and create its indexes"

    def check_switch(self, name: str) -> None:
        raise SettingError(
            f"LanceDB cannot rename the table {name!r}. Omit --switch and pass the name of the new "
            f"table to the application."
        )

    def create(self, name: str, like: str, dimensions: int, identity: str) -> None:
        import pyarrow

        schema = self.client.open_table(like).schema
        index = schema.get_field_index(self._vector(like))
        column = schema.field(index)
        resized = column.with_type(pyarrow.list_(column.type.value_type, dimensions))
        self.place(name).write(identity)
        self.client.create_table(name, schema=schema.set(index, resized))

    def count(self, name: str) -> int:
        return int(self.client.open_table(name).count_rows())

    def id_pages(self, name: str) -> Iterator[list[Any]]:
        for batch in self.client.open_table(name).search().select(["id"]).to_batches(PAGE_ROWS):
            yield list(dict.fromkeys(batch["id"].to_pylist()))

    def rows(self, name: str, ids: Sequence[Any]) -> Rows:
        table = self.client.open_table(name)
        columns = [column for column in table.schema.names if column != self._vector(name)]
        found = table.search().where(_among(ids)).select(columns).to_arrow().to_pylist()
        return _grouped(self._content(content) for content in found)

    def put(self, name: str, rows: Sequence[Row], vectors: Any) -> None:
        import pyarrow

        table = self.client.open_table(name)
        ids = {row.id for row in rows}
        if table.count_rows(_among(ids)):
            table.delete(_among(ids))
        column = self._vector(name)
        contents = [
            {**row.content, column: vector} for row, vector in zip(rows, vectors, strict=True)
        ]
        table.add(pyarrow.Table.from_pylist(contents, schema=table.schema))

    def delete(self, name: str, ids: Sequence[Any]) -> None:
        self.client.open_table(name).delete(_among(ids))

    def finish(self, name: str, like: str) -> None:  # noqa: ARG002 - of all stores
        self.client.open_table(name).optimize()  # each page was a file of its own

    def _vector(self, name: str) -> str:
        import pyarrow

        schema = self.client.open_table(name).schema
        found = [each.name for each in schema if pyarrow.types.is_fixed_size_list(each.type)]
        if len(found) != 1 or "id" not in schema.names:
            raise SettingError(
                f"The LanceDB table {name!r} has the columns {', '.join(schema.names)}; only a "
                f"table with a column id and one column of vectors can be embedded again."
            )
        return str(found[0])

    def _content(self, content: dict[str, Any]) -> Row:
        metadata = content.get("metadata")
        fields = {**metadata, **content} if isinstance(metadata, dict) else content
        return self._row(content["id"], content, content.get("text"), fields)


def _among(ids: Any) -> str:
    quoted = [
        "'" + each.replace("'", "''") + "'" if isinstance(each, str) else str(each) for each in ids
    ]
    return f"id IN ({', '.join(quoted)})"


# ---------------------------------------------------------------- opening a store

_KINDS: Final[dict[str, type[RowStore]]] = {
    "chroma": _ChromaRows,
    "qdrant": _QdrantRows,
    "lancedb": _LanceRows,
}
# What a folder of each contains.
_MARKS: Final = {"chroma": "chroma.sqlite3", "qdrant": "meta.json", "lancedb": "*.lance"}


def open_store(location: str, text_field: str | None = None) -> RowStore:
    """Return the store at ``location``.

    Args:
        location: A folder; or the kind of the store, a colon, and a folder or a URL:
            ``qdrant:http://localhost:6333``.
        text_field: The field of the metadata or the payload that has the texts; None for where
            LangChain and LlamaIndex put them.

    Raises:
        SettingError: There is no store, its kind is unknown, or its client is not installed.
    """
    kind, colon, place = location.partition(":")
    if not colon or kind not in _KINDS:
        kind, place = "", location
    is_url = "://" in place
    if not is_url:
        # A client would create a store in a folder that has none.
        found = [each for each, mark in _MARKS.items() if any(Path(place).glob(mark))]
        kind = kind if kind in found else "" if kind else next(iter(found), "")
    if not kind:
        raise SettingError(
            f"{location} is not a folder of Chroma, Qdrant or LanceDB. Check the path; for a "
            f"server, write its kind before the URL: qdrant:http://localhost:6333, "
            f"chroma:http://localhost:8000."
        )
    made = _KINDS[kind]
    try:
        package = importlib.import_module(made.package)
    except ImportError as error:
        name = made.package.replace("_", "-")
        raise SettingError(
            f"{location} needs {name}, which cannot be imported here ({error}). Run: pip install "
            f"{name}"
        ) from error
    where = place if is_url else str(Path(place).resolve())
    key = env.text(env.STORE_API_KEY)
    if kind == "lancedb":
        client = package.connect(where)
    elif kind == "qdrant":
        client = package.QdrantClient(url=where, api_key=key) if is_url else None
        client = client or package.QdrantClient(path=where)
    elif is_url:
        parts = urlsplit(where)
        secure = parts.scheme == "https"
        client = package.HttpClient(
            parts.hostname,
            parts.port or (443 if secure else 8000),
            ssl=secure,
            headers={"Authorization": f"Bearer {key}"} if key else None,
        )
    else:
        client = package.PersistentClient(where)
    shown = redaction.origin(where) if is_url else where
    return made(client, f"{kind}:{shown}", text_field)
