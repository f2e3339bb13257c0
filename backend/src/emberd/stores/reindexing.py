"""``emberd reindex``: a new collection beside the old one, filled, verified, and switched to.

The new collection itself is the record of the progress. It gets its identity, marked as incomplete,
before its first row, and a row is written with the vector that belongs to it. A run compares both
collections page by page and embeds what is missing or differs, until a pass finds no difference;
then the mark is removed. A run that was killed is continued by the same comparison, and rows that
were changed in the old collection in the meantime are found by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from emberd import index_identity
from emberd.errors import EmberdError, SettingError, TextError
from emberd.stores.guard import store_errors
from emberd.stores.rows import Row, RowStore

if TYPE_CHECKING:
    from emberd.embedder import Embedder

_MAX_PASSES: Final = 10
_SHOWN_IDS: Final = 3


@dataclass(frozen=True, slots=True)
class ReindexSummary:
    """Result of a run.

    Attributes:
        collection: The new collection; the given one if it has these vectors already.
        identity: Its identity.
        rows: Its number of rows.
        embedded: Number of rows that this run embedded.
        removed: Number of rows that this run removed, because the old collection lacks them now.
        switched: Whether the name of the old collection stands for the new one now.
    """

    collection: str
    identity: str
    rows: int
    embedded: int = 0
    removed: int = 0
    switched: bool = False


Watch = Callable[[int, int], None]
"""Called with the number of rows that are done, and of all rows."""


def reindex(
    store: RowStore,
    name: str,
    embedder: Embedder,
    *,
    to: str | None = None,
    update: bool = False,
    switch: bool = False,
    connect: Callable[[], int] | None = None,
    watch: Watch | None = None,
) -> ReindexSummary:
    """Embed the rows of a collection again, into a new one, or do the rest of it.

    Args:
        store: The store.
        name: The collection, or what stands for it.
        embedder: What embeds.
        to: The name of the new collection; by default that of the old one with a hash of the
            embedder's identity.
        update: Bring a new collection that is complete up to date with the old one.
        switch: Let ``name`` stand for the new collection afterwards; implies ``update``.
        connect: Finds or starts the server, and returns the length of its vectors; called when
            there is something to embed.
        watch: Called with the progress.

    Raises:
        SettingError: A name cannot be used, or the store cannot switch.
        IdentityError: The collection ``to`` was begun with another identity.
        EmberdError: A row cannot be embedded, or the store or the server failed. Finished work is
            kept.
    """
    identity = embedder.identity
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    with store_errors(f"The store {store.where}"):
        source = store.resolve(name)
        target = to or f"{source}-{digest}"
        spare = f"{source}-before-{digest}"
        is_switching = not store.exists(source) and store.exists(spare) and store.exists(target)
        if not store.exists(source) and not is_switching:
            raise SettingError(f"{store.where} has no collection {name!r}. Check its name.")
        kept = None if is_switching else store.place(source).read()
        if kept is not None and index_identity.is_incomplete(kept):
            raise SettingError(
                f"The collection {name!r} is incomplete: an earlier `emberd reindex` has not "
                f"finished it. Continue that run first, or pass the name of a complete collection."
            )
        if kept is not None and index_identity.are_equal(kept, identity):
            return ReindexSummary(source, identity, store.count(source))
        if target == source:
            raise SettingError(f"--to {target} is the old collection. Pass another name.")
        if switch:
            store.check_switch(name)
        place = store.place(target)
        with place.locked(0, store.where):
            run = _Run(store, source, target, embedder, watch or (lambda _done, _total: None))
            if is_switching:
                index_identity.check(place.read() or "", identity, embedder.settings)
                if not switch:
                    raise SettingError(
                        f"A switch was interrupted: the collection {name!r} is now {spare!r}. Run "
                        f"the command again with --switch, which finishes it."
                    )
            else:
                native = connect or (lambda: embedder.endpoint().dimensions)
                run.fill(update=update or switch, connect=native)
            rows = store.count(target)
            if switch:
                store.switch(name, target, spare)
    return ReindexSummary(target, identity, rows, run.embedded, run.removed, switch)


class _Run:
    """One run, which holds the lock on the new collection."""

    def __init__(
        self, store: RowStore, source: str, target: str, embedder: Embedder, watch: Watch
    ) -> None:
        self._store = store
        self._source = source
        self._target = target
        self._embedder = embedder
        self._watch = watch
        self.embedded = self.removed = 0

    def fill(self, *, update: bool, connect: Callable[[], int]) -> None:
        """Make the new collection equal to the old one, and mark it as complete."""
        store, identity, settings = self._store, self._embedder.identity, self._embedder.settings
        place = store.place(self._target)
        if not store.exists(self._target):
            mark = index_identity.incomplete(identity)
            dimensions = settings.dimensions or connect()
            store.create(self._target, self._source, dimensions, mark)
        kept = place.read()
        if kept is None:
            raise SettingError(
                f"{place.title} exists, and `emberd reindex` did not create it. Pass another name "
                f"with --to."
            )
        index_identity.check(kept, identity, settings, index=place.title, may_be_incomplete=True)
        if not index_identity.is_incomplete(kept):
            if not update:
                return
            self._refuse_rows_of_its_own()
        connect()
        for _ in range(_MAX_PASSES):
            changed = self._copy() + self._remove()
            if not changed and store.count(self._target) == store.count(self._source):
                break
        else:
            raise EmberdError(
                f"The collection {self._source!r} changes faster than it can be embedded: after "
                f"{_MAX_PASSES} passes {self._target!r} still differs. Stop what writes to it, and "
                f"run the command again."
            )
        store.finish(self._target, self._source)
        place.write(identity)

    def _copy(self) -> int:
        """Embed the rows that the new collection lacks, or has with another content."""
        store, changed, done = self._store, 0, 0
        total = store.count(self._source)
        for ids in store.id_pages(self._source):
            wanted, found = store.rows(self._source, ids), store.rows(self._target, ids)
            stale = [
                row for each, rows in wanted.items() if found.get(each) != rows for row in rows
            ]
            if stale:
                store.put(self._target, stale, self._embed(stale))
            changed += len(stale)
            done += sum(map(len, wanted.values()))
            self.embedded += len(stale)
            self._watch(min(done, total), total)
        return changed

    def _remove(self) -> int:
        """Remove the rows that the old collection does not have any more."""
        removed = 0
        for gone in self._gone():
            self._store.delete(self._target, gone)
            removed += len(gone)
        self.removed += removed
        return removed

    def _gone(self) -> list[list[Any]]:
        pages = []
        for ids in self._store.id_pages(self._target):
            present = self._store.rows(self._source, ids)
            if gone := [each for each in ids if each not in present]:
                pages.append(gone)
        return pages

    def _refuse_rows_of_its_own(self) -> None:
        """Do not remove rows from a complete collection: an application may have added them."""
        own = [each for gone in self._gone() for each in gone]
        if own:
            shown = ", ".join(repr(each) for each in own[:_SHOWN_IDS])
            raise EmberdError(
                f"The collection {self._target!r} is complete and has {len(own)} rows that "
                f"{self._source!r} does not have ({shown}). If an application has added them, it "
                f"uses the new collection already; if they were deleted from the old one, delete "
                f"them here too, or pass another name with --to."
            )

    def _embed(self, rows: list[Row]) -> Any:
        texts = []
        for row in rows:
            if row.text is None:
                raise EmberdError(
                    f"The row {row.id!r} of the collection {self._source!r} has no text where "
                    f"LangChain and LlamaIndex put it. Name the field with --text-field, or delete "
                    f"the row."
                )
            texts.append(row.text)
        try:
            return self._embedder.embed_documents(texts)
        except TextError as error:
            raise EmberdError(
                f"The row {rows[error.index].id!r} of the collection {self._source!r} cannot be "
                f"embedded: {error}"
            ) from error
