"""The guard of an index: its identity is stored when it is new, and compared when it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from emberd import index_identity
from emberd.errors import EmberdError, IdentityError, SettingError
from emberd.stores import places

if TYPE_CHECKING:
    from emberd.embedder import Embedder

StoreT = TypeVar("StoreT")

_SHOWN: Final = 300


def guarded(store: StoreT, embedder: Any, *, at: Any = None, adopt: bool = False) -> StoreT:
    """Return ``store`` if its vectors are those of ``embedder``; store its identity if it is new.

    Args:
        store: A vector store or an index; returned as it is.
        embedder: What embeds for it: an ``Embedder``, ``EmberdEmbeddings`` or ``EmberdEmbedding``.
        at: Where the index is, if the store does not say so through public attributes: a client of
            the store and the name of the collection or table, or the path to which it is saved.
        adopt: Accept an index that has rows and no identity, and store this one: only if its rows
            were made by an equal embedder.

    Raises:
        IdentityError: The index was made with other settings, has rows but no identity, or is
            incomplete; the text says what to delete if the index was deleted without its identity.
        SettingError: It is unknown where the index is, or there is no place for its identity yet.
        EmberdError: The store failed.
    """
    # An index of LlamaIndex has its store as an attribute.
    place = places.find(getattr(store, "vector_store", store), at)
    used = _embedder(embedder)
    now = used.identity
    # A vector store of LangChain shows what embeds for it.
    own = getattr(getattr(store, "embeddings", None), "embedder", None)
    if isinstance(own, type(used)) and (
        different := index_identity.differences(own.identity, now, used.settings)
    ):
        raise IdentityError(
            f"The store embeds with {own.identity!r}, but the embedder passed to guarded is "
            f"{now!r}: {different}. Pass the object with which the store was created.",
            kept=own.identity,
            now=now,
        )
    with store_errors(place.title):
        if not adopt and place.read() is None and place.has_rows():
            raise IdentityError(
                f"{place.title} has rows, but no identity that says which model made them. If they "
                f"were made with {now!r}, pass adopt=True once; if not, or if you do not know, "
                f"embed the texts again with `emberd reindex` (docs/vector-stores.md).",
                kept="",
                now=now,
            )
        kept = place.claim(now)
    index_identity.check(kept, now, used.settings, index=place.title, advice=place.leftover)
    return store


def _embedder(given: Any) -> Embedder:
    from emberd.embedder import Embedder

    found = getattr(given, "embedder", given)
    if not isinstance(found, Embedder):
        raise SettingError(
            f"{type(given).__name__} has no identity. Pass the object of emberd that makes the "
            f"vectors, without other objects around it."
        )
    return found


@contextmanager
def store_errors(title: str) -> Iterator[None]:
    """Raise an error of a store in the block as ours.

    Raises:
        EmberdError: The store failed.
    """
    try:
        yield
    except EmberdError:
        raise
    except Exception as error:
        # The clients raise their own errors, those of HTTP libraries, and ValueError for all else.
        text = " ".join(str(error).split())[:_SHOWN]
        is_qdrant = "qdrant" in title.lower()
        raise EmberdError(
            f"{title} cannot be used: {type(error).__name__}: {text}. Check that the store can be "
            f"reached."
            + (" A local folder of Qdrant can be open in only one process." if is_qdrant else "")
        ) from error
