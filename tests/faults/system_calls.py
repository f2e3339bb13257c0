"""Injects each error, and a kill, into every relevant system call once.

``python -m faults.system_calls`` traces a client and a supervisor, counts the calls that concern
the state folder, sockets and processes, and then repeats the run once for each of them and each
fault. In each run every error must be an ``EmberdError``; afterwards the next ``ensure`` must work,
and nothing may be left behind.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from emberd.settings import ServerSpec
from faults import names, pool
from faults.caller import Caller, Setup
from faults.history import TIMING
from faults.strace import Strace, why_unavailable
from faults.world import World

_BOUND_S: Final = 75.0
_ENDED_S: Final = 10.0
_IDLE_S: Final = 0.3
_FAULTS: Final = {
    **dict.fromkeys(("openat", "mkdir", "mkdirat"), ("ENOSPC", "EIO", "EMFILE", "EACCES")),
    **dict.fromkeys(("write", "pwrite64", "ftruncate", "fsync"), ("ENOSPC", "EIO")),
    **dict.fromkeys(("rename", "renameat", "renameat2"), ("ENOSPC", "EIO", "EACCES")),
    **dict.fromkeys(("unlink", "unlinkat", "rmdir", "utimensat", "fchmod"), ("EIO", "EACCES")),
    **dict.fromkeys(("fork", "vfork", "clone", "clone3"), ("EAGAIN", "EACCES")),
    **dict.fromkeys(("kill", "pidfd_send_signal"), ("EACCES",)),
    **dict.fromkeys(("pipe2", "pidfd_open"), ("EMFILE",)),
    **dict.fromkeys(("connect", "execve"), ("EACCES", "EIO")),
    "flock": ("EIO", "EACCES"),
    "socket": ("EMFILE", "EACCES"),
    "sendto": ("EIO",),
}
_WITH_PATHS: Final = [
    *("openat", "mkdir", "mkdirat", "write", "pwrite64", "ftruncate", "rename"),
    *("renameat", "renameat2", "unlink", "unlinkat", "rmdir", "utimensat", "fchmod"),
    *("fsync", "flock"),
]
_OTHERS: Final = [
    *("socket", "connect", "sendto", "pipe2", "execve", "kill", "pidfd_send_signal"),
    *("pidfd_open", "fork", "vfork", "clone", "clone3"),
]
_KILL: Final = "KILL"
RUNS: Final = ("client", "idle supervisor", "dying supervisor")
_WRAPPER: Final = """#!/bin/sh
if mkdir '{folder}/once' 2>/dev/null; then
  echo $$ > '{folder}/pid.new' && mv '{folder}/pid.new' '{folder}/pid'
  read go < '{folder}/gate'
fi
exec '{python}' "$@"
"""


@dataclass(frozen=True)
class Point:
    """One system call and the fault injected into it, or a run that counts the calls.

    Attributes:
        run: Which run.
        has_paths: Whether the call is one of those that are selected by path.
        call: Its name; empty to count.
        number: Which one, counted from 1.
        fault: An error, or ``KILL``.
    """

    run: str
    has_paths: bool
    call: str = ""
    number: int = 0
    fault: str = ""

    @property
    def inject(self) -> str:
        """The value of strace's ``inject``."""
        how = "signal=KILL" if self.fault == _KILL else f"error={self.fault}"
        return f"{self.call}:{how}:when={self.number}" if self.call else ""

    def __str__(self) -> str:
        return f"{self.run}:{self.call}:{self.number}:{self.fault}"


