"""Watching a server from its first moment until it is ready and verified, or has failed."""

from __future__ import annotations

import threading
import time
from typing import Final, Protocol

from emberd import surface
from emberd.engines.base import Diagnosis, Engine, Launch, Plan
from emberd.errors import EmberdError
from emberd.manager.child import ServerProcess
from emberd.manager.readiness import Readiness
from emberd.manager.record import Record
from emberd.manager.server import Verify
from emberd.settings import Endpoint

_HOST: Final = "127.0.0.1"


class Starter(Protocol):
    """What a start needs of the keeper whose server it watches."""

    record: Record
    plan: Plan | None
    server: ServerProcess | None
    verify: Verify

    @property
    def engine(self) -> Engine:
        """The kind of server."""

    @property
    def stop_asked(self) -> bool:
        """Whether somebody asked for the server's end."""

    def wait(self, seconds: float) -> None:
        """Wait until a signal comes, or for ``seconds``."""

    @property
    def log_bytes(self) -> int:
        """How much the server has written since its start."""

    def log(self) -> str:
        """Return the end of what the server wrote since its start."""

    def publish(self, **changes: object) -> None:
        """Replace fields of the record."""


class Start:
    """One start of one server."""

    def __init__(self, keeper: Starter, launch: Launch) -> None:
        """Watch the server that ``keeper`` has just started on the port of ``launch``."""
        self._keeper = keeper
        self._url = f"http://{_HOST}:{launch.port}"
        self._key = launch.api_key
        self._fingerprint = launch.fingerprint
        self._moved_at_s = time.monotonic()
        self._log_bytes = 0
        self._readiness = Readiness(self._url)
        self._verification: _Verification | None = None

    def run(self) -> Endpoint | Diagnosis | None:
        """Return the verified endpoint, or why there is none; None when a stop was asked for."""
        while not self._keeper.stop_asked:
            self._keeper.wait(self._keeper.record.timing.poll_s)
            outcome = self._look()
            if outcome is not None:
                return outcome
        return None

    def _look(self) -> Endpoint | Diagnosis | None:
        server, engine = self._keeper.server, self._keeper.engine
        code = None if server is None else server.reap()
        log = self._keeper.log()
        if code is not None:
            return engine.diagnose(code, log)
        if engine.is_doomed(log):
            return engine.diagnose(None, log)
        self._publish_progress(engine.progress(log), self._keeper.log_bytes)
        if self._is_silent():
            return engine.diagnose(None, log)
        return self._verified()

    def _publish_progress(self, progress: str, log_bytes: int) -> None:
        if log_bytes != self._log_bytes or progress != self._keeper.record.progress:
            self._log_bytes = log_bytes
            self._moved_at_s = time.monotonic()
        if progress != self._keeper.record.progress:
            self._keeper.publish(progress=progress)

    def _is_silent(self) -> bool:
        plan = self._keeper.plan
        return plan is not None and time.monotonic() - self._moved_at_s > plan.silence_s

    def _verified(self) -> Endpoint | Diagnosis | None:
        if self._verification is None:
            if self._readiness.is_ready():
                self._verification = _Verification(
                    self._keeper, self._url, self._key, self._fingerprint
                )
            return None
        return self._verification.outcome


class _Verification:
    """The first real embedding, in a thread: a cold model may take long, and a stop must not."""

    def __init__(self, keeper: Starter, url: str, key: str | None, fingerprint: str) -> None:
        self.outcome: Endpoint | Diagnosis | None = None
        self._arguments = (url, key, keeper.record.spec)
        self._fingerprint = fingerprint
        self._verify = keeper.verify
        threading.Thread(target=self._run, daemon=True, name="emberd-verify").start()

    def _run(self) -> None:
        try:
            endpoint = self._verify(*self._arguments)
            self.outcome = _impostor(endpoint, self._fingerprint) or endpoint
        except EmberdError as error:
            self.outcome = Diagnosis(f"The server was started and is not fit for use: {error}")
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it, whatever it is
            self.outcome = Diagnosis(f"The first embedding failed: {error!r}", "Report this bug.")


def _impostor(endpoint: Endpoint, fingerprint: str) -> Diagnosis | None:
    # The port was ours to give, and a right model answers there: only the stamp of this very
    # start tells our server from one that somebody else put on the port.
    reply = surface.get(endpoint.url, "/model_info", endpoint.api_key)
    told = reply.json() if reply is not None else None
    stamp = told.get("weight_version") if isinstance(told, dict) else None
    if stamp in (None, fingerprint):
        return None
    return Diagnosis(
        f"Another server took {endpoint.url} (its weight version is {stamp}, not {fingerprint})",
        "Try again.",
        port_taken=True,
    )
