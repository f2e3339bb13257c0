"""LlamaIndex's ``embeddings_cache`` under keys that cannot be mistaken for each other.

``BaseEmbedding`` asks its cache for the bare text, whatever the role, the model or the length:
a query would get the vector of a document with the same words. Here each key holds the identity
of the embedder and the role as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Final

from llama_index.core.storage.kvstore.types import DEFAULT_COLLECTION, BaseKVStore

_DOCUMENT: Final = "document"
_QUERY: Final = "query"
# BaseEmbedding asks within the call, or in tasks that the call makes, and these see the same.
_role: ContextVar[str] = ContextVar("emberd_role", default=_DOCUMENT)


def queries() -> AbstractContextManager[None]:
    """Have what the cache is asked for in this block count as queries."""
    return _in_role(_QUERY)


def documents() -> AbstractContextManager[None]:
    """Have it count as documents, also where a callback asks in the middle of a query."""
    return _in_role(_DOCUMENT)


@contextmanager
def _in_role(role: str) -> Iterator[None]:
    token = _role.set(role)
    try:
        yield
    finally:
        _role.reset(token)


class RoleKeyedStore(BaseKVStore):
    """A store of the user's, asked under keys of emberd's.

    Args:
        store: Where the vectors are kept; persisting it is its owner's to do.
        made_with: What the vectors are made with, without a line break.
    """

    def __init__(self, store: BaseKVStore, made_with: str) -> None:
        # One that comes from another object is not wrapped twice.
        self.store: BaseKVStore = store.store if isinstance(store, RoleKeyedStore) else store
        self._made_with = made_with

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RoleKeyedStore):
            return NotImplemented
        return self.store is other.store and self._made_with == other._made_with

    def __hash__(self) -> int:
        return hash((id(self.store), self._made_with))

    def get(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Return what is kept for the text ``key`` in the role at hand."""
        found: dict[str, Any] | None = self.store.get(self._key(key), collection)
        return found

    async def aget(self, key: str, collection: str = DEFAULT_COLLECTION) -> dict[str, Any] | None:
        """Do as ``get``."""
        found: dict[str, Any] | None = await self.store.aget(self._key(key), collection)
        return found

    def put(self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION) -> None:
        """Keep ``val`` for the text ``key`` in the role at hand."""
        self.store.put(self._key(key), val, collection)

    async def aput(
        self, key: str, val: dict[str, Any], collection: str = DEFAULT_COLLECTION
    ) -> None:
        """Do as ``put``."""
        await self.store.aput(self._key(key), val, collection)

    def delete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Forget the text ``key`` in the role at hand."""
        return self.store.delete(self._key(key), collection)

    async def adelete(self, key: str, collection: str = DEFAULT_COLLECTION) -> bool:
        """Do as ``delete``."""
        return await self.store.adelete(self._key(key), collection)

    def get_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Return all that the store holds, under its own keys."""
        return self.store.get_all(collection)

    async def aget_all(self, collection: str = DEFAULT_COLLECTION) -> dict[str, dict[str, Any]]:
        """Do as ``get_all``."""
        return await self.store.aget_all(collection)

    def _key(self, text: str) -> str:
        # Neither of the first two has a line break in it, so no two keys run into each other.
        return f"{self._made_with}\n{_role.get()}\n{text}"
