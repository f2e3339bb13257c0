"""Vectors of texts that come one after another: any number of them, in flat memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Literal, overload

from emberd.errors import TextError

if TYPE_CHECKING:
    from emberd.client.aio import AsyncClient
    from emberd.client.sync import Client
    from emberd.client.vectors import Floats

Texts = Iterable[str]
AnyTexts = Iterable[str] | AsyncIterable[str]


class Streams:
    """The methods of an embedder that yield one vector after another.

    Texts are taken as they are needed, two thousand ahead of the vectors, in windows whose requests
    overlap; when nobody takes vectors, no more texts are taken. A source that waits for vectors
    before it gives more texts waits for ever, and one that pauses holds up what it gave. A vector
    is a row of its window's array: to keep a few of many, keep copies.
    """

    @property
    def query_template(self) -> str:
        """The template of queries, with ``{text}`` in it."""
        raise NotImplementedError

    @property
    def document_template(self) -> str:
        """The template of documents, with ``{text}`` in it."""
        raise NotImplementedError

    def _client(self) -> Client:
        raise NotImplementedError

    async def _aclient(self) -> AsyncClient:
        raise NotImplementedError

    @overload
    def iter_documents(
        self, texts: Texts, *, set_aside: Literal[False] = False
    ) -> Iterator[Floats]: ...
    @overload
    def iter_documents(self, texts: Texts, *, set_aside: bool) -> Iterator[Floats | TextError]: ...
    def iter_documents(
        self, texts: Texts, *, set_aside: bool = False
    ) -> Iterator[Floats | TextError]:
        """Yield the vector of each document, ``(dimensions,)``, in their order.

        Args:
            texts: Any number of texts; a generator's are never all in memory.
            set_aside: In place of the vector of a text that cannot be embedded its error is
                yielded, instead of raised, and the others go on.

        Raises:
            TextError: A text cannot be embedded; its ``index`` is its place in ``texts``.
            ServerError: No server could be had.
            RequestError: The server refused, failed, or answered with something else than asked.
        """
        return self._iterate(texts, self.document_template, set_aside=set_aside)

    @overload
    def iter_queries(
        self, texts: Texts, *, set_aside: Literal[False] = False
    ) -> Iterator[Floats]: ...
    @overload
    def iter_queries(self, texts: Texts, *, set_aside: bool) -> Iterator[Floats | TextError]: ...
    def iter_queries(
        self, texts: Texts, *, set_aside: bool = False
    ) -> Iterator[Floats | TextError]:
        """Yield the vector of each query; takes and raises what ``iter_documents`` does."""
        return self._iterate(texts, self.query_template, set_aside=set_aside)

    @overload
    def aiter_documents(
        self, texts: AnyTexts, *, set_aside: Literal[False] = False
    ) -> AsyncGenerator[Floats]: ...
    @overload
    def aiter_documents(
        self, texts: AnyTexts, *, set_aside: bool
    ) -> AsyncGenerator[Floats | TextError]: ...
    def aiter_documents(
        self, texts: AnyTexts, *, set_aside: bool = False
    ) -> AsyncGenerator[Floats | TextError]:
        """Do as ``iter_documents``, from the running event loop; texts may be awaited too."""
        return self._aiterate(texts, self.document_template, set_aside=set_aside)

    @overload
    def aiter_queries(
        self, texts: AnyTexts, *, set_aside: Literal[False] = False
    ) -> AsyncGenerator[Floats]: ...
    @overload
    def aiter_queries(
        self, texts: AnyTexts, *, set_aside: bool
    ) -> AsyncGenerator[Floats | TextError]: ...
    def aiter_queries(
        self, texts: AnyTexts, *, set_aside: bool = False
    ) -> AsyncGenerator[Floats | TextError]:
        """Do as ``iter_queries``, from the running event loop; texts may be awaited too."""
        return self._aiterate(texts, self.query_template, set_aside=set_aside)

    def _iterate(
        self, texts: Texts, template: str, *, set_aside: bool
    ) -> Iterator[Floats | TextError]:
        with closing(self._client().stream(texts, template, set_aside=set_aside)) as windows:
            for window in windows:
                yield from window

    async def _aiterate(
        self, texts: AnyTexts, template: str, *, set_aside: bool
    ) -> AsyncGenerator[Floats | TextError]:
        client = await self._aclient()
        async with aclosing(client.stream(texts, template, set_aside=set_aside)) as windows:
            async for window in windows:
                for row in window:
                    yield row
