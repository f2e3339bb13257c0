"""A stand-in for ``pynvml``, and the C source of one for the library that ``pynvml`` loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

GIB = 1 << 30


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


@dataclass
class Card:
    uuid: str = "GPU-aaaa"
    name: str = "NVIDIA A10G"
    total: int = 24 * GIB
    free: int = 20 * GIB
    capability: tuple[int, int] = (8, 6)
    instances: Sequence[Card | None] | None = None
    error: int | None = None


@dataclass
class Nvml:
    """What ``survey`` uses of ``pynvml``, over the cards that a test gives."""

    cards: Sequence[Card] = ()
    holders: dict[str, list[Any]] = field(default_factory=dict)  # UUID -> pid, usedGpuMemory
    init_error: int | None = None
    driver: str = "580.95.05"
    cuda: int = 13_000
    taken: Path | None = None  # of each process a file named by its pid: the bytes that it has
    open: int = 0
    NVMLError: type[NVMLError] = field(default=NVMLError, init=False)

    def nvmlInit(self) -> None:  # noqa: N802
        if self.init_error is not None:
            raise NVMLError(self.init_error)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return self.driver

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:  # noqa: N802
        return self.cuda

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        card = self.cards[index]
        if card.error is not None:
            raise NVMLError(card.error)
        return card

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if self.open < 1:
            raise NVMLError(1)  # not initialised
        return uuid

    def nvmlDeviceGetComputeRunningProcesses(self, uuid: str) -> list[Any]:  # noqa: N802
        return [*self.holders.get(uuid, []), *self._taking()]

    def _taking(self) -> list[Any]:
        files = self.taken.iterdir() if self.taken and self.taken.exists() else ()
        return [
            SimpleNamespace(pid=int(file.name), usedGpuMemory=int(file.read_text()))
            for file in files
            if file.name.isdigit() and Path("/proc", file.name).exists()
        ]

    def nvmlDeviceGetCudaComputeCapability(self, card: Card) -> tuple[int, int]:  # noqa: N802
        return card.capability

    def nvmlDeviceGetMigMode(self, card: Card) -> list[int]:  # noqa: N802
        if card.instances is None:
            raise NVMLError(3)  # not supported
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:  # noqa: N802
        return len(card.instances or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, place: int) -> Card:  # noqa: N802
        found = (card.instances or ())[place]
        if found is None:
            raise NVMLError(6)  # not found
        return found

    def nvmlDeviceGetMemoryInfo(self, card: Card) -> Any:  # noqa: N802
        taken = sum(process.usedGpuMemory for process in self._taking())
        return SimpleNamespace(total=card.total, free=card.free - taken)

    def nvmlDeviceGetUUID(self, card: Card) -> str:  # noqa: N802
        return card.uuid

    def nvmlDeviceGetName(self, card: Card) -> str:  # noqa: N802
        return card.name


# Two cards; the initialisation answers what is compiled in as INIT.
LIBRARY = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
static int cards[2];
int nvmlInitWithFlags(unsigned int f) { return INIT; }
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int e) { return "made-up error"; }
int nvmlSystemGetDriverVersion(char *v, unsigned int n) { strncpy(v, "580.95.05", n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 13010; return 0; }
int nvmlDeviceGetCount_v2(unsigned int *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **h) { *h = &cards[i]; return 0; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *a, int *b) { *a = 8; *b = 9; return 0; }
int nvmlDeviceGetMigMode(void *h, unsigned int *c, unsigned int *p) { return 3; }
int nvmlDeviceGetMemoryInfo(void *h, memory_t *m) {
    m->total = 24ULL << 30; m->used = 4ULL << 30; m->free = 20ULL << 30; return 0;
}
int nvmlDeviceGetUUID(void *h, char *u, unsigned int n) {
    strncpy(u, h == &cards[0] ? "GPU-aaaa" : "GPU-bbbb", n); return 0;
}
int nvmlDeviceGetName(void *h, char *u, unsigned int n) { strncpy(u, "NVIDIA L4", n); return 0; }
"""
