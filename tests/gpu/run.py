"""Shows on one GPU what only a GPU can show, in at most ten minutes.

``python tests/gpu/run.py`` from the checkout, by an interpreter that has emberd and both
integrations, langchain-openai and llama-index-embeddings-openai-like. SGLang's interpreter is the
one that emberd would use (``EMBERD_SGLANG_PYTHON`` names it). ``--plan`` shows the parts and their
times; ``--device cpu --model tiny`` runs what a CPU can show.

Exit codes: 0 when all that this device can show was shown; 1 when a part failed; 2 when none failed
and one was not run for want of time or of what it needs; 3 when there is no GPU or no engine.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

TESTS: Final = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(TESTS)  # in place of this folder, whose modules are the package gpu's

from emberd import EmberdError, installs  # noqa: E402 - the path comes first
from gpu import bench, card, result, runner  # noqa: E402
from gpu.parts import PARTS  # noqa: E402

BUDGET_S: Final = 600.0
NOT_HERE: Final = 3

_MODELS: Final = ("8b", "4b", "0.6b", "tiny")  # as engine_side/checkpoint.py knows them
_SHAPES: Final = {bench.CUDA: "4b", bench.CPU: "tiny"}
_SGLANG: Final = "EMBERD_SGLANG_PYTHON"
_TRANSFORMERS: Final = "EMBERD_TRANSFORMERS_PYTHON"
_KEPT: Final = ("EMBERD_ENGINES", "EMBERD_HOME", _SGLANG, _TRANSFORMERS)  # where engines are
# What a start compiles is kept in the home, or where these say: a first start finds nothing.
_COMPILED: Final = ("TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "FLASHINFER_WORKSPACE_BASE")
_PACKAGES: Final = (
    *("emberd", "langchain-emberd", "llama-index-embeddings-emberd", "langchain-openai", "openai"),
    *("llama-index-core", "llama-index-embeddings-openai-like", "numpy"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return the exit code."""
    options = _options(arguments)
    if options.child:
        return _child(options)
    if options.plan:
        print(runner.plan(PARTS, options.device, options.budget, options.parts))
        return 0
    if options.device == bench.CUDA and (problem := card.problem()):
        print(f"There is no GPU for this: {problem}. A CPU can show some of it: --device cpu")
        return NOT_HERE
    folder = Path(options.work or tempfile.mkdtemp(prefix="emb-gpu-"))
    began = time.monotonic()
    try:
        setup = _set_up(options, folder)
    except (EmberdError, LookupError) as error:
        print(f"SGLang cannot be run: {error}")
        return NOT_HERE
    work = runner.Work(folder, options.device, began + options.budget)
    results: list[result.Result] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _run(options, work, setup, results)
    finally:
        _end(setup, folder, keep=options.keep or bool(options.work))
    print(f"\n{result.table(results)}\n\n{_counted(results, time.monotonic() - began)}", flush=True)
    print(f"All figures: {options.json}", flush=True)
    return runner.exit_code(results)


