"""emberd's own metrics, for prometheus_client.

A program with its own metrics registers the collector::

    prometheus_client.REGISTRY.register(emberd.PrometheusCollector())

The gateway has one too. The counts of calls, requests and caches are those of this process. The
starts and ends of servers are those of the home since its first server, by all processes: two
processes show the same figures.
"""

from __future__ import annotations

import itertools
import operator
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from emberd import counters, env, errors
from emberd.client.retry import RETRIED
from emberd.counters import BUCKETS_S, CANCELLED, COUNTERS, OK
from emberd.errors import EmberdError, RequestError, ServerError, SettingError
from emberd.manager import (
    ServerStatus,
    State,
    Timing,
    gpu_servers,
    health,
    history,
    lost_records,
)
from emberd.manager.history import Counts
from emberd.manager.paths import Home
from emberd.manager.state import PLANNING
from emberd.verified_manager import Manager

if TYPE_CHECKING:
    from prometheus_client.core import Metric

T = TypeVar("T")

OTHER: Final = "other"
"""Label of all models that are not served."""

_USER: Final = ("model", "task")
# Reading the state of servers costs some milliseconds, and anyone may ask a gateway for its
# metrics.
_KEPT_S: Final = 1.0
_LOST_RECORDS_S: Final = 1.0

# Name of the count; prefix, text and labels of its metric.
_OF_PROCESS: Final = (
    (counters.CALLS, "client", "Calls, and windows of streams.", (*_USER, "outcome")),
    (counters.TEXTS, "client", "Texts that got their vector or score.", _USER),
    (counters.TOKENS, "client", "Tokens that servers read.", _USER),
    (counters.REQUESTS, "client", "Requests to servers, each try.", (*_USER, "outcome")),
    (counters.RETRIES, "client", "Requests that were sent again.", (*_USER, "outcome")),
    (counters.BATCHES, "client", "Batches of calls that were sent.", _USER),
    (counters.MERGED, "client", "Batches that shared their request with others.", _USER),
    (counters.LOST, "client", "Calls, and windows of streams, whose server was lost.", _USER),
    (counters.CACHE_HITS, "", "Vectors that a cache had.", ("model",)),
    (counters.CACHE_MISSES, "", "Vectors that a cache did not have.", ("model",)),
    (counters.CACHE_ERRORS, "", "Failures of a cache, each followed by a pause.", ()),
)
_OF_CACHE: Final = (counters.CACHE_HITS, counters.CACHE_MISSES)
_OUTCOMES: Final = {
    history.READY: "ready",
    history.START_FAILED: "failed",
    history.STOPPED: "stopped",
    history.FOLDER_GONE: "stopped",
    history.SUPERVISOR_KILLED: "killed",
}
_ENDS: Final = {
    history.IDLE_STOP: "idle",
    history.STOPPED: "requested",
    history.CRASHED: "crashed",
    history.HUNG: "hung",
    history.FOLDER_GONE: "folder_gone",
    history.SUPERVISOR_KILLED: "supervisor_killed",
}


_FAILURES: Final = ("failed", "killed")

# Of a call, a request and a retry. A count that is first seen with the value 1 is no increase for
# Prometheus, so what can be known beforehand is shown with 0. The same holds for the phases in
# which a start fails: those of an engine are known after its first start.
_CALL_ERRORS: Final = sorted(
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, RequestError | ServerError)
)
_OUTCOMES_OF: Final = {
    counters.CALLS: (OK, CANCELLED, *_CALL_ERRORS),
    counters.REQUESTS: ("200", *RETRIED, "changed", "invalid", CANCELLED),
    counters.RETRIES: RETRIED,
}
_FIRST_PHASES: Final = (PLANNING, health.VERIFYING, history.UNKNOWN)

_Rows = Counter[tuple[str, ...]]


