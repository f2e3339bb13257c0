"""Random histories: callers use a server while faults hit it, its files and the callers.

``python -m faults.history --seeds 0:100`` runs a hundred, and prints which invariants each broke.

The invariants after every step: at most one server runs, no server runs without a supervisor, every
vector was right, every error was an ``EmberdError`` of a type that the step's faults permit, and
every call ended in time. At the end the next call works, and a stop leaves nothing behind.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from damage import OF_RECORD
from emberd.manager import Timing
from emberd.manager.paths import Home
from faults.caller import Caller, Setup
from faults.plan import CALLERS, TEXTS, Fault, Step
from faults.world import World

BOUND_S: Final = 75.0
"""The time limit of a call, which may include several starts (20 s) and requests (3 s)."""

_COOL_DOWN_S: Final = 1.0
TIMING: Final = Timing(
    poll_s=0.02,
    tick_s=0.1,
    look_s=0.2,
    lock_s=10.0,
    takeover_s=10.0,
    cool_down_s=_COOL_DOWN_S,
    lost_s=0.5,
    kill_s=5.0,
    probe_s=0.3,
)
_STOPPED_S: Final = 3.0
_LEFT_S: Final = 8.0
_SPLITTING: Final = {"remove folder", "remove machine", "damage alive"}
"""Faults after which a new supervisor may start while the old one notices that its lock is lost."""

_PERMITTED: Final[dict[str, set[str]]] = {
    # A start that was killed three times in a row is an error; one that was killed once is not.
    "kill engine": {"StartError"},
    "kill supervisor": {"StartError"},
    "kill all": {"StartError"},
    "suspend caller": {"LockTimeoutError"},
    "suspend engine": {"RequestTimeoutError", "ServerUnavailableError", "StartTimeoutError"},
    "suspend supervisor": {"StateFolderError", "StartError", "StartTimeoutError"},
    "damage server.log": {"StartError"},
    "damage lock": {"StateFolderError", "StartError"},
    "damage alive": {"StateFolderError", "StartError"},
    "remove folder": {"StateFolderError", "StartError"},
    "remove machine": {"StateFolderError", "StartError"},
    "fill": {"StateFolderError", "StartError"},
    "stop": {"ServerStoppedError"},
}


@dataclass
class _Timeline:
    """The pending events of a step, by time."""

    began: float = field(default_factory=time.monotonic)
    _events: list[tuple[float, int, Callable[[], object]]] = field(default_factory=list)
    _count: int = 0

    def add(self, after: float, event: Callable[[], object]) -> None:
        """Schedule an event ``after`` seconds from now."""
        self._count += 1
        heapq.heappush(self._events, (time.monotonic() + after, self._count, event))

    def pending_s(self) -> float | None:
        """Return the seconds until the next event; None if there is none."""
        return max(0.0, self._events[0][0] - time.monotonic()) if self._events else None

    def take_due(self, *, at_once: bool = False) -> None:
        """Run the events that are due; with ``at_once``, all events."""
        while self._events and (at_once or self._events[0][0] <= time.monotonic()):
            heapq.heappop(self._events)[2]()


class History:
    """One history in one world.

    Attributes:
        broken: The invariants that it broke.
        log: One line for each event.
        counts: How often each action ran, and each error was raised.
        longest_s: The duration of the longest call, in seconds.
    """

    def __init__(self, seed: int, world: World, setup: Setup, other: str | None = None) -> None:
        """Prepare it.

        Args:
            seed: Its seed.
            world: Its world.
            setup: What the callers use.
            other: ``PYTHONPATH`` of another version of emberd.
        """
        self.broken: list[str] = []
        self.log: list[str] = []
        self.counts: Counter[str] = Counter()
        self.longest_s = 0.0
        self._world = world
        self._setup = setup
        self._other_path = other
        self._other: Caller | None = None
        self._choose = random.Random(seed + 1)
        self._began = time.monotonic()
        self._traces = world.root / "traces"
        self._callers = [Caller(setup, self._traces) for _ in range(CALLERS)]
        self._disturbed_until = 0.0
        self._is_mixed = False
        self._overlaps = 0

    def run(self, steps: Sequence[Step]) -> None:
        """Run the steps and the final check; stop after a step that breaks an invariant."""
        try:
            for number, step in enumerate(steps):
                self._note(f"step {number}: {step}")
                self._run_step(step)
                if self.broken:
                    return
            self._note("the end")
            self._finish()
        finally:
            for each in filter(None, [*self._callers, self._other]):
                each.end()

    def _note(self, text: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:7.2f} {text}")

    def _break(self, text: str) -> None:
        self._note(f"BROKEN: {text}")
        self.broken.append(text)

    # -- a step -------------------------------------------------------------------------

    def _run_step(self, step: Step) -> None:
        self.counts[step.do] += 1
        if step.do == "idle":
            if left := self._world.settled(self._running):
                self._break(f"still runs although it is idle: {left}")
            return
        callers = [self._callers[number] for number in step.who]
        do, more = step.do, dict(step.more)
        if "texts" in more:
            more["texts"] = [self._text(number) for number in more["texts"]]
        if do == "other":
            do, callers = more.pop("does"), [self._other_caller()]
            self._is_mixed = True
        replies = self._call_all(callers, do, more, step.faults)
        for reply in replies:
            self._check_reply(reply, step.faults)
        self._check_servers(step.faults)
        if not step.faults:
            self._check_outcome(do, replies)
        else:
            self._disturbed_until = time.monotonic() + _COOL_DOWN_S

    def _text(self, number: int) -> str:
        known = list(self._setup.known) or TEXTS
        return known[number % len(known)]

    def _other_caller(self) -> Caller:
        if self._other is None:
            self._other = Caller(self._setup, self._traces, self._other_path)
        return self._other

    def _call_all(
        self, callers: list[Caller], do: str, more: dict[str, Any], faults: Sequence[Fault]
    ) -> list[dict[str, Any]]:
        """Send all ``callers`` a command at once, inject the faults, and return the replies."""
        timeline = _Timeline()
        for fault in faults:
            inject = self._injection(fault, callers, timeline)
            timeline.add(fault.at, inject) if fault.at else inject()
        for each in callers:
            each.ask(do, **more)
        began, replies = time.monotonic(), []
        while True:
            busy = [each for each in callers if each.busy]
            late_s = time.monotonic() - began - BOUND_S
            pending_s = timeline.pending_s()
            if late_s > 0 and busy:
                replies += [self._end_hung(each) for each in busy]
            elif not busy and pending_s is None:
                break
            elif busy:
                wait_s = min(-late_s, -late_s if pending_s is None else pending_s)
                for each in select.select(busy, [], [], max(0.0, wait_s))[0]:
                    if (reply := each.read()) is not None:
                        replies.append(self._note_reply(reply))
            timeline.take_due(at_once=not busy)
        self._callers = [self._replaced(each) for each in self._callers]
        return replies

    def _note_reply(self, reply: dict[str, Any]) -> dict[str, Any]:
        shown = {name: value for name, value in reply.items() if name != "trace"}
        self._note(f"  reply: {shown}")
        self.counts[reply.get("error", "ok")] += 1
        self.longest_s = max(self.longest_s, reply.get("seconds", 0.0))
        return reply

    def _end_hung(self, caller: Caller) -> dict[str, Any]:
        caller.signal(signal.SIGCONT)
        caller.signal(signal.SIGUSR1)
        time.sleep(1.0)
        caller.end()
        caller.busy, caller.ended = False, True
        traces = self._traces.read_text() if self._traces.exists() else ""
        return self._note_reply({"hung": f"no reply within {BOUND_S} s\n{traces}"})

    def _replaced(self, caller: Caller) -> Caller:
        return Caller(self._setup, self._traces) if caller.ended else caller

    # -- faults -------------------------------------------------------------------------

    def _injection(
        self, fault: Fault, callers: list[Caller], timeline: _Timeline
    ) -> Callable[[], None]:
        """Return a function that injects the fault and schedules its end."""

        def inject() -> None:
            self._note(f"  fault: {fault}")
            with suppress(FileNotFoundError, NotADirectoryError, ProcessLookupError):
                if end := self._inject(fault, callers):
                    timeline.add(fault.lasts, end)

        return inject

    def _inject(self, fault: Fault, callers: list[Caller]) -> Callable[[], object] | None:
        verb, _, victim = fault.what.partition(" ")
        if victim == "caller":
            chosen = self._choose.choice(callers)
            if verb == "kill":
                chosen.kill()
                return None
            chosen.signal(signal.SIGSTOP)
            return lambda: chosen.signal(signal.SIGCONT)
        if verb in {"kill", "suspend"}:
            victims = ["engine", "supervisor", "reaper"] if victim == "all" else [victim]
            there = [each.pid for each in self._world.processes() if each.kind in victims]
            # Without a record, no process can know later which files were this server's.
            if verb == "kill" and victim == "all" and not self._world.is_ready():
                self._world.ignore_leftovers()
            if verb == "kill":
                self._world.kill(there)
                return None
            for pid in there:
                os.kill(pid, signal.SIGSTOP)
            return lambda: self._continue(there)
        if verb == "damage":
            return self._damage(fault)
        if verb == "remove":
            home = Home(self._world.home)
            if not self._world.of("supervisor"):
                self._world.ignore_leftovers()
            for folder in self._world.folders() if victim == "folder" else [home.machine]:
                shutil.rmtree(folder, ignore_errors=True)
            return None
        if verb == "fill":
            self._world.fill()
            return self._world.free
        stopping = Caller(self._setup, self._traces)
        stopping.ask("stop")
        return stopping.end

    def _continue(self, pids: list[int]) -> None:
        there = {each.pid for each in self._world.processes()}
        for pid in there.intersection(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _damage(self, fault: Fault) -> Callable[[], object] | None:
        files = [folder / fault.file for folder in self._world.folders()]
        for file in files:
            with suppress(OSError, ValueError):
                if file.is_fifo():
                    file.unlink()  # from an earlier step; opening it would block
                OF_RECORD[fault.kind](file)
        # emberd does not replace a wrong start lock; an error says how to remove it.
        return partial(_remove_others, files) if fault.file == "lock" else None

    # -- invariants --------------------------------------------------------------------

    def _check_reply(self, reply: dict[str, Any], faults: Sequence[Fault]) -> None:
        """Check one reply against what the faults permit."""
        if "wrong" in reply:
            self._break(f"wrong vectors: {reply['wrong']}")
        elif "hung" in reply:
            self._break(f"hangs: {reply['hung']}")
        elif "error" in reply:
            permitted = set[str]().union(*(_permitted(fault) for fault in faults))
            if time.monotonic() < self._disturbed_until:
                permitted.add("StartError")  # an earlier start has just failed
            if self._is_mixed:
                permitted.add("OtherVersionError")
            if not reply["ours"] or not (reply["error"] in permitted or reply.get("starved")):
                self._break(f"{reply['error']}: {reply['text']}\n{reply['trace']}")

    def _check_servers(self, faults: Sequence[Fault]) -> None:
        for broken in self._world.settled(self._world.unsupervised):
            self._break(broken)
        for broken in self._world.settled(self._world.doubled):
            self._break(broken)
        overlaps = self._world.overlaps()
        if len(overlaps) > self._overlaps and not any(_name(f) in _SPLITTING for f in faults):
            self._break(f"two servers at once: {overlaps[self._overlaps :]}")
        self._overlaps = len(overlaps)

    def _check_outcome(self, do: str, replies: list[dict[str, Any]]) -> None:
        """Check what must be true after calls without faults."""
        used = {reply["start_id"] for reply in replies if "start_id" in reply}
        if do == "ensure" and len(used) > 1:
            self._break(f"callers got different servers: {used}")
        if do == "stop" and not self.broken:
            self._is_mixed = False
            if left := self._world.settled(self._running, _STOPPED_S):
                self._break(f"still runs after a stop: {left}")

    def _running(self) -> list[str]:
        kinds = {"engine", "supervisor", "reaper", "launcher"}
        return [str(each) for each in self._world.processes() if each.kind in kinds]

    # -- the end ------------------------------------------------------------------------

    def _finish(self) -> None:
        """Check that emberd works without faults, and leaves nothing behind."""
        time.sleep(_COOL_DOWN_S)
        self._disturbed_until = 0.0
        if self._other is not None:
            self._call_all([self._callers[0]], "stop", {}, ())
            self._is_mixed = False
        texts = [self._text(number) for number in range(5)]
        for do, more in (("ensure", {}), ("embed", {"texts": texts}), ("stop", {})):
            for reply in self._call_all([self._callers[0]], do, more, ()):
                self._check_reply(reply, ())
        for each in filter(None, [*self._callers, self._other]):
            each.end()
        if left := self._world.settled(self._world.left_behind, _LEFT_S):
            self._break(f"left behind: {', '.join(left)}")


def _name(fault: Fault) -> str:
    return f"damage {fault.file}" if fault.file else fault.what


def _permitted(fault: Fault) -> set[str]:
    return _PERMITTED.get(_name(fault), set())


def _remove_others(files: Sequence[Path]) -> None:
    for file in files:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif file.is_symlink() or not file.is_file():
            file.unlink(missing_ok=True)
