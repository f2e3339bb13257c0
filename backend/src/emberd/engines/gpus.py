"""The NVIDIA GPUs that a process started from here would see, read from NVML."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
"""The variable that limits which GPUs CUDA shows to a process."""

_ORDER: Final = "CUDA_DEVICE_ORDER"
_BY_BUS: Final = "PCI_BUS_ID"
_LOADED: Final = Path("/proc/driver/nvidia/version")
_NUMBER: Final = re.compile(r"\d+")
_MIG_ENABLED: Final = 1  # NVML_DEVICE_MIG_ENABLE
_GIB: Final = 1 << 30
_EMPTY: Final = 0.93  # of its nominal size: an A10G or L4 of 24 GB has 22.5 GiB

# nvmlReturn_t, as nvml.h numbers them.
_LIBRARY_NOT_FOUND: Final = 12
_CAUSES: Final = {
    4: "this user has no access to the GPUs; check the owner of /dev/nvidia*",
    9: "the NVIDIA driver is installed but not loaded; modprobe nvidia, or reboot",
    18: (
        "the NVIDIA driver in the kernel and its libraries have different versions, as after an "
        "update; reboot"
    ),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of one.

    Attributes:
        index: Position in the order of the PCI bus, as ``nvidia-smi`` numbers them.
        uuid: ``GPU-...`` or ``MIG-...``; ``CUDA_VISIBLE_DEVICES`` takes it.
        name: Product name.
        total_bytes: Size of its memory.
        free_bytes: Memory that is free now.
        capability: Compute capability, major and minor.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Survey:
    """The GPUs that were found.

    Attributes:
        gpus: Those that a process with this environment may use, in CUDA's order.
        driver: Version of the driver; None if it does not answer.
        cuda: Newest CUDA that the driver supports, major and minor.
        problem: Why there is no usable GPU, and what to do; None if there is one.
        notes: Further observations, for display.
    """

    gpus: tuple[Gpu, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    problem: str | None = None
    notes: tuple[str, ...] = ()


def survey(environ: Mapping[str, str] = os.environ) -> Survey:
    """Return the GPUs that a process with this environment would see; does not raise if none.

    ``CUDA_VISIBLE_DEVICES`` is read as CUDA reads it: numbers, UUIDs and unique prefixes of UUIDs,
    up to the first that does not exist; no GPU at all if one is named twice. Numbers count in the
    order of the PCI bus. CUDA's order is the same only with ``CUDA_DEVICE_ORDER=PCI_BUS_ID`` or if
    all GPUs are of one kind; if it may differ, a note says so.
    """
    try:
        nvml = importlib.import_module("pynvml")  # of the distribution nvidia-ml-py
    except ImportError:
        return Survey(
            problem="nvidia-ml-py is not installed, so GPUs cannot be detected; pip install "
            "nvidia-ml-py"
        )
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Survey(problem=_explain(error))
    try:
        return _look(nvml, environ)
    except nvml.NVMLError as error:
        return Survey(problem=_explain(error))
    finally:
        with contextlib.suppress(nvml.NVMLError):
            nvml.nvmlShutdown()


def freest(gpus: Sequence[Gpu], count: int = 1, locked: Sequence[str] = ()) -> tuple[Gpu, ...]:
    """Return up to ``count`` GPUs, those with the most free memory first.

    Args:
        gpus: What to choose from.
        count: How many are needed.
        locked: UUIDs of those that are locked for this start, which are used if there are any; a
            dry run locks none.
    """
    own = [gpu for gpu in gpus if gpu.uuid in locked] or gpus
    return tuple(sorted(own, key=lambda gpu: (-gpu.free_bytes, gpu.index))[:count])


def processes_on(uuid: str) -> list[tuple[int, int | None]]:
    """Return the pid of each process on a GPU and the bytes that it uses; does not raise.

    In a container the pids are those of the host, or the list is empty. On some GPUs the bytes are
    None, because NVML does not report them.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return []
    found = []
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            found = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
        finally:
            nvml.nvmlShutdown()
    return [(process.pid, process.usedGpuMemory) for process in found]


def empty_card(size_gb: float, capability: tuple[int, int]) -> Gpu:
    """Return an empty GPU of this nominal size, which need not be on this machine."""
    total_bytes = int(size_gb * _EMPTY * _GIB)
    return Gpu(0, "", f"an empty GPU of {size_gb:g} GB", total_bytes, total_bytes, capability)