class PrometheusCollector:
    """Collects emberd's metrics for a registry of prometheus_client."""

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        *,
        models: Collection[str] | None = None,
    ) -> None:
        """Prepare the collector; nothing is read yet.

        Args:
            home: Folder of all state; None for ``EMBERD_HOME`` or the platform's default.
            models: Models that are shown by name; the others are shown together as ``other``. None
                for all models that are used.

        Raises:
            SettingError: prometheus_client is not installed.
        """
        try:
            from prometheus_client import core
        except ImportError as error:
            raise SettingError(
                "Metrics need prometheus_client, which is not installed. Run: "
                "pip install 'emberd[metrics]'"
            ) from error
        self._core: Any = core
        self._home = Home(Path(os.path.realpath(env.home_folder(home))))
        self._manager = Manager(self._home.root, timing=Timing(record_s=_LOST_RECORDS_S))
        self._models = None if models is None else frozenset(models)
        self._history = _Kept(lambda: history.count(self._home), Counts())
        self._servers: _Kept[list[_MeasuredServer]] = _Kept(self._read_servers, [])

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that a registry collects nothing when this is registered."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; called by the registry."""
        yield from self._of_process()
        yield from self._of_history(self._history.get())
        yield from self._of_servers(self._servers.get())

    # -- this process -------------------------------------------------------------------

    def _of_process(self) -> Iterator[Metric]:
        counts = COUNTERS.counts()
        for name, prefix, text, labels in _OF_PROCESS:
            rows = self._begun(name, labels)
            for (counted, *values), number in counts.items():
                if counted == name:
                    rows[self._named(values)] += number
            metric = f"emberd_{prefix}_{name}" if prefix else f"emberd_{name}"
            yield self._counter(metric, text, labels, rows)
        seconds = self._core.HistogramMetricFamily(
            "emberd_client_call_seconds", "Seconds of a call; not of streams.", labels=_USER
        )
        shown: dict[tuple[str, ...], tuple[list[int], float]] = {}
        for of in COUNTERS.users():
            shown[self._named(of)] = [0] * (len(BUCKETS_S) + 1), 0.0
        for given, (buckets, total_s) in COUNTERS.durations().items():
            before, before_s = shown.get(self._named(given), ([0] * len(buckets), 0.0))
            both = list(map(operator.add, before, buckets))
            shown[self._named(given)] = both, before_s + total_s
        limits = (*map(str, BUCKETS_S), "+Inf")
        for of, (buckets, total_s) in shown.items():
            bounds = list(zip(limits, itertools.accumulate(buckets), strict=True))
            seconds.add_metric(of, bounds, sum_value=total_s)
        yield seconds

    def _begun(self, name: str, labels: Collection[str]) -> _Rows:
        """Return the zeros with which a metric begins."""
        rows = _Rows()
        for of, caches in COUNTERS.users().items():
            if caches or name not in _OF_CACHE:
                for outcome in _OUTCOMES_OF.get(name, ("",)):
                    rows[self._named((*of, outcome)[: len(labels)])] = 0
        return rows

    # -- the home -----------------------------------------------------------------------

    def _of_history(self, counts: Counts) -> Iterator[Metric]:
        starts, ends, failures, adopted = _Rows(), _Rows(), _Rows(), _Rows()
        phases: dict[tuple[str, ...], tuple[int, float]] = {}
        used = {model for model, _ in COUNTERS.users()}
        for model in {*(self._models or used), *(each.model for each in counts.times)}:
            of = self._named((model,))
            adopted[of] = 0
            starts.update({(*of, outcome): 0 for outcome in _OUTCOMES.values()})
            ends.update({(*of, reason): 0 for reason in _ENDS.values()})
            failures.update({(*of, phase): 0 for phase in _FIRST_PHASES})
        for what, number in counts.times.items():
            of = self._named((what.model,))
            in_start = bool(what.phase) or what.event in (history.READY, history.START_FAILED)
            if what.event == history.ADOPTED:
                adopted[of] += number
            elif what.event == history.PHASE:
                before, before_s = phases.get((*of, what.phase), (0, 0.0))
                phases[*of, what.phase] = before + number, before_s + counts.seconds[what]
                failures[*of, what.phase] += 0
            elif in_start and (outcome := _OUTCOMES.get(what.event)):
                starts[*of, outcome] += number
                if outcome in _FAILURES:
                    failures[*of, what.phase] += number
            elif reason := _ENDS.get(what.event):
                ends[*of, reason] += number
        text = "Starts of servers that are over, by outcome."
        yield self._counter("emberd_server_starts", text, ("model", "outcome"), starts)
        text = "Starts that failed or were killed, by the phase in which that happened."
        yield self._counter("emberd_server_start_failures", text, ("model", "phase"), failures)
        text = "Ends of servers that were ready, by reason."
        yield self._counter("emberd_server_ends", text, ("model", "reason"), ends)
        text = "External servers that were found and used."
        yield self._counter("emberd_server_adoptions", text, ("model",), adopted)
        summary = self._core.SummaryMetricFamily(
            "emberd_server_start_phase_seconds",
            "Seconds of the phases of starts that became ready.",
            labels=("model", "phase"),
        )
        for given, (count, total_s) in phases.items():
            summary.add_metric(given, count_value=count, sum_value=total_s)
        yield summary

    def _of_servers(self, servers: list[_MeasuredServer]) -> Iterator[Metric]:
        states, planned, used = _Rows(), _Rows(), _Rows()
        for each in servers:
            own = each.status
            of = self._named((own.spec.model, own.engine or ""))
            for state in (State.STARTING, State.READY, State.STOPPING, State.UNKNOWN):
                states[*of, state.value] += own.state is state
            for uuid in own.gpu_memory.gpus if own.gpu_memory else ():
                planned[of[0], uuid] += own.gpu_memory.planned_bytes if own.gpu_memory else 0
                if (used_bytes := each.used_bytes.get(uuid)) is not None:
                    used[of[0], uuid] += used_bytes
        yield self._gauge(
            "emberd_servers", "Servers by state.", ("model", "engine", "state"), states
        )
        labels = ("model", "gpu")
        text = "GPU memory planned for running servers."
        yield self._gauge("emberd_server_gpu_planned_bytes", text, labels, planned)
        text = "GPU memory in use by running servers, where the driver says it."
        yield self._gauge("emberd_server_gpu_used_bytes", text, labels, used)

    def _read_servers(self) -> list[_MeasuredServer]:
        marks = lost_records.marks_read_once()
        servers = self._manager.status()
        return [_MeasuredServer(own, gpu_servers.used_bytes(own, marks)) for own in servers]

    # -- forms --------------------------------------------------------------------------

    def _named(self, labels: Iterable[str]) -> tuple[str, ...]:
        """Return labels, the first of which is a model, with a model that may be shown."""
        values = tuple(labels)
        if not values or self._models is None or values[0] in self._models:
            return values
        return OTHER, *values[1:]

    def _counter(self, name: str, text: str, labels: Collection[str], rows: _Rows) -> Metric:
        return _filled(self._core.CounterMetricFamily(name, text, labels=labels), labels, rows)

    def _gauge(self, name: str, text: str, labels: Collection[str], rows: _Rows) -> Metric:
        return _filled(self._core.GaugeMetricFamily(name, text, labels=labels), labels, rows)


def _filled(family: Any, labels: Collection[str], rows: _Rows) -> Metric:
    if not labels and not rows:
        rows[()] = 0
    for values, number in rows.items():
        family.add_metric(values, number)
    found: Metric = family
    return found


@dataclass(frozen=True, slots=True)
class _MeasuredServer:
    """A server, and the memory that it uses of each GPU."""

    status: ServerStatus
    used_bytes: dict[str, int]


class _Kept(Generic[T]):
    """A value that is read again when it is older than a second.

    If that fails, the last one is kept: a count that falls would be taken for a restart.
    """

    def __init__(self, read: Callable[[], T], first: T) -> None:
        self._read = read
        self._value = first
        self._read_at_s = -_KEPT_S
        self._lock = threading.Lock()

    def get(self) -> T:
        with self._lock:
            if time.monotonic() - self._read_at_s >= _KEPT_S:
                with suppress(EmberdError, OSError):
                    self._value = self._read()
                self._read_at_s = time.monotonic()
            return self._value
