"""Plans a random history: steps, each a call by some callers and the faults injected during it.

The seed determines the plan, including the times of the faults. It does not determine what a
process is doing at those times.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final

from damage import OF_ANY_FILE, OF_RECORD

CALLERS: Final = 4

TEXTS: Final = [
    *(f"text {number}" for number in range(20)),
    *(f"SLOW {0.01 * number:.2f} text" for number in range(1, 11)),
    *("Grüße aus Köln", "日本語のテキスト", "e\u0301 and é", "a\x00b", "x" * 400),
]

_ACTIONS: Final = {
    "embed": 7,
    "aembed": 3,
    "threads": 2,
    "ensure": 5,
    "stop": 2,
    "forks": 1,
    "starve": 1,
    "find": 1,
    "idle": 1,
    "other": 1,
}
_FAULTS: Final = {
    "kill engine": 4,
    "kill supervisor": 4,
    "kill reaper": 1,
    "kill caller": 2,
    "kill all": 1,
    "suspend engine": 1,
    "suspend supervisor": 2,
    "suspend reaper": 1,
    "suspend caller": 1,
    "damage": 7,
    "remove folder": 1,
    "remove machine": 1,
    "fill": 2,
    "stop": 1,
}
_FILES: Final = {
    "record.json": 6,
    "alive": 2,
    "lock": 2,
    "last-used": 2,
    "server.log": 2,
    "secret.yaml": 1,
    "suspect": 1,
}
_UNDISTURBED: Final = {"idle", "other"}
_BY_SEVERAL: Final = {"ensure", "embed", "aembed"}
_WITH_TEXTS: Final = {"embed", "aembed", "threads", "forks", "starve"}


@dataclass(frozen=True)
class Fault:
    """A fault that is injected during a step.

    Attributes:
        what: Its name.
        at: Seconds after the start of the calls; 0 for before them.
        lasts: Its duration in seconds, if it ends.
        file: The file that is damaged.
        kind: How it is damaged.
    """

    what: str
    at: float
    lasts: float = 0.0
    file: str = ""
    kind: str = ""

    def __str__(self) -> str:
        what = f"{self.file} {self.kind}" if self.file else self.what
        return f"{what} at {self.at:.3f} for {self.lasts:.2f}"


@dataclass(frozen=True)
class Step:
    """A command that some callers run at the same time, and the faults during it.

    Attributes:
        do: A command of ``caller``; ``idle`` waits for the idle stop, ``other`` is a call of
            another version of emberd.
        who: The numbers of the callers.
        more: The command's arguments.
        faults: The faults during the command.
    """

    do: str
    who: tuple[int, ...]
    more: dict[str, Any] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def __str__(self) -> str:
        faults = ", ".join(map(str, self.faults)) or "nothing"
        return f"{self.do} by {self.who} {self.more}; {faults}"


@dataclass(frozen=True)
class Plan:
    """The plan of a history.

    Attributes:
        is_idle: Whether its servers stop after half a second without use.
        steps: Its steps.
    """

    is_idle: bool
    steps: list[Step]


def make(seed: int, steps: int, *, has_disk: bool, is_stub: bool) -> Plan:
    """Return the history of ``seed``.

    Args:
        seed: The seed.
        steps: How many steps.
        has_disk: Whether the disk can be filled.
        is_stub: Whether another version of emberd can start the same server.
    """
    choose = random.Random(seed)
    is_idle, is_mixed = choose.random() < 0.3, is_stub and choose.random() < 0.2
    possible = {"idle": is_idle, "other": is_mixed, "fill": has_disk}
    actions = {name: weight for name, weight in _ACTIONS.items() if possible.get(name, True)}
    faults = {name: weight for name, weight in _FAULTS.items() if possible.get(name, True)}
    return Plan(is_idle, [_step(choose, actions, faults) for _ in range(steps)])


def _pick(choose: random.Random, weights: dict[str, int]) -> str:
    return choose.choices(list(weights), list(weights.values()))[0]


def _step(choose: random.Random, actions: dict[str, int], faults: dict[str, int]) -> Step:
    do = _pick(choose, actions)
    count = choose.choice([1, 1, 2, CALLERS]) if do in _BY_SEVERAL else 1
    who = tuple(choose.sample(range(CALLERS), count))
    more: dict[str, Any] = {}
    if do in _WITH_TEXTS:
        more["texts"] = [choose.randrange(len(TEXTS)) for _ in range(choose.choice([1, 3, 9, 25]))]
    if do == "starve":
        more["free"] = choose.randrange(12)
    if do == "other":
        more["does"] = choose.choice(["ensure", "find", "stop"])
    fault_count = 0 if do in _UNDISTURBED else choose.choices([0, 1, 2], [4, 5, 1])[0]
    return Step(do, who, more, tuple(_fault(choose, faults) for _ in range(fault_count)))


def _fault(choose: random.Random, faults: dict[str, int]) -> Fault:
    what = _pick(choose, faults)
    # Most of the work of a call happens soon after its start.
    at = 0.0 if choose.random() < 0.3 else 1.5 * choose.random() ** 3
    lasts = 2 * choose.random() ** 2
    if what != "damage":
        return Fault(what, at, lasts)
    file = _pick(choose, _FILES)
    kinds = OF_RECORD if file == "record.json" else OF_ANY_FILE
    return Fault(what, at, lasts, file, choose.choice(list(kinds)))
