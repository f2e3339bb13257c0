"""GPUs: driver, free memory and its users, whether the model fits, and compilers for kernels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from emberd.doctor.findings import Finding, note, ok, problem
from emberd.doctor.wanted import Wanted
from emberd.engines import gpus
from emberd.engines.gpu_usage import GpuServer
from emberd.engines.gpus import Gpu, Survey
from emberd.engines.sglang import ENGINE, support
from emberd.errors import StartError
from emberd.manager import gpu_servers

_GIB: Final = 1 << 30
_WORTH_NAMING_BYTES: Final = _GIB // 2  # the driver itself holds some hundred megabytes
_NAMED: Final = 3
_NVIDIA_SMI: Final = "nvidia-smi on the host lists the processes outside this container, too"


def check_gpus(wanted: Wanted) -> Iterator[Finding]:
    """Yield the driver and the GPUs. Whether an engine can use them is checked elsewhere."""
    seen = gpus.survey()
    yield _driver(seen)
    servers = gpu_servers.of_home(wanted.places.home) if seen.gpus else []
    for gpu in seen.gpus:
        yield _card(gpu)
        yield from _planned_on(gpu, servers)
        if gpu.total_bytes - gpu.free_bytes > _WORTH_NAMING_BYTES:
            yield _held(gpu)
    for text in seen.notes:
        yield note("gpus", text)


def check_gpu_memory(wanted: Wanted) -> Iterator[Finding]:
    """Yield whether the model fits, before an engine of ten gigabytes is installed for it."""
    spec, options, seen = wanted.spec, wanted.options, gpus.survey()
    unsuitable = support.why_unsuitable(seen, options.gpus, spec.quantization)
    if unsuitable or not _may_use_gpu(wanted):
        return
    servers = gpu_servers.of_home(wanted.places.home)
    own = next((each.memory for each in servers if each.serves(spec) and each.memory), None)
    if own is not None:
        planned = _gib(own.planned_bytes)
        yield ok("memory", f"a server of {spec.model} runs, planned to take {planned} GiB")
        return
    try:
        estimated = ENGINE.estimate(spec, options, seen.gpus, servers)
    except StartError as error:
        yield problem("memory", error.cause.rstrip("."), error.advice)
        return
    if estimated is not None:
        need, left = _gib(estimated.need_bytes), _gib(estimated.free_bytes)
        others = "".join(f"; {reason.what} {reason.why}" for reason in estimated.left)
        fact = f"{spec.model} needs about {need} of {left} GiB free on {estimated.device}{others}"
        yield ok("memory", fact)


def _may_use_gpu(wanted: Wanted) -> bool:
    """Return whether the request allows SGLang on a GPU."""
    return wanted.spec.engine in (None, ENGINE.name) and wanted.spec.device in (None, "cuda")


def _driver(seen: Survey) -> Finding:
    if seen.problem:
        fact, _, advice = seen.problem.partition("; ")
        return note("driver", fact, advice)
    fact = f"NVIDIA {seen.driver}"
    if seen.cuda is None:
        return ok("driver", fact)
    fact += f", runs CUDA up to {_dotted(seen.cuda)}"
    if seen.cuda < support.NEEDS_CUDA:
        # The engine's message names the driver version that is needed.
        advice = (support.why_unsuitable(seen) or "").partition(": ")[2]
        return note("driver", f"{fact}, but SGLang needs {_dotted(support.NEEDS_CUDA)}", advice)
    return ok("driver", fact)


def _card(gpu: Gpu) -> Finding:
    name = f"gpu {gpu.index}"
    known = support.generation(gpu.capability)
    kind = f"{_dotted(gpu.capability)}, {known}" if known else _dotted(gpu.capability)
    fact = f"{gpu.name} ({kind}), {_gib(gpu.free_bytes)} of {_gib(gpu.total_bytes)} GiB free"
    if known is None:
        least = _dotted(support.MIN_CAPABILITY)
        return note(name, f"{fact}: too old for SGLang, which needs capability {least}")
    return ok(name, fact)


def _held(gpu: Gpu) -> Finding:
    name, taken = f"gpu {gpu.index} memory", _gib(gpu.total_bytes - gpu.free_bytes)
    holders = _holders(gpu)
    if not holders:
        return note(name, f"{taken} GiB are used by processes not visible here")
    named = ", ".join(f"{_who(pid)} {_gib(size)} GiB" for size, pid in holders[:_NAMED])
    return note(name, f"{taken} GiB are used: {named}", _NVIDIA_SMI)


def _planned_on(gpu: Gpu, servers: Sequence[GpuServer]) -> Iterator[Finding]:
    """Yield what emberd's servers were planned to take of a GPU."""
    held = [each for each in servers if each.memory and gpu.uuid in each.memory.gpus]
    for each in held:
        planned = _gib(each.memory.planned_bytes) if each.memory else ""
        pending = each.pending.get(gpu.uuid, 0)
        later = (
            f", {_gib(pending)} GiB of it not yet in use" if pending > _WORTH_NAMING_BYTES else ""
        )
        fact = f"emberd's server of {each.model} is planned to take {planned} GiB{later}"
        yield ok(f"gpu {gpu.index} server", fact)


def _holders(gpu: Gpu) -> list[tuple[int, int]]:
    """Return the size in bytes and the pid of each process on a GPU, largest first."""
    return sorted(((size or 0, pid) for pid, size in gpus.processes_on(gpu.uuid)), reverse=True)


def _who(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        # Not the command line, which may contain a key.
        return f"{process.name()} (process {pid} of {process.username()})"
    except psutil.Error:
        return f"process {pid}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.1f}"


def _dotted(numbers: tuple[int, int]) -> str:
    return ".".join(map(str, numbers))


_DEFAULT_CUDA: Final = Path("/usr/local/cuda")
_TOOLKIT: Final = "the CUDA 13 toolkit (or set CUDA_HOME to the folder that has bin/nvcc)"
_CPP: Final = "a C++ compiler (Debian: apt install build-essential)"


def check_compilers(wanted: Wanted) -> Iterator[Finding]:
    """Yield whether kernels can be compiled, if there is a GPU that SGLang would use.

    At most a note: the sources say that a start fails without compilers, but that was not tested.
    """
    if not _may_use_gpu(wanted) or wanted.base_url is not None or not gpus.survey().gpus:
        return
    nvcc, host = _nvcc(), _host()
    if nvcc and host:
        yield ok("compilers", f"{nvcc}, {host}")
        return
    needed = {"nvcc": (nvcc, _TOOLKIT), "C++ compiler": (host, _CPP)}
    missing = {name: advice for name, (path, advice) in needed.items() if not path}
    yield note(
        "compilers",
        f"no {' and no '.join(missing)} found; SGLang compiles kernels at the first start on a "
        f"GPU (a start without them was not tested)",
        f"If a start fails, install {' and '.join(missing.values())}",
    )


def _nvcc() -> str | None:
    # The order of SGLang and flashinfer: a configured folder, else the PATH, else the default.
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if not home and (found := shutil.which("nvcc")):
        return found
    place = (Path(home) if home else _DEFAULT_CUDA) / "bin" / "nvcc"
    return str(place) if place.is_file() else None


def _host() -> str | None:
    # CXX may contain arguments, or a launcher before the compiler.
    given = os.environ.get("CXX", "").split()[:1]
    return next(filter(None, map(shutil.which, given or ("c++", "g++"))), None)