class _Run:
    """One run in its own world."""

    def __init__(self, folder: Path, point: Point) -> None:
        self.world = World(folder, str(folder))
        self.point = point
        self.broken: list[str] = []
        self.notes: list[str] = []
        self.calls: dict[str, list[int]] = {}
        self._folder = folder
        self._traces = folder / "traces"
        self._trace: Strace | None = None
        is_idle = point.run == RUNS[1]
        self._setup = Setup(
            home=str(self.world.home),
            model=f"stub/m?witness={self.world.witness}&faults=leaves-files",
            engine="stubs.engine",
            # No cool-down, because the next start is what is checked. With fewer iterations of
            # polling loops a call more often has the same number in two runs.
            timing=asdict(replace(TIMING, cool_down_s=0.0, poll_s=0.3, tick_s=0.3)),
            idle_timeout=_IDLE_S if is_idle else 600.0,
            is_predictable=True,
        )

    def result(self) -> pool.Result:
        """Run, check the state afterwards, and return the result."""
        try:
            self._client() if self.point.run == RUNS[0] else self._supervisor()
            if not self.broken:
                self._check()
        finally:
            injected = ""
            if self._trace is not None:
                injected = self._trace.injected
                with suppress(ProcessLookupError):
                    self._trace.detach()
            self.world.end()
            if self.broken:
                self.world.keep(self._folder / "kept")
        return {
            "broken": self.broken,
            "injected": injected,
            "calls": self.calls,
            "log": self.notes,
        }

    def _attach(self, pid: int, *, follow: bool) -> Strace:
        spec = ServerSpec(self._setup.model, engine=self._setup.engine)
        paths = names.of(self.world.home, self.world.temporary, spec.key, "cd")
        self._trace = Strace(
            pid,
            self._folder,
            _WITH_PATHS if self.point.has_paths else _OTHERS,
            paths=paths if self.point.has_paths else (),
            inject=self.point.inject,
            follow=follow,
        )
        return self._trace

    def _client(self) -> None:
        """A client starts a server, embeds, loses the server, and embeds again."""
        client = Caller(self._setup, self._traces)
        client.answer("find", _BOUND_S)  # all imports are done
        trace = self._attach(client.pid, follow=False)
        if self._call(client, "embed", texts=["one", "two"]):
            for pid in self.world.of("engine"):
                os.kill(pid, 9)
            self._call(client, "embed", texts=["three", "four"])
        self.calls = trace.calls()
        client.end()

    def _supervisor(self) -> None:
        """A supervisor starts a server, and ends when that is idle or was killed."""
        wrapper, gate = self._folder / "python", self._folder / "gate"
        wrapper.write_text(_WRAPPER.format(folder=self._folder, python=sys.executable))
        wrapper.chmod(0o700)
        os.mkfifo(gate)
        client = Caller(replace(self._setup, python=str(wrapper)), self._traces)
        client.ask("embed", texts=["one", "two"])
        deadline = time.monotonic() + _BOUND_S
        while not (self._folder / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        trace = self._attach(int((self._folder / "pid").read_text()), follow=True)
        gate.write_text("go\n")
        self._await(client)
        supervisors = self.world.of("supervisor")
        if self.point.run == RUNS[2]:
            for pid in self.world.of("engine"):
                os.kill(pid, 9)
        # Whether it ends at all is checked at the end: nothing may be left behind.
        until = time.monotonic() + (_ENDED_S if self.point.run == RUNS[1] else 2.0)
        while self.world.of("supervisor") and time.monotonic() < until:
            self._detach_if_injected()
            time.sleep(0.02)
        if supervisors and not self.point.call:
            self.calls = trace.calls(supervisors[0])
        client.end()

    def _call(self, client: Caller, do: str, **more: Any) -> bool:
        client.ask(do, **more)
        return self._await(client)

    def _await(self, client: Caller) -> bool:
        """Wait for the client's reply, and return whether it has a result."""
        deadline = time.monotonic() + _BOUND_S
        while (left := deadline - time.monotonic()) > 0:
            self._detach_if_injected()
            is_readable = select.select([client], [], [], min(left, 0.01))[0]
            if is_readable and (reply := client.read()) is not None:
                return self._check_reply(reply)
        self.broken.append("hangs")
        return False

    def _detach_if_injected(self) -> None:
        """Detach from the traced process after the injection."""
        if self._trace is None or not self._trace.detach_if_injected():
            return
        if self.point.fault == _KILL:
            self.world.ignore_unlisted_memory()

    def _check_reply(self, reply: dict[str, Any]) -> bool:
        self.notes.append(str({name: value for name, value in reply.items() if name != "trace"}))
        if "wrong" in reply:
            self.broken.append(f"wrong vectors: {reply}")
        if "error" in reply and not reply["ours"]:
            self.broken.append(f"{reply['error']}: {reply['text']}\n{reply['trace']}")
        return "texts" in reply

    def _check(self) -> None:
        """Check that the next call works, and that nothing is left after a stop."""
        if self._trace is not None:
            self._trace.detach()
        for broken in self.world.settled(self.world.unsupervised):
            self.broken.append(broken)
        setup = replace(self._setup, is_predictable=False, idle_timeout=600.0)
        client = Caller(setup, self._traces)
        for do, more in (("ensure", {}), ("embed", {"texts": ["five"]}), ("stop", {})):
            client.ask(do, **more)
            self._await(client)
            if "error" in self.notes[-1]:
                self.broken.append(f"{do} fails afterwards: {self.notes[-1]}")
        client.end()
        self.broken += [
            f"left behind: {left}" for left in self.world.settled(self.world.left_behind)
        ]


def work(folder: Path, point: Point) -> pool.Result:
    """Do one run."""
    return _Run(folder, point).result()


def counted(root: Path, runs: Sequence[str], width: int) -> list[Point]:
    """Return every point: each counted call with each of its faults."""
    points = []
    jobs = [Point(run, has_paths) for run in runs for has_paths in (True, False)]
    for job, result in pool.run(root, jobs, work, width=width):
        if result["broken"]:
            raise RuntimeError(f"{job} without a fault: {result['broken'][0]}")
        for call, numbers in result["calls"].items():
            points += [
                Point(job.run, job.has_paths, call, number, fault)
                for number in numbers
                for fault in (*_FAULTS[call], _KILL)
            ]
    return points


def _parsed(text: str) -> Point:
    run, call, number, fault = text.split(":")
    return Point(run, call in _WITH_PATHS, call, int(number), fault)


def main() -> int:
    """Run the campaign; return the number of points that broke an invariant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", choices=RUNS, action="append", help="only the points of this run")
    parser.add_argument("--sample", type=int, help="run only this many of the points")
    parser.add_argument("--seed", type=int, default=0, help="which sample, and the order")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="start no run after this many seconds"
    )
    parser.add_argument("--skip", type=int, default=0, help="skip this many points")
    parser.add_argument("--only", action="append", help="a point, such as client:openat:3:EIO")
    parser.add_argument("--width", type=int, default=2, help="number of concurrent runs")
    arguments = parser.parse_args()
    if reason := why_unavailable():
        print(f"SKIPPED: {reason}")
        return 0
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    began = time.monotonic()
    for part in ("count", "inject"):
        (root / part).mkdir()
    if arguments.only:
        points = [_parsed(each) for each in arguments.only]
    else:
        points = counted(root / "count", arguments.run or RUNS, arguments.width)
    random.Random(arguments.seed).shuffle(points)
    chosen = points[arguments.skip :][: arguments.sample]
    done = failed = hit = 0
    table: dict[tuple[str, str], Counter[str]] = {}
    for point, result in pool.run(
        root / "inject", chosen, work, width=arguments.width, seconds=arguments.seconds
    ):
        done += 1
        hit += bool(result.get("injected"))
        row = table.setdefault((point.run, point.call), Counter())
        row.update(["tried", *(["broke"] if result["broken"] else [])])
        if result["broken"]:
            failed += 1
            print(f"{point} at {result.get('injected')}: {result['broken']}", flush=True)
            print("\n".join(f"    {note}" for note in result.get("log", [])), flush=True)
    seconds = time.monotonic() - began
    print(
        f"system calls: {len(points)} points, {done} tried, {hit} hit, {failed} broke something, "
        f"{seconds:.0f} s at width {arguments.width}"
    )
    for (run, call), row in sorted(table.items()):
        print(f"  {run}: {call}: {row['tried']} tried, {row['broke']} broke something")
    shutil.rmtree(root, ignore_errors=True) if not failed else print(f"  state and logs: {root}")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
