"""Callers that come and go for a long time, kills and idle stops: nothing grows, nothing is left.

``make soak`` runs it for SOAK_MINUTES (20). There are two servers. One is used all the time and
never killed: its processes, and two callers that stay, must not grow. The other one is killed, and
stops when it is idle.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from faults import pool
from faults.caller import Caller, Setup
from faults.history import BOUND_S, TIMING
from faults.world import World

_COMING: Final = 4
_KILLED_EVERY_S: Final = 2.0
_IDLE_S: Final = 0.5
_GROWTH_BYTES: Final = 24 * 1024 * 1024
"""What a process may have more at the end than when it had done everything a few times."""
_KILLED: Final = ("engine", "engine", "supervisor", "reaper", "caller")
_DOES: Final = ("embed", "embed", "aembed", "threads", "ensure", "forks")


@dataclass(frozen=True)
class _Size:
    descriptors: int
    threads: int
    resident: int

    @classmethod
    def of(cls, pid: int) -> _Size:
        status = Path(f"/proc/{pid}/status").read_text().split()
        threads = int(status[status.index("Threads:") + 1])
        resident = int(status[status.index("VmRSS:") + 1]) * 1024
        return cls(len(os.listdir(f"/proc/{pid}/fd")), threads, resident)

    def growth(self, before: _Size) -> list[str]:
        """Return what is more than before."""
        grown = []
        if self.descriptors > before.descriptors:
            grown.append(f"{before.descriptors} descriptors became {self.descriptors}")
        if self.threads > before.threads:
            grown.append(f"{before.threads} threads became {self.threads}")
        if self.resident > before.resident + _GROWTH_BYTES:
            grown.append(f"{before.resident >> 20} MiB became {self.resident >> 20}")
        return grown


class _Soak:
    def __init__(self, folder: Path, seed: int) -> None:
        self.broken: list[str] = []
        self.counts: Counter[str] = Counter()
        self._choose = random.Random(seed)
        self._world = World(folder, str(folder))
        self._traces = folder / "traces"
        wishes = f"witness={self._world.witness}&faults=leaves-files,leaves-children"
        setup = Setup(
            home=str(self._world.home),
            model=f"stub/stormy?{wishes}",
            engine="stubs.engine",
            timing=asdict(TIMING),
            idle_timeout=_IDLE_S,
        )
        steady = replace(setup, model=f"stub/steady?{wishes}", idle_timeout=None)
        self._setup = setup
        self._steady = steady
        self._staying = [Caller(steady, self._traces) for _ in range(2)]
        self._coming: list[Caller] = []
        self._files: set[str] = set()  # of what is never killed

    def run(self, seconds: float) -> pool.Result:
        try:
            self._soak(seconds)
        finally:
            self._world.end()
        return {"broken": self.broken, "counts": self.counts}

    def _soak(self, seconds: float) -> None:
        for _ in range(3):  # whatever a process makes once, it has made then
            for caller in self._staying:
                for do in dict.fromkeys(_DOES):
                    self._judge(caller.answer(do, BOUND_S, **self._more(do)), set())
        steady = [
            *(caller.pid for caller in self._staying),
            *self._processes("steady"),
            os.getpid(),
        ]
        before = {pid: _Size.of(pid) for pid in steady}
        self._files = self._world.left_in_memory_and_temporary()
        until = time.monotonic() + seconds
        next_kill = time.monotonic()
        while time.monotonic() < until and not self.broken:
            self._turn()
            if time.monotonic() > next_kill:
                next_kill = time.monotonic() + 2 * _KILLED_EVERY_S * self._choose.random()
                self._kill()
        self._let_all_answer()
        for caller in self._coming:
            caller.end()
        for caller in self._staying:
            self._judge(caller.answer("embed", BOUND_S, texts=["the end"]), set())
        self.broken += self._world.settled(self._processes_left, 20.0)
        for pid in steady:
            try:
                grown = _Size.of(pid).growth(before[pid])
            except FileNotFoundError:
                grown = ["has ended"]
            self.broken += [f"process {pid}: {each}" for each in grown]
        if more := self._world.settled(self._more_files, 10.0):
            self.broken.append(f"files: {more}")
        self._judge(self._staying[0].answer("stop", BOUND_S), set())
        for caller in self._staying:
            caller.end()
        if left := self._world.settled(self._world.left_behind):
            self.broken.append(f"left behind: {left}")

    def _turn(self) -> None:
        """Let callers come, ask, answer and go."""
        everybody = [*self._staying, *self._coming]
        if len(self._coming) < _COMING and self._choose.random() < 0.2:
            setup = self._setup if self._choose.random() < 0.7 else self._steady
            self._coming.append(Caller(setup, self._traces))
            self.counts["came"] += 1
        for caller in everybody:
            if not caller.busy and self._choose.random() < 0.3:
                do = self._choose.choice(_DOES)
                caller.ask(do, **self._more(do))
        self._take(0.05)
        for caller in [each for each in self._coming if not each.busy]:
            if caller.ended or self._choose.random() < 0.1:
                caller.end()
                self._coming.remove(caller)
        if self._choose.random() < 0.01:  # everybody leaves the killed server: it stops
            self._let_all_answer()
            for caller in self._coming:
                caller.end()
            self._coming = []
            idle = self._world.settled(self._processes_left, 20.0)
            self.broken += [f"not stopped when idle: {each}" for each in idle]
            self.counts["idle"] += 1

    def _take(self, seconds: float) -> None:
        busy = [each for each in (*self._staying, *self._coming) if each.busy]
        for caller in select.select(busy, [], [], seconds)[0]:
            if (reply := caller.read()) is not None:
                self._judge(reply, set() if caller in self._staying else {"StartError"})

    def _let_all_answer(self) -> None:
        until = time.monotonic() + BOUND_S
        while any(each.busy for each in (*self._staying, *self._coming)):
            if time.monotonic() > until:
                self.broken.append("a call hangs")
                return
            self._take(0.1)

    def _more(self, do: str) -> dict[str, Any]:
        count = self._choose.choice([1, 5, 20])
        texts = [f"text {self._choose.random()}" for _ in range(count)]
        return {} if do == "ensure" else {"texts": texts}

    def _kill(self) -> None:
        victim = self._choose.choice(_KILLED)
        self.counts[f"kill {victim}"] += 1
        if victim == "caller":
            if self._coming:
                self._choose.choice(self._coming).kill()
            return
        for pid in self._processes("stormy", victim):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._world.ignore_unlisted_memory()

    def _processes(self, model: str, kind: str = "") -> list[int]:
        """Return the processes of one of the two servers."""
        there = self._world.processes()
        parents = {each.parent for each in there if f"stub/{model}" in each.command}
        supervisors = {
            each.pid for each in there if each.kind == "supervisor" and each.pid in parents
        }
        return [
            each.pid
            for each in there
            if (each.pid in supervisors or each.parent in supervisors) and kind in {"", each.kind}
        ]

    def _processes_left(self) -> list[str]:
        return [f"process {pid}" for pid in self._processes("stormy")]

    def _more_files(self) -> list[str]:
        return sorted(self._world.left_in_memory_and_temporary() - self._files)

    def _judge(self, reply: dict[str, Any] | None, permitted: set[str]) -> None:
        if reply is None:
            self.broken.append("hangs")
            return
        self.counts[reply.get("error", "killed" if "killed" in reply else "ok")] += 1
        is_permitted = reply.get("ours", True) and reply.get("error") in {None, *permitted}
        if "hung" in reply or "wrong" in reply or not is_permitted:
            self.broken.append(str(reply))


def main() -> int:
    """Soak; return 1 if something broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=os.environ.get("SOAK_MINUTES", "20"))
    parser.add_argument("--seed", type=int, default=os.environ.get("FAULTS_SEED", "0"))
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="faults-"))

    def work(folder: Path, seed: int) -> pool.Result:
        return _Soak(folder, seed).run(60 * given.minutes)

    ((_, result),) = pool.run(root, [given.seed], work, width=1)
    print(f"soak: {given.minutes:g} minutes, seed {given.seed}; {dict(result.get('counts', {}))}")
    for broken in result["broken"]:
        print(broken)
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
