"""``emberd reindex``: a new collection beside the old one, filled, verified, and switched to.

The new collection itself is the record of the progress. It gets its identity, marked as incomplete,
before its first row, and a row is written with the vector that belongs to it. A run compares both
collections page by page and embeds what is missing or differs, until a pass finds equal contents
and, for each row, a vector of the right length; then the mark is removed. A run that was killed is
continued by the same comparison.

The field of the texts is part of what is stored, so that one collection never has vectors of two.
Before each write a run checks that its mark is still there: if another run, on another machine, has
completed the collection, applications may have written to it since.

A complete collection is changed only by ``update``, which makes it equal to the old one: it is
marked as incomplete before its first change, so that a run that is killed is continued.

What is written to the old collection during the last pass or after it is not found. Writers must
stop before the run that completes the new collection begins, or before ``update``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from emberd import index_identity
from emberd.errors import CollectionRowError, EmberdError, SettingError, TextError
from emberd.stores.guard import store_errors
from emberd.stores.rows import NODE, Row, RowStore

if TYPE_CHECKING:
    from emberd.embedder import Embedder

RESUME_HINT: Final = "Finished work was kept: run the same command again to continue."

_MAX_PASSES: Final = 10
_TEXT_NODES: Final = ("TextNode", "IndexNode", "Node", "Document", "")


@dataclass(frozen=True, slots=True)
class ReindexSummary:
    """Result of a run.

    Attributes:
        collection: The new collection; the given one if it has these vectors already.
        identity: Its identity.
        rows: Its number of rows.
        embedded: Number of rows that this run embedded.
        removed: Number of rows that this run removed, because the old collection lacks them.
        switched: Whether the name of the old collection refers to the new one now.
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
    text_field: str | None = None,
    update: bool = False,
    switch: bool = False,
    connect: Callable[[], int] | None = None,
    watch: Watch | None = None,
) -> ReindexSummary:
    """Embed the rows of a collection into a new one, or continue a run that was interrupted.

    Writers of the old collection must stop before the run that completes the new one begins: what
    they write during its last pass, or later, is not found.

    Args:
        store: The store.
        name: The collection, or an alias of it.
        embedder: What embeds.
        to: The name of the new collection; by default that of the old one with a hash of the
            embedder's identity.
        text_field: The field of the texts: of the metadata (Chroma) or the payload (Qdrant), a
            column (LanceDB), or a field of ``metadata`` in these, also as ``metadata.NAME``. None
            for where LangChain and LlamaIndex put them.
        update: Make a complete new collection equal to the old one: rows that only it has are
            removed, and rows that differ are replaced.
        switch: Make ``name`` refer to the new collection afterwards.
        connect: Finds or starts the server, and returns the length of its vectors; called when
            there is something to embed.
        watch: Called with the progress.

    Raises:
        SettingError: A name cannot be used, or the store cannot switch.
        IdentityError: The new collection was begun with another identity, or there is one of a
            collection that does not exist.
        CollectionRowError: A row cannot be embedded. Finished work is kept.
        EmberdError: The new collection is complete and differs, so ``switch`` is refused; or the
            store or the server failed, and finished work is kept.
    """
    identity = embedder.identity
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    with store_errors(f"The store {store.where}"):
        source = store.resolve(name)
        target = to or f"{source}-{digest}"
        spare = f"{source}-before-{digest}"
        old = _old_collection(store, source, target, spare, switch=switch)
        kept = store.place(old).read()
        if kept is not None and index_identity.is_incomplete(kept):
            raise SettingError(
                f"The collection {name!r} is incomplete: an earlier `emberd reindex` has not "
                f"finished it. Continue that run first, or pass the name of a complete collection."
            )
        if (
            kept is not None
            and index_identity.are_equal(kept, identity)
            and (text_field is None or index_identity.text_field(kept) == text_field)
        ):
            return ReindexSummary(old, identity, store.count(old))
        if target == source:
            raise SettingError(f"--to {target} is the old collection. Pass another name.")
        if switch:
            store.check_switch(name, spare)
        if old == source and (switch or update):
            store.check_change(source, spare)
    with store.place(target).locked(0, store.where):
        run = _Run(store, old, target, embedder, text_field=text_field, watch=watch)
        native = connect or (lambda: embedder.endpoint().dimensions)
        run.fill(native, update=update, switch=switch)
        with store_errors(f"The store {store.where}"):
            rows = store.count(target)
            if switch:
                store.switch(name, target, spare)
    return ReindexSummary(target, identity, rows, run.embedded, run.removed, switch)


