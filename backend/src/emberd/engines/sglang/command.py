"""The words of SGLang's command line and why each is there, and the options that are reserved.

SGLang's own choice of kernels is kept, so no word here depends on the generation of the GPU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emberd.catalog import RERANK
from emberd.engines.base import Launch, OtherCache
from emberd.engines.gpus import VISIBLE, Gpu
from emberd.engines.sglang.memory import NO_CHUNKS, SMALLEST_BATCH_TOKENS, MemoryPlan
from emberd.engines.sglang.support import generation, overrides
from emberd.errors import StartError
from emberd.settings import ServerSpec, StartOptions

CPU: Final = "cpu"
GPU: Final = "cuda"

ON_CPU: Final = str(Path(__file__).with_name("cpu"))
"""Folder of the modules that only servers on the CPU have on their path."""

_LOOPBACK: Final = ("127.0.0.1", "localhost")
_PICKLE: Final = "SGLANG_USE_PICKLE_IPC"
# Caches of compiled kernels whose default is the folder for temporary files, which is new at each
# start. SGLang and its libraries keep the other ones in the user's cache.
_COMPILED: Final = {
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "CUTE_DSL_CACHE_DIR": "cute-dsl",
    "QUACK_CACHE_DIR": "quack",
}


@dataclass(frozen=True, slots=True)
class Flag:
    """Words of the command that belong together.

    Attributes:
        words: The option, and its value if it takes one.
        why: The reason, in one sentence without a full stop.
    """

    words: tuple[str, ...]
    why: str


def flags(
    spec: ServerSpec, launch: Launch, memory: MemoryPlan | None, config: str
) -> tuple[Flag, ...]:
    """Return the words that start a server for ``spec``, without the user's own.

    Args:
        spec: What to serve.
        launch: Where, and over how many GPUs.
        memory: The figures for the device; None if the shape of the model is unknown.
        config: The file with the content ``config_text``.
    """
    requested = {
        "--revision": (spec.revision, "the requested commit"),
        "--quantization": (spec.quantization, "requested, and part of the identity"),
    }
    return (
        Flag(("--model-path", spec.model), "the requested model"),
        Flag(
            ("--dtype", "bfloat16"),
            "the models' own format; in float16 Qwen3 can return NaN",
        ),
        *(
            Flag((name, value), why)
            for name, (value, why) in requested.items()
            if value is not None
        ),
        Flag(("--host", "127.0.0.1"), "other machines cannot reach it"),
        # SGLang reads "a:b" in a request as adapter b of model a.
        Flag(
            ("--served-model-name", spec.model.replace(":", "_")),
            "what /v1/models reports; by default SGLang reports the path",
        ),
        Flag(
            ("--weight-version", launch.start_id),
            "the id of this start, which /model_info reports",
        ),
        Flag(
            ("--config", config),
            "holds the port and the key, which ps would show on a command line",
        ),
        *(_reranking_flags(spec) if spec.task == RERANK else _embedding_flags(spec)),
        *([_DETERMINISTIC] if spec.deterministic else ()),
        *_size_flags(spec.context_tokens, memory),
        *(_CPU_FLAGS if spec.device == CPU else _gpu_flags(launch.options)),
        *_SERVICE_FLAGS,
    )


def config_text(port: int, api_key: str | None) -> str:
    """Return the content of the file that ``--config`` names; JSON strings are valid YAML.

    It holds the port too, so that other users do not learn it before the server listens.
    """
    key = f"api-key: {json.dumps(api_key)}\n" if api_key else ""
    return f"port: {port}\n{key}"


def variables(
    environ: Mapping[str, str],
    gpus: Sequence[Gpu],
    store: str,
    home: str,
    *,
    deterministic: bool = False,
    msgpack: bool = False,
) -> dict[str, tuple[str, str]]:
    """Return the variables that the server needs besides ``environ``: name -> value and reason.

    ``SGL_FORCE_SHUTDOWN`` is left out on purpose: with it SGLang drops all requests at a stop.
    Without it the drain has no limit in SGLang, and the supervisor sets one.

    Args:
        environ: The environment of this process.
        gpus: Where the model will run; empty for the CPU.
        store: Path of an empty file, private to this start.
        home: The folder of all state.
        deterministic: Whether ``spec`` requires deterministic kernels.
        msgpack: Whether this version was tried with msgpack between its processes.
    """
    needed = {}
    if deterministic:
        # Of flashinfer, SGLang's choice on Blackwell. A chunk that is shorter than a tile is never
        # scheduled, and a longer text then waits forever (srt/managers/schedule_policy.py).
        needed["SGLANG_FLASHINFER_PREFILL_SPLIT_TILE_SIZE"] = (
            str(SMALLEST_BATCH_TOKENS),
            "each size of a batch is a multiple of it, so that no text waits for a larger one",
        )
    # The path becomes part of a URL that is parsed but not unquoted. Several GPUs have several
    # groups of processes, and FileStore was not tried with them.
    if len(gpus) <= 1 and not {"?", "#"} & set(store):
        needed["SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE"] = (
            f"file://{store}",
            "otherwise torch.distributed opens a port on all network interfaces",
        )
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host.strip() for host in environ.get(name, "").split(",") if host.strip()]
        hosts += [host for host in _LOOPBACK if host not in hosts]
        why = "SGLang's warm-up sends HTTP requests to itself, which must not go through a proxy"
        needed[name] = (",".join(hosts), why)
    if msgpack and _PICKLE not in environ:
        why = "the processes exchange results as msgpack, which takes less CPU time than pickle"
        needed[_PICKLE] = ("0", why)
    for name in ("SGLANG_PYSPY_DUMP_BEFORE_CRASH", "SGLANG_CUDA_COREDUMP_BEFORE_CRASH"):
        needed[name] = ("0", "a dump would delay the end by a minute")
    if not gpus:
        needed["SGLANG_USE_CPU_ENGINE"] = ("1", "otherwise SGLang requires a GPU")
        # SGLang asks for GPUs when it is imported. A process that is forked afterwards gets another
        # answer, because the state of CUDA is not usable there.
        needed[VISIBLE] = ("", "the model runs on the CPU, and the processes are forked")
        needed["PYTHONPATH"] = (
            ON_CPU,
            "has a stand-in for kernels that exist only for GPUs, and sglang_forked",
        )
        return needed
    names = ", ".join(f"{gpu.name}, {generation(gpu.capability) or 'unknown'}" for gpu in gpus)
    needed[VISIBLE] = (
        ",".join(gpu.uuid for gpu in gpus),
        f"chosen for their free memory: {names}",
    )
    if len(gpus) > 1:
        needed["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] = (
            "0",
            "shared GPUs differ in free memory, and the figures are for the one with the least",
        )
    for name, folder in _COMPILED.items():
        if name not in environ:
            needed[name] = (
                os.path.join(home, folder),
                "keeps compiled kernels; the folder for temporary files is new at each start",
            )
    return needed


_TOKENIZES_AT_ONCE: Final = Flag(
    ("--enable-tokenizer-batch-encode",),
    "a list of texts is tokenised in one call and scheduled together",
)


def _embedding_flags(spec: ServerSpec) -> tuple[Flag, ...]:
    return (
        Flag(("--is-embedding",), "without it a Qwen3 model is served for generation"),
        Flag(
            ("--disable-radix-cache",),
            "a cache hit changes the vectors slightly, and texts of an index rarely share a long "
            "prefix",
        ),
        _TOKENIZES_AT_ONCE,
        Flag(
            ("--json-model-override-args", json.dumps(overrides(spec))),
            "without it a request with dimensions is refused; the configuration on the hub does "
            "not declare it",
        ),
    )


def _reranking_flags(spec: ServerSpec) -> tuple[Flag, ...]:
    flags = (
        _TOKENIZES_AT_ONCE,
        Flag(
            ("--cuda-graph-backend-decode", "disabled"),
            "a reranker generates no text, and captured graphs for that would take memory",
        ),
    )
    if not spec.deterministic:
        return flags  # with the radix cache: all prompts of a query begin alike
    why = "deterministic scores are requested, and a cache hit changes a score slightly"
    return (*flags, Flag(("--disable-radix-cache",), why))


_DETERMINISTIC: Final = Flag(
    ("--enable-deterministic-inference",),
    "requested: kernels whose results do not depend on the batch; SGLang chooses the attention "
    "backend among those that have them",
)


def _size_flags(context_tokens: int | None, plan: MemoryPlan | None) -> list[Flag]:
    if plan is None:
        if not context_tokens:
            return []
        why = "the requested length; the size of the model is unknown"
        return [Flag(("--context-length", str(context_tokens)), why)]
    return [
        Flag(
            ("--context-length", str(plan.context_tokens)),
            f"texts of up to {plan.longest_text_tokens:,} tokens: "
            f"SGLang reserves up to seven for itself",
        ),
        Flag(
            ("--max-total-tokens", str(plan.kv_tokens)),
            "limits the KV cache to the longest text and the batches in flight, so the device can "
            "be shared",
        ),
        Flag(
            ("--mem-fraction-static", f"{plan.fraction:.3f}"),
            "a limit on weights and KV cache, relative to what is free at the start; SGLang's own "
            "figure is relative to the whole card, and negative on small ones without chunks",
        ),
        Flag(
            ("--chunked-prefill-size", str(plan.chunked_prefill_tokens)),
            "each token of an encoder attends to the whole text"
            if plan.chunked_prefill_tokens == NO_CHUNKS
            else "limits the memory of a batch, whatever the length of the texts",
        ),
        Flag(("--max-prefill-tokens", str(plan.max_prefill_tokens)), "the size of a batch"),
        *(
            [
                Flag(
                    ("--prefill-max-requests", str(plan.max_prefill_prompts)),
                    "limits the memory of the answers in a batch; prompts that are in the cache "
                    "have few tokens in it, so it could hold thousands",
                )
            ]
            if plan.max_prefill_prompts
            else ()
        ),
    ]


_CPU_FLAGS: Final = (
    Flag(("--device", CPU), "requested, or there is no GPU"),
    Flag(("--attention-backend", "torch_native"), "this backend needs none of SGLang's kernels"),
    Flag(
        ("--watchdog-timeout", "3600"),
        "a long batch takes minutes on a CPU, and SGLang ends itself after 300 s",
    ),
)


def _gpu_flags(options: StartOptions) -> list[Flag]:
    sizes = {"--tp-size": options.tp_size, "--dp-size": options.dp_size}
    return [
        Flag(("--device", GPU), "SGLang must not choose another device"),
        *(Flag((name, str(size)), "requested") for name, size in sizes.items() if size > 1),
    ]


_SERVICE_FLAGS: Final = (
    Flag(("--sleep-on-idle",), "otherwise an idle scheduler uses a whole core"),
    Flag(("--enable-metrics",), "its counters show whether the server is idle"),
    Flag(
        ("--gc-threshold", "20000", "50", "100"),
        "Python's garbage collector would visit the results in flight every few texts",
    ),
    Flag(("--log-level", "info"), "progress and readiness are logged at this level"),
    Flag(
        ("--uvicorn-access-log-exclude-prefixes", "/"),
        "a line per request would fill the disk",
    ),
)


# ------------------------------------------------------------ the user's own arguments

_KEY: Final = "emberd makes a key for each start; `emberd up --no-auth` starts without one"
_OURS: Final = "emberd sets this option to identify the server"
_RESULTS: Final = "it changes the results, and every user of this model would get those"
_TRUST: Final = "--trust-remote-code"
_DOWNLOAD_DIR: Final = "--download-dir"
_MODELSCOPE: Final = "SGLANG_USE_MODELSCOPE"
_YES: Final = ("1", "true", "y", "yes")  # srt/environ.py
_SIZE: Final = "use context_tokens=, or `emberd up --context-tokens`"
_GPUS: Final = "emberd chooses the GPUs; use `emberd up --tp-size` or `--dp-size`"

# SGLang takes the last of two options that clash, and any unique prefix of an option. Without this
# table emberd would wait at another port than a ``--port`` names, a ``--quantization`` would change
# the vectors under an unchanged identity, and an ``--api-key`` would be visible to other users.
_RESERVED: Final[Mapping[str, str]] = {
    "--admin-api-key": _KEY,
    "--allow-auto-truncate": _RESULTS,
    "--api-key": _KEY,
    "--config": _KEY,
    "--context-length": _SIZE,
    "--data-parallel-size": _GPUS,
    "--device": "use device=, or `emberd up --device`",
    "--dp-size": _GPUS,
    "--dtype": _RESULTS,
    "--enable-deterministic-inference": ("use deterministic=True, or `emberd up --deterministic`"),
    "--host": "emberd's servers listen on loopback only; start one yourself and use base_url=",
    "--json-model-override-args": _RESULTS,
    "--load-format": _RESULTS,
    "--max-total-tokens": f"a text that does not fit into the KV cache would wait forever; {_SIZE}",
    "--model-path": "use model=, or `emberd up --model`",
    "--port": "use `emberd up --port`, or EMBERD_PORT",
    "--quantization": "use quantization=, or `emberd up --quantization`",
    "--revision": "use revision=, or `emberd up --revision`",
    "--served-model-name": _OURS,
    "--tensor-parallel-size": _GPUS,
    "--tokenizer-path": _RESULTS,
    "--tp-size": _GPUS,
    "--weight-version": _OURS,
}


def other_cache(options: StartOptions, environ: Mapping[str, str]) -> OtherCache | None:
    """Return where SGLang keeps a model that is not a folder; None for the hub's cache."""
    if environ.get(_MODELSCOPE, "").lower() in _YES:
        return OtherCache(f"{_MODELSCOPE} is set", is_modelscope=True)
    # Its parser completes a prefix; "--do" begins no other option.
    names = (word.partition("=")[0] for word in options.arguments)
    if any(name.startswith("--do") and _DOWNLOAD_DIR.startswith(name) for name in names):
        return OtherCache(f"{_DOWNLOAD_DIR} is given")
    return None


def runs_code_of_models(options: StartOptions) -> bool:
    """Return whether the user's options let SGLang run Python code that belongs to a model."""
    # SGLang's parser completes a prefix; the shortest that no other option shares is not known.
    names = (word.partition("=")[0] for word in options.arguments)
    return any(name.startswith("--t") and _TRUST.startswith(name) for name in names)


def check_arguments(options: StartOptions, *, on_cpu: bool) -> None:
    """Raise if the user's options would break a promise of emberd's.

    Raises:
        StartError: An argument is reserved, or several GPUs are requested for a CPU.
    """
    for word in options.arguments:
        name = word.partition("=")[0]
        # Equal to a reserved option, or a prefix that SGLang's parser would complete to it.
        reserved = next((each for each in _RESERVED if each.startswith(name)), None)
        if name.startswith("--") and reserved is not None:
            raise StartError(
                f"{name} cannot be given to SGLang through emberd: {_RESERVED[reserved]}",
                advice="Remove it from EMBERD_ENGINE_ARGS, or from the command.",
            )
    if on_cpu and options.gpus > 1:
        raise StartError(
            f"tp_size={options.tp_size}, dp_size={options.dp_size} count GPUs, but device='cpu' "
            f"was requested",
            advice="Omit them.",
        )
