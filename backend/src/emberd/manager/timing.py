"""How long things may take between processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Periods and deadlines of the manager and its supervisors, in seconds.

    Attributes:
        poll_s: How often a starting server, or its record, is checked.
        tick_s: How often a supervisor checks a running server.
        look_s: How often a supervisor reads the counters of a server that no client has reported;
            each reading costs the server some milliseconds of CPU time.
        lock_s: How long ``ensure`` waits for the start lock.
        record_s: How long a reader waits for the supervisor to rewrite a lost record, a few times
            ``tick_s``.
        takeover_s: How long a starter waits for the first sign of its supervisor.
        cool_down_s: How long a failed start is not repeated.
        lost_s: How long a healing client lets the supervisor notice a death.
        kill_s: How long killed processes may take to be gone.
        suspicion_s: How long a probe of a suspected server gives it to move.
        suspicion_probes: Failed probes in a row, without progress, that end a server.
    """

    poll_s: float = 0.05
    tick_s: float = 2.0
    look_s: float = 20.0
    lock_s: float = 120.0
    record_s: float = 6.0
    takeover_s: float = 30.0
    cool_down_s: float = 60.0
    lost_s: float = 10.0
    kill_s: float = 10.0
    suspicion_s: float = 10.0
    suspicion_probes: int = 3
