"""Failures of the command and of the machine: options, memory, disk, port, kernels, watchdog.

The wordings are those of SGLang 0.5.23 and torch 2.14.1. All were seen in real runs but those
with a ``source``.
"""

from __future__ import annotations

import re
from typing import Final

from emberd.engines.sglang.failure import SHORTER, Failure

_ARGUMENTS: Final = (
    "Take it out of EMBERD_ENGINE_ARGS (or of the arguments of `emberd up`); `emberd up --dry-run` "
    "shows the whole command."
)
_REPORT: Final = (
    "Read its log; if it happens again, `emberd doctor --json` and the log make a report."
)
_FREE_HOST: Final = f"Free some memory, or {SHORTER}; a smaller model needs less too."

OPTIONS: Final = (
    Failure(
        "bad flag",
        re.compile(r"error: unrecognized arguments: (?P<flags>[^\n]+)"),
        "the installed SGLang does not know the option {flags}",
        _ARGUMENTS,
    ),
    Failure(
        "bad value of a flag",
        re.compile(r": error: (?P<what>argument [^\n]+|ambiguous option: --[\w-]+)"),
        "SGLang refuses an option: {what}",
        _ARGUMENTS,
    ),
)

PORT: Final = (
    Failure(
        "port taken",
        re.compile(
            r"error while attempting to bind on address \('(?P<host>[^']+)', (?P<port>\d+)\)"
            r"|\[Errno 98\] Address already in use"
        ),
        "another program took port {port} before SGLang could listen on it",
        "Try again; a fixed port (EMBERD_PORT) must be one that nobody else uses: `ss -ltnp`.",
        port_taken=True,
    ),
    Failure(
        "internal port taken",
        re.compile(r"EADDRINUSE|The server socket has failed to (?:listen|bind)"),
        "another program took one of the ports over which SGLang's processes talk",
        "Try again: they are chosen at random.",
        "torch/lib/libtorch_cpu.so",
    ),
)

KERNELS: Final = (
    Failure(
        "kernel library missing",
        re.compile(r"ImportError: (?P<library>lib\S+): cannot open shared object file"),
        "SGLang's kernels need the library {library}, which this machine does not have",
        "libcuda.so.1 comes with the NVIDIA driver (without a GPU: EMBERD_DEVICE=cpu), "
        "libnuma.so.1 with `apt install libnuma1`.",
    ),
    Failure(
        "kernel missing",
        re.compile(r"the kernel sgl_kernel\.(?P<kernel>\S+) does not exist on the CPU"),
        "{model} needs the kernel {kernel}, which SGLang has for GPUs alone",
        "Serve it on a GPU, or with EMBERD_ENGINE=transformers.",
        "emberd/engines/sglang/cpu/sgl_kernel/__init__.py",
    ),
    Failure(
        "incomplete installation",
        re.compile(r"(?:ModuleNotFoundError: |ImportError: )(?P<what>[^\n]+)"),
        "SGLang's environment is incomplete: {what}",
        "Install it anew: `emberd engine remove sglang`, then `emberd engine install sglang`.",
    ),
    Failure(
        "no GPU",
        re.compile(
            r"Found no NVIDIA driver on your system"
            r"|No accelerator \(CUDA, XPU, HPU, NPU, MUSA, MPS\)"
        ),
        "this machine has no NVIDIA GPU, or no driver for it",
        "Without a GPU: EMBERD_DEVICE=cpu (slow), or a server that runs elsewhere: "
        "EMBERD_BASE_URL=http://HOST:30000/v1. With one, install its driver (580 or newer); a "
        "container needs `--gpus all`.",
    ),
)

