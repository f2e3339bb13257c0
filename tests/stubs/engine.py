"""An engine that runs the stub server, selected by module name: ``engine="stubs.engine"``.

The model's name contains its options: ``stub/<anything>?start=1&faults=never-ready``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs

from emberd.engines.base import Launch, Plan
from emberd.engines.gpu_usage import (
    GpuMemory,
    GpuServer,
    PlannedUsage,
    Usage,
    without_pending,
)
from emberd.engines.gpus import Gpu
from emberd.errors import StartError
from emberd.settings import ServerSpec, StartOptions
from emberd.system.log_rules import Diagnosis


class StubEngine:
    """See the module's docstring."""

    name = "stubs.engine"
    # As with SGLang, the server opens its port itself, and other users cannot see the port before.
    takes_descriptor = False

    def why_unavailable(self, spec: ServerSpec) -> str | None:
        fits = spec.model.startswith("stub/") or Path(spec.model).name.startswith("stub-")
        return None if fits else "serves only stub/... and folders stub-..."

    def why_unsupported(self, spec: ServerSpec) -> str | None:
        # As with a model of the hub, its files can be checked only after a start has fetched them.
        named = parse_qs(spec.model.partition("?")[2]).get("unfit_after", [""])[0]
        return "pools by mean. Use another." if named and Path(named).exists() else None

    def installable_environment(self, spec: ServerSpec) -> str | None:
        return None

    def exclusive_resources(
        self, spec: ServerSpec, options: StartOptions, servers: Sequence[GpuServer] = ()
    ) -> Sequence[str]:
        claimed = parse_qs(spec.model.partition("?")[2]).get("claims", [""])[0]
        return claimed.split(",") if claimed else ()

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        options = {
            name: values[0] for name, values in parse_qs(spec.model.partition("?")[2]).items()
        }
        starts = _count(Path(options["count"]), launch) if "count" in options else 0
        faults = options.get("faults", "")
        memory = _gpu_memory(options, launch)
        if 0 < starts <= int(options.get("lose_port", 0)):
            faults = "loses-port"
        return Plan(
            command=[
                *(sys.executable, "-S", str(Path(__file__).parents[1] / "stub_server.py")),
                *(("--port", str(launch.port)) if "shows_port" in options else ()),
                *(("--witness", options["witness"]) if "witness" in options else ()),
                *("--model", options.get("serves", spec.model)),
                *("--faults", faults, "--start-s", options.get("start", "0")),
                *(
                    word
                    for step in ("start_when", "ready_when", "answer_when")
                    if step in options
                    for word in (f"--{step.replace('_', '-')}", options[step])
                ),
            ],
            environment={
                **os.environ,
                "STUB_KEY": launch.api_key or "",
                "STUB_PORT": str(launch.port),
            },
            device=options.get("device", spec.device or "cpu"),
            silence_s=float(options.get("silence", "20")),
            drain_s=float(options.get("drain", "5")),
            has_ready="no-ready-route" not in faults,
            files={"secret.yaml": f"key: {launch.api_key}"},
            notes=[options[name] for name in ("note",) if name in options]
            + ([launch.home] if "shows_home" in options else []),
            gpu_usage=_Noting(Path(options["pids"])) if "pids" in options else None,
            gpu_memory=memory,
            memory=("stub_loads_",),
        )

    def progress(self, log: str) -> str:
        return "loading" if "loading" in log else "starting"

    def diagnose(self, exit_code: int | None, log: str) -> Diagnosis:
        if exit_code is None:
            return Diagnosis("The stub was silent for too long", "Look at it.")
        if "Address already in use" in log:
            return Diagnosis("The port was taken", "Change EMBERD_PORT.", port_taken=True)
        if exit_code == -9:
            return Diagnosis("The stub was killed", "Start it again.", killed=True)
        last = (log.strip().splitlines() or [""])[-1]
        return Diagnosis(f"The stub ended with {exit_code} ({last})", "Give it more memory.")

    def has_failed(self, log: str) -> bool:
        return "doomed" in log

    def recognises(self, command: Sequence[str]) -> bool:
        return False


class _Noting(PlannedUsage):
    """Writes down the processes that it is to compare, instead of asking a GPU."""

    def __init__(self, file: Path) -> None:
        super().__init__(Usage(file, {}), (), 1)

    def compare(self, pids: Collection[int]) -> None:
        fresh = self.earlier.file.with_suffix(".fresh")
        fresh.write_text(" ".join(map(str, pids)))
        fresh.rename(self.earlier.file)


def _gpu_memory(options: Mapping[str, str], launch: Launch) -> GpuMemory | None:
    """Return what a server with ``takes`` plans for the GPU that it claims, of ``has`` bytes.

    None of it is taken, so that what is free is always the whole GPU.
    """
    if "takes" not in options:
        return None
    gpus, takes, has = (options["claims"],), int(options["takes"]), int(options["has"])
    [gpu] = without_pending([Gpu(0, gpus[0], "GPU", has, has, (9, 0))], launch.servers)
    if gpu.free_bytes < takes:
        raise StartError(f"only {gpu.free_bytes} bytes are free")
    return GpuMemory(gpus, takes, 0)


def _count(file: Path, launch: Launch) -> int:
    with file.open("a") as opened:
        opened.write(f"{launch.start_id} {launch.api_key}\n")
    return len(file.read_text().splitlines())


ENGINE = StubEngine()