def _old_collection(store: RowStore, source: str, target: str, spare: str, *, switch: bool) -> str:
    """Return the collection with the old rows: ``source``, or ``spare`` in an interrupted switch.

    A switch of Chroma renames ``source`` to ``spare``, and ``target`` to ``source``. If it is
    killed in between, an application may create ``source`` again, without rows.
    """
    exists = store.exists(source)
    renamed = [] if exists and store.count(source) else store.renamed(source)
    if exists:
        renamed = [each for each in renamed if store.count(each)]
    if not renamed:
        if not exists:
            raise SettingError(f"{store.where} has no collection {source!r}. Check its name.")
        return source
    now = "has no rows" if exists else "does not exist"
    if spare in renamed and store.exists(target):
        if switch:
            return spare
        raise SettingError(
            f"The collection {source!r} {now}: a switch was interrupted after it was renamed to "
            f"{spare!r}. Run the command again with --switch, which finishes the switch."
        )
    raise SettingError(
        f"The collection {source!r} {now}, and {', '.join(map(repr, renamed))} exists: a switch "
        f"with other options was interrupted, and the rows are there. Run its command again, which "
        f"finishes it; or rename that collection to {source!r}. If {source!r} is meant to be "
        f"empty, rename or delete the other."
    )


class _Run:
    """One run, which holds the lock on the new collection."""

    def __init__(
        self,
        store: RowStore,
        source: str,
        target: str,
        embedder: Embedder,
        *,
        text_field: str | None,
        watch: Watch | None,
    ) -> None:
        self._store = store
        self._source = source
        self._target = target
        self._place = store.place(target)
        self._embedder = embedder
        self._text_field = text_field
        self._complete = index_identity.with_text_field(embedder.identity, text_field)
        self._mark = index_identity.incomplete(self._complete)
        self._watch = watch or (lambda _done, _total: None)
        self._dimensions = embedder.settings.dimensions
        self._is_marked = False
        self._changed: Any = None
        self.embedded = self.removed = 0

    def fill(self, connect: Callable[[], int], *, update: bool, switch: bool) -> None:
        """Make the new collection equal to the old one, unless it is complete.

        Args:
            connect: Finds or starts the server, and returns the length of its vectors.
            update: Make it equal also if it is complete.
            switch: Raise if it is complete and differs.
        """
        store, place = self._store, self._place
        with self._store_errors():
            store.check_name(self._target)
            exists = store.exists(self._target)
            if not exists:
                store.check_create(self._target, self._source, self._mark)
            else:
                self._is_marked = self._is_incomplete()
                if not self._is_marked and not update:
                    if switch:
                        self._refuse_differences()
                    return
        native = connect()
        self._dimensions = self._dimensions or native
        if not exists:
            with self._store_errors():
                store.create(self._target, self._source, self._dimensions, self._mark)
            self._is_marked = True
        with _resumable():
            self._pass_until_equal()
            if self._is_marked:
                with self._store_errors():
                    self._require_mark()
                    store.finish(self._target, self._source)
                    place.write(self._complete)

    def _store_errors(self) -> AbstractContextManager[None]:
        return store_errors(f"The store {self._store.where}")

    def _is_incomplete(self) -> bool:
        """Return whether the new collection, which exists and is ours, has the mark."""
        title = self._place.title
        kept = self._place.read()
        if kept is None:
            raise SettingError(
                f"{title} exists, and `emberd reindex` did not create it. Pass another name with "
                f"--to."
            )
        identity, settings = self._embedder.identity, self._embedder.settings
        advice = "For another new collection, pass another name with --to."
        index_identity.check(
            kept, identity, settings, index=title, may_be_incomplete=True, advice=advice
        )
        is_incomplete = index_identity.is_incomplete(kept)
        if (field := index_identity.text_field(kept)) != self._text_field:
            if is_incomplete and self._store.count(self._target) == 0:
                self._place.write(self._mark)
                return True
            option = "without --text-field" if field is None else f"with --text-field {field}"
            raise SettingError(
                f"{title} was begun {option}: continue it so, or delete it, or pass another name "
                f"with --to."
            )
        if is_incomplete:
            self._mark = kept
        return is_incomplete

    def _pass_until_equal(self) -> None:
        for _ in range(_MAX_PASSES):
            self._changed = None
            self._copy()
            self._remove()
            with self._store_errors():
                same_count = self._store.count(self._target) == self._store.count(self._source)
            if self._changed is None and same_count:
                return
        raise EmberdError(
            f"The collection {self._target!r} still differs from {self._source!r} after "
            f"{_MAX_PASSES} passes, for example in the row {self._changed!r}. Stop what writes to "
            f"either of them. If nothing does, the store does not return what was written to that "
            f"row."
        )

    def _copy(self) -> None:
        """Embed the rows that the new collection lacks, or has otherwise."""
        with self._store_errors():
            done, total = 0, self._store.count(self._source)
        for wanted, added, differing in self._compared():
            ids = {*added, *differing}
            stale = [row for each in wanted if each in ids for row in wanted[each]]
            if stale:
                vectors = self._embed(stale)
                with self._store_errors():
                    self._begin_change(stale[0].id)
                    self._store.put(self._target, stale, vectors)
            done += sum(map(len, wanted.values()))
            self.embedded += len(stale)
            self._watch(min(done, total), total)

    def _remove(self) -> None:
        """Remove the rows that the old collection does not have."""
        # All ids first: pages are counted from the first row.
        for gone in list(self._gone()):
            with self._store_errors():
                self._begin_change(gone[0])
                self._store.delete(self._target, gone)
            self.removed += len(gone)

    def _begin_change(self, row_id: Any) -> None:
        """Note a change of this pass, and mark the new collection before its first change."""
        self._changed = row_id
        if self._is_marked:
            self._require_mark()
        else:
            self._place.write(self._mark)
            self._is_marked = True

    def _require_mark(self) -> None:
        if (kept := self._place.read()) != self._mark:
            raise EmberdError(
                f"{self._place.title} has the identity {kept!r} now: another run has completed it "
                f"or begun it again. Let one run at a time fill a collection."
            )

    def _compared(self) -> Iterator[tuple[Mapping[Any, list[Row]], list[Any], list[Any]]]:
        """Yield pages of the old rows, and the ids that the new collection lacks, or has otherwise.

        A row whose vector is missing or has another length counts as different.
        """
        with self._store_errors():
            for ids in self._store.id_pages(self._source):
                wanted = self._store.rows(self._source, ids)
                found = self._store.rows(self._target, ids, lengths=True)
                added = [each for each in wanted if each not in found]
                differing = [
                    each
                    for each, rows in wanted.items()
                    if each in found
                    and (found[each] != rows or any(map(self._lacks_vector, found[each])))
                ]
                yield wanted, added, differing

    def _gone(self) -> Iterator[list[Any]]:
        """Yield, by pages, the ids that only the new collection has."""
        with self._store_errors():
            for ids in self._store.id_pages(self._target):
                present = self._store.rows(self._source, ids)
                if gone := [each for each in ids if each not in present]:
                    yield gone

    def _lacks_vector(self, row: Row) -> bool:
        return not row.length or row.length != (self._dimensions or row.length)

    def _refuse_differences(self) -> None:
        added: list[Any] = []
        differing: list[Any] = []
        for _, more, others in self._compared():
            added += more
            differing += others
        gone = [each for page in self._gone() for each in page]
        if not added and not differing and not gone:
            return
        old, new = repr(self._source), repr(self._target)
        raise EmberdError(
            f"The complete collection {new} differs from {old}: {len(added)} rows are only in "
            f"{old}, {len(differing)} rows differ, and {len(gone)} rows are only in {new}, for "
            f"example the row {(added + differing + gone)[0]!r}. --update makes it equal to {old}, "
            f"which discards what was written to {new}; then switch."
        )

    def _embed(self, rows: list[Row]) -> Any:
        texts = [self._text(row) for row in rows]
        try:
            return self._embedder.embed_documents(texts)
        except TextError as error:
            row = rows[error.index]
            raise CollectionRowError(
                f"The row {row.id!r} of the collection {self._source!r} cannot be embedded: "
                f"{error}",
                row=row.id,
            ) from error

    def _text(self, row: Row) -> str:
        """Return what is embedded of a row."""
        title = f"The row {row.id!r} of the collection {self._source!r}"
        fields, found = self._store.fields(row.content)
        if self._text_field is not None:
            found = _field(fields, self._text_field)
        elif isinstance(node := fields.get(NODE), str):
            try:
                found = _llama_index_text(json.loads(node), found)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise CollectionRowError(
                    f"{title} has a field {NODE} that cannot be read: {type(error).__name__}: "
                    f"{error}. Correct or delete the row, or name another field with --text-field.",
                    row=row.id,
                ) from error
        if found is None:
            field = self._text_field
            where = f"in {field}" if field else "where LangChain and LlamaIndex put it"
            raise CollectionRowError(
                f"{title} has no text {where}. Delete the row; or name a field that all rows have "
                f"with --text-field, and another new collection with --to.",
                row=row.id,
            )
        return found


@contextmanager
def _resumable() -> Iterator[None]:
    """Add to an error in the block that another run continues, if that is all it takes."""
    try:
        yield
    except CollectionRowError:
        raise
    except EmberdError as error:
        error.add_note(RESUME_HINT)
        raise


def _field(fields: Mapping[str, Any], name: str) -> str | None:
    """Return the text in a field, also of ``metadata``; dots separate the names of a path."""
    metadata = fields.get("metadata")
    for outer in (fields, metadata):
        if isinstance(outer, Mapping) and isinstance(found := outer.get(name), str):
            return found
    inner: Any = fields
    for part in name.split("."):
        inner = inner.get(part) if isinstance(inner, Mapping) else None
    return inner if isinstance(inner, str) else None


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
