"""Calls in daemon threads: for calls that may block for longer than the caller may wait."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from emberd.errors import EmberdError

T = TypeVar("T")


def run(call: Callable[[], T], name: str) -> Future[T]:
    """Run ``call`` in a daemon thread, in a copy of the caller's context, and return its future.

    Not an executor: the interpreter joins the threads of executors at exit, so one that hangs
    would keep the process from ending. The future cannot be cancelled.

    Args:
        call: Called once.
        name: Name of the thread, shown by debuggers, with ``emberd-`` before it.

    Raises:
        EmberdError: No thread can be started.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # so that one waiter cannot cancel it for the others

    context = contextvars.copy_context()
    arguments = (_work, call, future)
    thread = threading.Thread(
        target=context.run, args=arguments, name=f"emberd-{name}", daemon=True
    )
    try:
        thread.start()
    except RuntimeError as error:  # Python 3.12 and newer start none while they exit
        raise EmberdError(
            f"No thread can be started ({error}). Do this before the program exits, or raise the "
            f"limit of processes (`ulimit -u`)."
        ) from error
    return future


def _work(call: Callable[[], T], future: Future[T]) -> None:
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - raised again by result()
        future.set_exception(error)
        # The error refers to this frame: a cycle would keep what the call used, such as a socket.
        del call, future
    else:
        future.set_result(result)
