"""The compilers with which an engine makes kernels at its first start on a GPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from emberd.doctor.findings import Finding, note, ok
from emberd.doctor.wanted import Wanted
from emberd.engines import gpus
from emberd.engines.sglang import ENGINE

_NAME: Final = "compilers"
_CUDA: Final = "cuda"
# As SGLang and flashinfer look for it: a folder that is named decides, then the path.
_HOMES: Final = ("CUDA_HOME", "CUDA_PATH")
_DEFAULT: Final = Path("/usr/local/cuda")
_NVCC: Final = Path("bin/nvcc")
_CXX: Final = "CXX"
_HOSTS: Final = ("c++", "g++")
_TOOLKIT: Final = "the CUDA 13 toolkit (or set CUDA_HOME to the folder that has bin/nvcc)"
_CPP: Final = "a C++ compiler (Debian: apt install build-essential)"


def look(wanted: Wanted) -> Iterator[Finding]:
    """Yield whether kernels can be compiled here, on a machine with a GPU that SGLang would use.

    A note at most: that a start fails without them is known from the sources, and was not seen.
    """
    spec = wanted.spec
    is_asked = spec.engine in (None, ENGINE.name) and spec.device in (None, _CUDA)
    if is_asked and not wanted.is_given and gpus.survey().gpus:
        yield _finding(_nvcc(os.environ), _host(os.environ))


def _finding(nvcc: str | None, host: str | None) -> Finding:
    if nvcc and host:
        return ok(_NAME, f"{nvcc}, {host}")
    named = {"nvcc": (nvcc, _TOOLKIT), "C++ compiler": (host, _CPP)}
    missing = [name for name, (path, _) in named.items() if not path]
    return note(
        _NAME,
        f"no {' and no '.join(missing)} here, and SGLang compiles kernels at the first start on "
        f"a GPU (not tried without)",
        f"If a start fails for it, install {' and '.join(named[name][1] for name in missing)}",
    )


def _nvcc(environ: Mapping[str, str]) -> str | None:
    home = next(filter(None, map(environ.get, _HOMES)), None)
    if home is None and (found := shutil.which("nvcc", path=environ.get("PATH"))):
        return found
    place = (Path(home) if home else _DEFAULT) / _NVCC
    return str(place) if place.is_file() else None


def _host(environ: Mapping[str, str]) -> str | None:
    path = environ.get("PATH")
    names = [environ[_CXX]] if environ.get(_CXX) else _HOSTS
    # CXX may hold arguments, or a launcher before the compiler.
    words = (name.split()[0] for name in names if name.split())
    return next(filter(None, (shutil.which(word, path=path) for word in words)), None)
