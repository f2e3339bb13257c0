"""Readiness of a starting server, found out without blocking the supervisor."""

from __future__ import annotations

import threading

from emberd import probe
from emberd.system.listeners import Listener


class Readiness:
    """Polls one starting server until it is ready.

    ``/ready`` answers at once. SGLang before 0.5.20 has only ``/health``, which takes 1 to 20 s, so
    it is requested in a thread: the supervisor must still react to a stop or a dead server.
    """

    def __init__(self, url: str, listener: Listener) -> None:
        """Watch the server at ``url``, whose listening socket is ``listener``."""
        self._url = url
        self._listener = listener
        self._is_healthy = False
        self._thread: threading.Thread | None = None

    def is_ready(self) -> bool:
        """Return whether the server takes requests; call it again while it does not."""
        if self._is_healthy:
            return True
        if self._thread is not None and self._thread.is_alive():
            return False
        ready = probe.readiness(self._url, listener=self._listener)
        if ready is None:
            self._thread = threading.Thread(target=self._ask, daemon=True, name="emberd-health")
            self._thread.start()
        return bool(ready)

    def _ask(self) -> None:
        self._is_healthy = probe.is_healthy(self._url, listener=self._listener)