DISK: Final = (
    Failure(
        "shared memory full",
        re.compile(
            r"unable to (?:allocate|resize|write to|mmap|open)[^\n]*"
            r"(?:shared memory|/dev/shm|torch_)"
            r"|/dev/shm[^\n]*No space left on device|No space left on device[^\n]*/dev/shm"
        ),
        "the shared memory (/dev/shm) is full",
        "See what fills it: `ls -l /dev/shm`; a container needs --shm-size 2g or --ipc=host.",
        "torch/lib/libtorch_cpu.so",
    ),
    Failure(
        "disk full",
        re.compile(r"No space left on device"),
        "a disk is full: no space was left for {model} or for a file of the server",
        "`df -h` shows which; HF_HOME moves the hub's cache, TMPDIR the temporary files.",
    ),
)

MEMORY: Final = (
    Failure(
        "no memory for the KV cache",
        re.compile(
            r"Loaded weights leave no GPU memory for the KV cache under "
            r"--mem-fraction-static=(?P<fraction>\S+?)\. "
            r"Raise --mem-fraction-static above (?P<least>[\d.]+)"
        ),
        "the weights leave no memory for the KV cache: the fraction of memory that SGLang may "
        "take is {fraction}, and it needs more than {least}",
        _FREE_HOST,
    ),
    Failure(
        "KV cache too small",
        re.compile(
            r"Not enough memory\. Please try to increase --mem-fraction-static\."
            r"(?: Current value: mem_fraction_static=(?P<fraction>[-\d.]+))?"
        ),
        "there is no memory for a single token of KV cache",
        _FREE_HOST,
        "sglang/srt/model_executor/pool_configurator.py:96",
    ),
    Failure(
        "host memory",
        re.compile(r"DefaultCPUAllocator: (?:can't|not enough memory)[^\n]*?(?P<bytes>\d+) bytes"),
        "the machine ran out of memory: {bytes} more bytes were wanted",
        _FREE_HOST,
    ),
    Failure(
        "host memory, without figures",
        re.compile(
            r"^MemoryError|Cannot allocate memory|std::bad_alloc|unable to mmap \d+ bytes"
            r"|can't start new thread|failed to map segment",
            re.MULTILINE,
        ),
        "the machine ran out of memory",
        _FREE_HOST,
    ),
)

DEATHS: Final = (
    Failure(
        "watchdog",
        re.compile(r"watchdog timeout \(self\.watchdog_timeout=(?P<seconds>[\d.]+)"),
        "a batch took longer than the {seconds} s that SGLang's watchdog allows",
        "Raise it on a slow machine, EMBERD_ENGINE_ARGS='--watchdog-timeout 1800'; on a fast one "
        "look for what holds the machine up.",
    ),
    Failure(
        "killed from outside",
        re.compile(
            r"scheduler died during initialization \(exit code: -9\)"
            r"|Subprocess (?P<process>\S+) \(pid=\d+\) crashed with exit code -9"
        ),
        "a process of SGLang was killed, most likely because the machine's memory ran out",
        "Look at `dmesg -T | grep -i oom`. " + _FREE_HOST,
        killed=True,
    ),
    Failure(
        "crashed",
        re.compile(r"Fatal Python error: (?P<what>[^\n]+)"),
        "a process of SGLang crashed: {what}",
        _REPORT,
    ),
    Failure(
        "ended",
        re.compile(
            r"(?:crashed with |scheduler died during initialization \()exit code:? (?P<code>-?\d+)"
        ),
        "a process of SGLang ended with code {code}",
        _REPORT,
    ),
)

WARM_UP: Final = (
    Failure(
        "tokenizer missing",
        re.compile(
            r"index is out of bounds for dimension with size 0"
            r"|Can't load tokenizer for '(?P<model>[^']+)'"
            r"|Couldn't instantiate the backend tokenizer"
        ),
        "{model} has no usable tokenizer: a text became no tokens at all",
        "Give the folder that holds tokenizer.json and tokenizer_config.json beside config.json.",
    ),
    Failure(
        "warm-up failed",
        re.compile(r"Initialization failed\. warmup error: [\s\S]*\n(?P<what>\S*Error: [^\n]+)"),
        "the first request of the start failed: {what}",
        "Read its log. A proxy for loopback addresses gives this too: set NO_PROXY=127.0.0.1.",
    ),
)
