"""Texts that may be too long: counted before others are sent, and cut where that is wanted."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from emberd.catalog import Model
from emberd.client import protocol, tokens
from emberd.client.learnt import Learnt
from emberd.client.protocol import TooLong
from emberd.client.texts import Prepared
from emberd.client.tokens import Counting
from emberd.endpoint import Endpoint
from emberd.errors import AuthenticationError, RejectedError, RequestError, TextTooLongError


class Lengths:
    """What one job knows of the lengths of its texts.

    Args:
        prepared: Its texts; those that are cut become token ids in it.
        model: What is known of the model.
        learnt: What other jobs learnt of the servers.
        truncate: Whether texts that are too long are cut.
        offset: How many texts of the caller's come before these.
    """

    def __init__(
        self,
        prepared: Prepared,
        model: Model,
        learnt: Learnt,
        *,
        truncate: bool,
        offset: int = 0,
    ) -> None:
        self._prepared = prepared
        self._model = model
        self._truncate = truncate
        self._learnt = learnt
        self._offset = offset
        self._can_count = True
        self.to_count: deque[Counting] = deque()
        self.shortened: set[int] = set()
        self._asked: set[tuple[int, int]] = set()  # texts, and the limits they were counted for

    def begin(self, endpoint: Endpoint) -> None:
        """Find the texts that might be too long for ``endpoint``."""
        self.to_count.extend(
            Counting(index)
            for index in self._prepared.to_count(self._limit(endpoint))
            if isinstance(self._prepared.inputs[index], str)
        )

    def counted(self, endpoint: Endpoint, index: int, result: object) -> None:
        """Take note of the tokens of a text.

        Raises:
            TextTooLongError: It has too many and is not to be cut, or cannot be.
            RequestError: They could not be had.
        """
        limit = self._limit(endpoint)
        missing = isinstance(result, RejectedError) and result.status in protocol.NO_ROUTE
        # A gateway may let a key embed and close the tokenizer to it; a wrong key fails the
        # embedding as well, and is reported then.
        if missing or isinstance(result, AuthenticationError):
            self._can_count = False
            self.to_count.clear()  # the server itself refuses what is too long
        elif isinstance(result, RequestError):
            raise result
        elif isinstance(result, list) and limit is not None and len(result) > limit:
            if not self._truncate:
                raise tokens.too_long(self._offset + index, len(result), limit)
            self._cut(index, result, limit)

    def counts_again(self, endpoint: Endpoint, indices: Sequence[int], limit: int | None) -> bool:
        """Return whether a refusal taught a limit by which some texts are to be counted now.

        A router states no context, and a server short of memory takes less than its own.

        Raises:
            TextTooLongError: A text that was cut before cannot be cut to it.
        """
        if limit is None or not self._can_count:
            return False
        again = self._learns(endpoint, limit)
        doubtful = set(self._prepared.to_count(limit)) & set(indices)
        for index in sorted(doubtful):
            given = self._prepared.inputs[index]
            if isinstance(given, str) and (index, limit) not in self._asked:
                self._asked.add((index, limit))
                self.to_count.append(Counting(index))
                again = True
            elif isinstance(given, list) and len(given) > limit:  # to what the server had stated
                self._cut(index, given, limit)
                again = True
        return again

    def error(self, index: int, refused: TooLong) -> TextTooLongError:
        """Return the error for a text that the server refused by itself."""
        return tokens.too_long(
            self._offset + index,
            refused.tokens,
            refused.limit,
            truncate=self._truncate,
            can_cut=self._can_count,
        )

    def _limit(self, endpoint: Endpoint) -> int | None:
        stated = tokens.limit_tokens(endpoint, self._model)
        return self._learnt.limits.get(endpoint, stated)

    def _learns(self, endpoint: Endpoint, limit: int | None) -> bool:
        """Return whether ``limit`` is less than what was known; from now on it counts."""
        known = self._limit(endpoint)
        if limit is None or (known is not None and limit >= known):
            return False
        self._learnt.limits[endpoint] = limit
        return True

    def _cut(self, index: int, ids: list[int], limit: int) -> None:
        place = self._offset + index
        self._prepared.inputs[index] = tokens.cut(place, ids, limit, self._model)
        self.shortened.add(index)
