"""Asking for a server, and saying on stderr what it is doing until it is there."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from emberd.cli import output, words
from emberd.settings import Settings, StartOptions
from emberd.verified_manager import Manager

if TYPE_CHECKING:
    from emberd.manager import Check, Progress, Server

_LINE_EVERY_S: Final = 10.0


class Waiting:
    """One line that changes on a terminal; elsewhere a line for each change and each 10 s."""

    def __init__(self, model: str) -> None:
        """Wait for a server of ``model``; nothing is written before there is something to say."""
        self._model = model
        self._status: Any = None
        self._last = ("", -_LINE_EVERY_S)

    def __enter__(self) -> Waiting:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the changing line away."""
        if self._status is not None:
            self._status.stop()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            # Also when nothing was said yet: a start may have been begun all the same.
            output.note(
                "A start that was begun goes on: `emberd status` shows it, `emberd stop` ends it."
            )

    def show(self, progress: Progress) -> None:
        """Say how far the start is."""
        if sys.stderr.isatty():
            self._spin(self._line(progress))
            return
        text, at_s = self._last
        if progress.text != text or progress.seconds - at_s >= _LINE_EVERY_S:
            self._last = (progress.text, progress.seconds)
            output.note(self._line(progress))

    def _spin(self, line: str) -> None:
        from rich.markup import escape

        if self._status is None:
            self._status = output.console(stderr=True).status(escape(line))
            self._status.start()
        self._status.update(escape(line))

    def _line(self, progress: Progress) -> str:
        doing = progress.text or "starting"
        return f"{self._model}: {doing} ({words.duration(progress.seconds)})"


def ensure(
    settings: Settings,
    *,
    retry_failed: bool = False,
    options: StartOptions | None = None,
    check: Check | None = None,
) -> Server:
    """Return a server for ``settings``, found or started.

    Raises:
        EmberdError: What ``Manager.ensure`` or ``check`` raises.
    """
    with Waiting(settings.model) as waiting:
        return Manager().ensure(
            settings.spec,
            base_url=settings.base_url,
            api_key=settings.api_key,
            start_timeout=settings.start_timeout,
            idle_timeout=settings.idle_timeout,
            retry_failed=retry_failed,
            options=options,
            check=check,
            on_progress=waiting.show,
        )
