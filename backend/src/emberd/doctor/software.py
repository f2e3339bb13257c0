"""emberd itself, the Python that runs it, the frameworks beside it, and the platform."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from emberd import __version__
from emberd.doctor.findings import Finding, note, ok
from emberd.doctor.wanted import Wanted

_INTEGRATIONS: Final = {
    "langchain-emberd": "langchain-core",
    "llama-index-embeddings-emberd": "llama-index-core",
}
_SHOWN: Final = ("openai", "numpy")
_SERVER_SYSTEMS: Final = ("Linux", "Darwin")
_CONTAINERS: Final = ("/.dockerenv", "/run/.containerenv")
_POD: Final = "KUBERNETES_SERVICE_HOST"


def look(wanted: Wanted) -> Iterator[Finding]:
    """Yield what runs here, in which versions."""
    yield ok("emberd", f"emberd {__version__} in {Path(__file__).parents[1]}")
    yield ok(
        "python",
        f"{platform.python_implementation()} {platform.python_version()} "
        f"({sys.executable or 'embedded in another program'})",
    )
    yield _platform(wanted)
    yield ok("packages", ", ".join(f"{name} {_version(name) or 'absent'}" for name in _SHOWN))
    for integration, framework in _INTEGRATIONS.items():
        yield _integration(integration, framework)


def _platform(wanted: Wanted) -> Finding:
    words = [platform.system(), platform.release(), platform.machine(), _libc(), _container()]
    fact = " ".join(filter(None, words))
    if platform.system() in _SERVER_SYSTEMS or wanted.is_given:
        return ok("platform", fact)
    return note(
        "platform",
        f"{fact}: servers are started on Linux and macOS only",
        "Name a server that runs elsewhere: EMBERD_BASE_URL=http://HOST:30000/v1",
    )


def _libc() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        return ""


def _container() -> str:
    if _POD in os.environ:
        return "(in a Kubernetes pod)"
    return "(in a container)" if any(map(os.path.exists, _CONTAINERS)) else ""


def _integration(name: str, framework: str) -> Finding:
    version, beside = _version(name), _version(framework)
    if version is None and beside is not None:
        return note(
            framework,
            f"{framework} {beside} is here, and {name} is not",
            f"To use emberd from it: pip install {name}",
        )
    if version is None:
        return ok(framework, f"neither {framework} nor {name} is installed")
    if version != __version__:
        return note(
            name,
            f"{name} {version} beside emberd {__version__}: they are released together",
            f"pip install --upgrade emberd {name}",
        )
    return ok(name, f"{name} {version} with {framework} {beside or 'absent'}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
