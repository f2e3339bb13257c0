"""Many processes that ask for one server while it, its supervisor and they themselves are killed.

``python -m faults.storm --processes 64 --rounds 50``. In each round all processes ask at once, and
three kills strike at random moments. Each process must get the one server, or an ``EmberdError``.
When the kills end, all get the same server, and it works.
"""

from __future__ import annotations

import argparse
import os
import random
import select
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from faults import pool
from faults.caller import Caller, Setup
from faults.history import BOUND_S, TIMING
from faults.world import World

_KILLS: Final = 3
_WITHIN_S: Final = 1.5
_VICTIMS: Final = ("engine", "engine", "supervisor", "supervisor", "reaper", "caller")
_PERMITTED: Final = {"StartError"}
"""After three kills in a row, a start is an error that says so."""


class _Storm:
    def __init__(self, folder: Path, seed: int, processes: int) -> None:
        self.broken: list[str] = []
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self._choose = random.Random(seed)
        self._world = World(folder, str(folder))
        self._traces = folder / "traces"
        self._setup = Setup(
            home=str(self._world.home),
            model=f"stub/m?witness={self._world.witness}&start=0.2",
            engine="stubs.engine",
            # As long as a user's, so that none of the 64 that wait for the lock is refused.
            timing=asdict(replace(TIMING, lock_s=60.0)),
            start_timeout=60.0,
        )
        self._callers = [Caller(self._setup, self._traces) for _ in range(processes)]

    def run(self, rounds: int) -> pool.Result:
        try:
            for number in range(rounds):
                self._round()
                if self.broken:
                    self.broken = [f"round {number}: {each}" for each in self.broken]
                    break
            for caller in self._callers:
                caller.end()
            if not self.broken and (left := self._world.settled(self._world.left_behind)):
                self.broken.append(f"left behind: {left}")
        finally:
            self._world.end()
        return {"broken": self.broken, "counts": self.counts, "seconds": self.seconds}

    def _round(self) -> None:
        began = time.monotonic()
        kills = sorted(_WITHIN_S * self._choose.random() for _ in range(_KILLS))
        replies = self._asked("ensure", kills)
        self.seconds.append(time.monotonic() - began)
        for reply in replies:
            self._judge(reply, _PERMITTED)
        self._callers = [
            Caller(self._setup, self._traces) if each.ended else each for each in self._callers
        ]
        time.sleep(TIMING.cool_down_s)  # a start that was killed three times is refused so long
        replies = self._asked("ensure", [])
        for reply in replies:
            self._judge(reply, set())
        if len({reply.get("start_id") for reply in replies}) != 1:
            self.broken.append(f"not one server: {replies}")
        embedded = self._callers[0].answer("embed", BOUND_S, texts=["a", "b"])
        self._judge(embedded or {"hung": True}, set())
        self.broken += self._world.settled(self._world.doubled)
        self.broken += self._world.settled(self._world.unsupervised)
        self.broken += [f"two servers at once: {each}" for each in self._world.overlaps()]
        self._judge(self._callers[0].answer("stop", BOUND_S) or {"hung": True}, set())

    def _asked(self, do: str, kills: list[float]) -> list[dict[str, Any]]:
        began = time.monotonic()
        for caller in self._callers:
            caller.ask(do)
        replies: list[dict[str, Any]] = []
        while busy := [caller for caller in self._callers if caller.busy]:
            now = time.monotonic() - began
            if now > BOUND_S:
                return [*replies, {"hung": f"{len(busy)} callers"}]
            ready = select.select(busy, [], [], max(0.0, kills[0] - now) if kills else 1.0)[0]
            replies += [reply for each in ready if (reply := each.read()) is not None]
            if kills and time.monotonic() - began >= kills[0]:
                kills.pop(0)
                self._kill()
        return replies

    def _kill(self) -> None:
        victim = self._choose.choice(_VICTIMS)
        self.counts[f"kill {victim}"] += 1
        if victim == "caller":
            self._choose.choice(self._callers).kill()
            return
        for pid in self._world.of(victim):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _judge(self, reply: dict[str, Any], permitted: set[str]) -> None:
        self.counts[next((key for key in ("killed", "error", "hung") if key in reply), "ok")] += 1
        is_permitted = reply.get("ours", True) and reply.get("error") in {None, *permitted}
        if "hung" in reply or "wrong" in reply or not is_permitted:
            self.broken.append(str(reply))


def main() -> int:
    """Run the rounds; return 1 if one of them broke something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=os.environ.get("FAULTS_SEED", "0"))
    given = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    began = time.monotonic()

    def work(folder: Path, seed: int) -> pool.Result:
        return _Storm(folder, seed, given.processes).run(given.rounds)

    ((_, result),) = pool.run(root, [given.seed], work, width=1)
    seconds = result.get("seconds") or [0.0]
    print(
        f"storm: {len(seconds)} rounds of {given.processes} processes with {_KILLS} kills each, "
        f"seed {given.seed}, {time.monotonic() - began:.0f} s; until all have an answer: median "
        f"{statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s; "
        f"{dict(result.get('counts', {}))}"
    )
    for broken in result["broken"]:
        print(broken)
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
