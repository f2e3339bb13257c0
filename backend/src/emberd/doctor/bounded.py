"""Running what may hang: a file system that is away, a name server, a driver."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """How a job ended.

    Attributes:
        value: What it returned; None when it did not.
        error: What it raised; None when it raised nothing.
        late: It had not ended in time, and may still be running.
    """

    value: T | None = None
    error: BaseException | None = None
    late: bool = False


def gather(jobs: Sequence[Callable[[], T]], seconds: float) -> list[Outcome[T]]:
    """Run all jobs at once and return how each ended, in their order, after ``seconds`` at most.

    A job that hangs goes on in its thread, which does not keep the process from ending.
    """
    ended: list[Outcome[T]] = [Outcome(late=True)] * len(jobs)

    def run(place: int, job: Callable[[], T]) -> None:
        try:
            ended[place] = Outcome(value=job())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the job's outcome
            ended[place] = Outcome(error=error)

    # Not an executor: it would wait for its threads at the end of the process.
    threads = [
        threading.Thread(target=run, args=pair, name=f"emberd-doctor-{pair[0]}", daemon=True)
        for pair in enumerate(jobs)
    ]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(ended)
