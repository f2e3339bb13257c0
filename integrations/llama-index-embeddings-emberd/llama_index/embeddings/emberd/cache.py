"""LlamaIndex's ``embeddings_cache`` with keys that contain the embedder's identity and the role.

``BaseEmbedding`` uses the bare text as the key, whatever the role, the model or the dimensions are:
a query would get the vector of a document with the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Final

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

# Change it with whatever a key or a stored vector means: entries of another one are not found.
_FORMAT: Final = "emberd 1"
_DOCUMENT: Final = "document"
_QUERY: Final = "query"
# BaseEmbedding uses the cache within the call or in tasks of the call, which inherit the value.
_role: ContextVar[str] = ContextVar("emberd_role", default=_DOCUMENT)


def queries() -> AbstractContextManager[None]:
    """Look up and store texts as queries in this block."""
    return _in_role(_QUERY)


def documents() -> AbstractContextManager[None]:
    """Look up and store texts as documents, also if a callback embeds them during a query."""
    return _in_role(_DOCUMENT)


@contextmanager
def _in_role(role: str) -> Iterator[None]:
    token = _role.set(role)
    try:
        yield
    finally:
        _role.reset(token)


class RoleKeyedStore(BaseKVStore):
    """A user's store, with keys that contain what the vectors are made with and the role.

    Args:
        store: Where the vectors are kept; its owner persists it.
        made_with: What the vectors are made with, without a line break.
    """

    def __init__(self, store: BaseKVStore, made_with: str) -> None:
        # The store of another object is not wrapped twice.
        self.store: BaseKVStore = store.store if isinstance(store, RoleKeyedStore) else store
        self._made_with = made_with

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RoleKeyedStore):
            return NotImplemented
        return self.store is other.store and self._made_with == other._made_with

    def __hash__(self) -> int:
        return hash((id(self.store), self._made_with))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Return what is stored for the text ``key`` in the current role."""
        found: dict[str, Any] | None = self.store.get(self._key(key), collection)
        return found

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Like ``get``, on the running event loop."""
        found: dict[str, Any] | None = await self.store.aget(self._key(key), collection)
        return found

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Store ``val`` for the text ``key`` in the current role."""
        self.store.put(self._key(key), val, collection)

    async def aput(
        self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION
    ) -> None:
        """Like ``put``, on the running event loop."""
        await self.store.aput(self._key(key), val, collection)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Delete what is stored for the text ``key`` in the current role."""
        return self.store.delete(self._key(key), collection)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Like ``delete``, on the running event loop."""
        return await self.store.adelete(self._key(key), collection)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Return all entries, with the keys of the store."""
        return self.store.get_all(collection)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Like ``get_all``, on the running event loop."""
        return await self.store.aget_all(collection)

    def _key(self, text: str) -> str:
        # Only the text may contain a line break, so different texts or roles have different keys.
        return f"{_FORMAT}\n{self._made_with}\n{_role.get()}\n{text}"