def _run(
    options: argparse.Namespace,
    work: runner.Work,
    setup: bench.Bench,
    results: list[result.Result],
) -> None:
    header = _header(options, setup)
    print(_header_line(header), flush=True)
    began = time.monotonic()
    for found in runner.run(PARTS, work, options.parts):
        results.append(found)
        print(found.line, flush=True)
        so_far = {**header, "seconds": round(time.monotonic() - began, 1)}
        runner.keep(Path(options.json), so_far, results)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    out = os.environ.get("OUT") or str(TESTS.parent / ".benchmarks")
    parser.add_argument("--device", choices=(bench.CUDA, bench.CPU), default=bench.CUDA)
    parser.add_argument("--model", choices=_MODELS, help="shape of the random model")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for all of it")
    parser.add_argument("--parts", type=_listed, default=[], help="names, with commas between")
    parser.add_argument("--json", default=f"{out}/gpu.json", help="where all figures are written")
    parser.add_argument("--work", help="folder for all files of the run, which is kept")
    parser.add_argument("--keep", action="store_true", help="do not remove the files of the run")
    parser.add_argument("--plan", action="store_true", help="show the parts and their times")
    for name in ("--child", "--result"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.model = options.model or _SHAPES[options.device]
    return options


def _listed(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    known = {part.name for part in PARTS}
    if unknown := sorted(set(names) - known):
        raise argparse.ArgumentTypeError(f"no part {unknown[0]!r}; there are: {sorted(known)}")
    return names


def _set_up(options: argparse.Namespace, folder: Path) -> bench.Bench:
    """Give the run a new home and one GPU; return what its parts are given.

    Raises:
        LookupError: No interpreter has SGLang.
        EmberdError: A variable names none that has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in list(os.environ):
        if name.startswith(("EMBERD_", "OPENAI_")) and name not in _KEPT:
            del os.environ[name]
    # Before the home is another one: engines may lie in the user's.
    sglang, other = installs.locate("sglang"), installs.locate("transformers")
    if sglang is None:
        raise LookupError(f"it is not installed here; {_SGLANG} names an interpreter that has it")
    os.environ[_SGLANG] = sglang.python
    os.environ[_TRANSFORMERS] = other.python if other else sglang.python
    setup = bench.Bench(
        folder=folder,
        device=options.device,
        shape=options.model,
        python=sglang.python,
        others=(os.environ[_TRANSFORMERS], sys.executable),
    )
    os.environ["EMBERD_HOME"] = str(setup.home)
    for name in _COMPILED:
        place = folder / "compiled" / name.lower()
        place.mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(place)
    if options.device == bench.CPU:
        # Threads that wait for each other by spinning are slow on a machine that does other work.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    elif (gpu := card.chosen()) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu.uuid
    setup.save()
    return setup


def _header(options: argparse.Namespace, setup: bench.Bench) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": options.device,
        "gpu": card.described() if options.device == bench.CUDA else None,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "model": f"random weights in the shape of {setup.shape}",
        "sglang": _engine_version("sglang"),
        "transformers": _engine_version("transformers"),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "budget_s": options.budget,
    }


def _header_line(header: dict[str, Any]) -> str:
    gpu = header["gpu"]
    where = f"{gpu['name']}, driver {gpu['driver']}" if gpu else f"{header['cpu']}, no GPU"
    return (
        f"{where}; {header['cores']} cores; emberd {header['packages']['emberd']}; SGLang "
        f"{header['sglang']}; {header['model']}"
    )


def _counted(results: Sequence[result.Result], seconds: float) -> str:
    kinds = [each.kind for each in results]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in result.Kind)
    return f"{counts}, in {seconds:.0f} s"


def _engine_version(name: str) -> str | None:
    try:
        found = installs.locate(name)
    except EmberdError:  # SGLang's interpreter has no transformers
        return None
    return found.version if found else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=TESTS, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _end(setup: bench.Bench, folder: Path, *, keep: bool) -> None:
    """Stop whatever an interrupted run has left, and remove its files."""
    try:
        setup.manager.stop()
    except EmberdError as error:
        print(f"emberd stop: {error}", file=sys.stderr)
    if keep:
        print(f"Files of the run: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _child(options: argparse.Namespace) -> int:
    """Run one part in this process."""
    report = result.Report(Path(options.result))
    module, _, name = options.child.partition(":")
    try:
        given = bench.load(Path(options.work), options.limit)
        getattr(importlib.import_module(module), name)(given, report)
    except result.SkippedError as skipped:
        report.skipped, report.why = str(skipped), skipped.why
    except Exception as error:  # noqa: BLE001 - any error is the part's result
        traceback.print_exc()
        report.require(False, f"{type(error).__name__}: {error}")
    report.ended = True
    report.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