def _look(nvml: Any, environ: Mapping[str, str]) -> Survey:
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    try:
        version = int(nvml.nvmlSystemGetCudaDriverVersion_v2())  # 13020 is CUDA 13.2
        cuda = (version // 1000, version % 1000 // 10)
    except nvml.NVMLError:
        cuda = None
    cards: list[tuple[Gpu, ...]] = []  # of each card its GPU, or its MIG instances
    notes = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            cards.append(tuple(_card(nvml, index)))
        except nvml.NVMLError as error:
            # CUDA does not number a card without access (in a container, or on a batch system).
            notes.append(f"GPU {index} cannot be read: {error}")
    named = environ.get(VISIBLE)
    gpus = _visible(cards, named)
    has_numbers = named and any(_NUMBER.match(word.strip()) for word in named.split(","))
    kinds = {gpu.name for card in cards for gpu in card}
    if has_numbers and len(kinds) > 1 and environ.get(_ORDER) != _BY_BUS:
        notes.append(
            f"the GPUs differ in kind, and CUDA numbers them by speed unless {_ORDER}={_BY_BUS}: "
            f"use UUIDs in {VISIBLE}"
        )
    problem = None if gpus else _none_left(cards, named, notes)
    return Survey(gpus, driver, cuda, problem, tuple(notes))


def _card(nvml: Any, index: int) -> Iterator[Gpu]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    for part in _parts(nvml, handle):
        memory = nvml.nvmlDeviceGetMemoryInfo(part)
        yield Gpu(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(part)),
            name=_text(nvml.nvmlDeviceGetName(part)),
            total_bytes=int(memory.total),
            free_bytes=int(memory.free),
            capability=(int(major), int(minor)),
        )


def _parts(nvml: Any, handle: Any) -> Iterator[Any]:
    """Yield the card, or its instances: with MIG enabled, CUDA never runs on the whole card."""
    try:
        has_mig = nvml.nvmlDeviceGetMigMode(handle)[0] == _MIG_ENABLED
    except nvml.NVMLError:  # not supported: most cards
        has_mig = False
    if not has_mig:
        yield handle
        return
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(nvml.NVMLError):  # not every index has an instance
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)


def _visible(cards: Sequence[tuple[Gpu, ...]], named: str | None) -> tuple[Gpu, ...]:
    if named is None:
        return tuple(gpu for card in cards for gpu in card)
    chosen: list[Gpu] = []
    for word in named.split(","):
        gpu = _named(cards, word.strip())
        if gpu is None:
            break
        if gpu in chosen:
            return ()
        chosen.append(gpu)
    return tuple(chosen)


def _named(cards: Sequence[tuple[Gpu, ...]], word: str) -> Gpu | None:
    if word.startswith(("GPU-", "MIG-")):
        found = [gpu for card in cards for gpu in card if gpu.uuid.startswith(word)]
        return found[0] if len(found) == 1 else None
    number = _NUMBER.match(word)
    if number is None or int(number[0]) >= len(cards):
        return None
    return next(iter(cards[int(number[0])]), None)


def _none_left(
    cards: Sequence[tuple[Gpu, ...]], named: str | None, notes: Sequence[str]
) -> str | None:
    gpus = [gpu for card in cards for gpu in card]
    if gpus:
        return (
            f"{VISIBLE}={named!r} selects none of the {len(gpus)} GPUs of this machine; "
            f"unset it, or select one: {VISIBLE}={gpus[0].uuid}"
        )
    if cards:
        return "MIG is enabled, and no GPU has an instance; create one: nvidia-smi mig -cgi 0 -C"
    return "; ".join(notes) or "the NVIDIA driver sees no GPU; check nvidia-smi and dmesg"


def _explain(error: Any) -> str:
    if error.value != _LIBRARY_NOT_FOUND:
        return _CAUSES.get(error.value, f"the NVIDIA driver returned an error: {error}")
    if _LOADED.exists():
        return (
            "an NVIDIA driver is loaded, but its management library (libnvidia-ml.so.1) was not "
            "found; start a container with --gpus all and "
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        )
    return "no NVIDIA driver: its management library (libnvidia-ml.so.1) is not on this machine"


def _text(value: str | bytes) -> str:
    # The distribution pynvml before 11.5 has the same import name and returns bytes.
    return value.decode(errors="replace") if isinstance(value, bytes) else value
