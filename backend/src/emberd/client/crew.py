"""Threads that do the work of one call, and are gone with it."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Callable
from typing import Generic, Self, TypeVar

W = TypeVar("W")
R = TypeVar("R")

_NUMBERS = itertools.count(1)


class Crew(Generic[W, R]):
    """Does work in threads and hands the results to one receiver, in the order they come.

    The threads are daemons: a request that is left behind, by an error or by Ctrl-C, holds up
    neither the caller nor the end of the process.

    Args:
        perform: Does one piece of work; runs in the crew's threads, and in the receiver's own
            when there is but one piece.
    """

    def __init__(self, perform: Callable[[W], R]) -> None:
        self._perform = perform
        self._todo: queue.SimpleQueue[W | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[W, R] | BaseException] = queue.SimpleQueue()
        self._outstanding = 0
        self._threads: list[threading.Thread] = []
        self.stopped = threading.Event()

    def __enter__(self) -> Self:
        """Return the crew."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let the threads go: at once when they have nothing to do, else after what they do."""
        self.stopped.set()
        for _thread in self._threads:
            self._todo.put(None)
        if self._outstanding == 0:
            for thread in self._threads:
                thread.join()

    def send(self, work: W) -> None:
        """Have ``work`` done."""
        self._todo.put(work)
        self._outstanding += 1

    def receive(self) -> tuple[W, R]:
        """Return a piece of work and its result, waiting for one to be done."""
        if self._outstanding == 1 and not self._threads:
            work = self._todo.get()
            self._outstanding = 0
            return work, self._perform(work)  # type: ignore[arg-type, return-value]
        while len(self._threads) < self._outstanding:
            self._start()
        result = self._results.get()
        self._outstanding -= 1
        if isinstance(result, BaseException):
            raise result
        return result

    def _start(self) -> None:
        thread = threading.Thread(
            target=self._run, name=f"emberd-embed-{next(_NUMBERS)}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _run(self) -> None:
        while (work := self._todo.get()) is not None and not self.stopped.is_set():
            try:
                self._results.put((work, self._perform(work)))
            except BaseException as error:  # noqa: BLE001 - raised again by receive
                self._results.put(error)
