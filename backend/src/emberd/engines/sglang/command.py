"""The words of SGLang's command line and why each is there, and the options that are reserved.

SGLang's own choice of kernels is kept, so no word here depends on the generation of the GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from emberd.engines.base import Reason
from emberd.engines.gpus import VISIBLE, Gpu
from emberd.engines.sglang.memory import NO_CHUNKS, MemoryPlan
from emberd.engines.sglang.support import generation
from emberd.errors import StartError
from emberd.settings import StartOptions

HOST: Final = "127.0.0.1"
CPU: Final = "cpu"
GPU: Final = "cuda"

_CUTTABLE: Final = json.dumps({"is_matryoshka": True})
_CPU_WATCHDOG_S: Final = 3600
_LOOPBACK: Final = ("127.0.0.1", "localhost")
_NO_PROXY: Final = ("no_proxy", "NO_PROXY")
_DUMPS: Final = ("SGLANG_PYSPY_DUMP_BEFORE_CRASH", "SGLANG_CUDA_COREDUMP_BEFORE_CRASH")


@dataclass(frozen=True, slots=True)
class Flag:
    """Words of the command that belong together.

    Attributes:
        words: The option, and its value if it takes one.
        why: The reason, in one sentence without a full stop.
        optional: Left out for a version of SGLang that does not know the option.
    """

    words: tuple[str, ...]
    why: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What to serve, where, and under which name.

    Attributes:
        model: Name on the hub, or a folder.
        port: The loopback port.
        start_id: What the server reports as its weight version.
        device: ``GPU`` or ``CPU``.
        memory: The figures for that device; None if the shape of the model is unknown.
        revision: Commit on the hub; None for the default, and for folders.
        dtype: Number format; None for bfloat16.
        quantization: Quantisation of the weights; None for none.
        context_tokens: Used if ``memory`` is None.
        cuttable: The server may be asked for shorter vectors.
        config: The file that holds the port and the key; None to write the port on the command
            line, as a dry run does.
        tp_size: GPUs over which one copy of the model is spread.
        dp_size: Copies of the model.
    """

    model: str
    port: int
    start_id: str
    device: str = GPU
    memory: MemoryPlan | None = None
    revision: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    context_tokens: int | None = None
    cuttable: bool = False
    config: str | None = None
    tp_size: int = 1
    dp_size: int = 1


def flags(target: Target) -> tuple[Flag, ...]:
    """Return the words that start a server for ``target``, without the user's own."""
    return (
        *_model_flags(target),
        *_address_flags(target),
        *_embedding_flags(target),
        *_size_flags(target),
        *_device_flags(target),
        *_SERVICE_FLAGS,
    )


def words(chosen: Sequence[Flag], arguments: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command's words; of two that clash the last wins, so the user's come last."""
    return (*(word for flag in chosen for word in flag.words), *arguments)


def reasons(chosen: Sequence[Flag], arguments: Sequence[str] = ()) -> tuple[Reason, ...]:
    """Return the words with their reasons, for display."""
    ours = tuple(Reason(" ".join(flag.words), flag.why) for flag in chosen)
    return (*ours, Reason(" ".join(arguments), "your own arguments")) if arguments else ours


def adapt(chosen: Sequence[Flag], known: frozenset[str] | None) -> tuple[Flag, ...]:
    """Return the flags that an installed version knows; optional ones may be left out.

    Args:
        chosen: All flags.
        known: The version's options, from ``known_options``; None keeps all flags.

    Raises:
        StartError: The version lacks an option that is not optional.
    """
    if known is None:
        return tuple(chosen)
    missing = [flag for flag in chosen if flag.words[0] not in known]
    if needed := [flag for flag in missing if not flag.optional]:
        raise StartError(
            f"the installed SGLang does not know {needed[0].words[0]}, which is there because "
            f"{needed[0].why}",
            advice="Install the version that emberd is made for: emberd engine install sglang",
        )
    return tuple(flag for flag in chosen if flag not in missing)


def served_name(model: str) -> str:
    """Return the name under which a server for ``model`` is requested.

    SGLang reads ``a:b`` in a request as adapter ``b`` of model ``a``.
    """
    return model.replace(":", "_")


def config_text(port: int, api_key: str | None) -> str:
    """Return the content of the file that ``--config`` names; JSON strings are valid YAML.

    It holds the port too, so that other users do not learn it before the server listens.
    """
    key = f"api-key: {json.dumps(api_key)}\n" if api_key else ""
    return f"port: {port}\n{key}"


def variables(
    environ: Mapping[str, str], device: str, gpus: Sequence[Gpu] = ()
) -> dict[str, tuple[str, str]]:
    """Return the variables that the server needs besides ``environ``: name -> value and reason.

    ``SGL_FORCE_SHUTDOWN`` is left out on purpose: with it SGLang drops all requests at a stop.
    Without it the drain has no limit of its own, and the supervisor sets one.
    """
    needed = {
        name: (
            _with_loopback(environ.get(name, "")),
            "SGLang's warm-up sends HTTP requests to itself, which must not go through a proxy",
        )
        for name in _NO_PROXY
    }
    for name in _DUMPS:
        needed[name] = ("0", "a dump would delay the end by a minute")
    if device == CPU:
        needed["SGLANG_USE_CPU_ENGINE"] = ("1", "otherwise SGLang requires a GPU")
        return needed
    names = ", ".join(f"{gpu.name}, {_generation_name(gpu)}" for gpu in gpus)
    needed[VISIBLE] = (
        ",".join(gpu.uuid for gpu in gpus),
        f"chosen for their free memory: {names}",
    )
    if len(gpus) > 1:
        needed["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] = (
            "0",
            "shared GPUs differ in free memory, and the figures are for the one with the least",
        )
    return needed


def _model_flags(target: Target) -> list[Flag]:
    why_dtype = "requested, and part of the identity"
    if target.dtype is None:
        why_dtype = "the models' own format; in float16 Qwen3-Embedding can return NaN"
    given = [
        Flag(("--model-path", target.model), "the requested model"),
        Flag(("--dtype", target.dtype or "bfloat16"), why_dtype),
    ]
    if target.revision is not None:
        given.append(Flag(("--revision", target.revision), "the requested commit"))
    if target.quantization is not None:
        why = "requested, and part of the identity"
        given.append(Flag(("--quantization", target.quantization), why))
    return given


def _address_flags(target: Target) -> list[Flag]:
    given = [
        Flag(("--host", HOST), "other machines cannot reach it"),
        Flag(
            ("--served-model-name", served_name(target.model)),
            "what /v1/models reports; by default SGLang reports the path",
        ),
        Flag(
            ("--weight-version", target.start_id),
            "the id of this start, which /model_info reports",
        ),
    ]
    if target.config is None:
        given.append(Flag(("--port", str(target.port)), "a free port"))
    else:
        given.append(
            Flag(
                ("--config", target.config),
                "holds the port and the key, which ps would show on a command line",
            )
        )
    return given


def _embedding_flags(target: Target) -> list[Flag]:
    given = [
        Flag(("--is-embedding",), "without it a Qwen3 model is served for generation"),
        Flag(
            ("--disable-radix-cache",),
            "a hit changes the numbers slightly, and texts of an index rarely share a long prefix",
        ),
        Flag(
            ("--enable-tokenizer-batch-encode",),
            "a list of texts is tokenised in one call and scheduled together",
            optional=True,
        ),
    ]
    if target.cuttable:
        given.append(
            Flag(
                ("--json-model-override-args", _CUTTABLE),
                "without it a request with dimensions is refused; the configuration on the hub "
                "does not declare it",
            )
        )
    return given


def _size_flags(target: Target) -> list[Flag]:
    plan = target.memory
    if plan is None:
        if not target.context_tokens:
            return []
        why = "the requested length; the size of the model is unknown"
        return [Flag(("--context-length", str(target.context_tokens)), why)]
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
    ]


def _device_flags(target: Target) -> list[Flag]:
    if target.device == CPU:
        return [
            Flag(("--device", CPU), "requested, or there is no GPU"),
            Flag(("--attention-backend", "torch_native"), "needs none of SGLang's kernels"),
            Flag(
                ("--watchdog-timeout", str(_CPU_WATCHDOG_S)),
                "a long batch takes minutes on a CPU, and SGLang ends itself after 300 s",
            ),
        ]
    given = [Flag(("--device", GPU), "SGLang must not choose another device")]
    for name, size in (("--tp-size", target.tp_size), ("--dp-size", target.dp_size)):
        if size > 1:
            given.append(Flag((name, str(size)), "requested"))
    return given


_SERVICE_FLAGS: Final = (
    Flag(("--sleep-on-idle",), "otherwise an idle scheduler uses a whole core", optional=True),
    Flag(("--enable-metrics",), "its counters show whether the server is idle"),
    Flag(("--log-level", "info"), "progress and readiness are logged at this level"),
    Flag(
        ("--uvicorn-access-log-exclude-prefixes", "/"),
        "a line per request would fill the disk",
        optional=True,
    ),
)


def _with_loopback(listed: str) -> str:
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    return ",".join([*hosts, *(host for host in _LOOPBACK if host not in hosts)])


def _generation_name(gpu: Gpu) -> str:
    known = generation(gpu.capability)
    return known.name if known else "unknown"


# ------------------------------------------------------------ the user's own arguments

_PORT: Final = "use `emberd up --port`, or EMBERD_PORT"
_KEY: Final = "emberd makes a key for each start; `emberd up --no-auth` starts without one"
_OURS: Final = "emberd identifies the server by it"
_VECTORS: Final = "it changes the vectors, and every user of this model would get them"
_PLACE: Final = "emberd's servers listen on loopback only; start one yourself and use base_url="
_SIZE: Final = "use context_tokens=, or `emberd up --context-tokens`"
_GPUS: Final = "emberd chooses the GPUs; use `emberd up --tp-size` or `--dp-size`"

# SGLang takes the last of two options that clash, and any unique prefix of an option. Without this
# table emberd would wait at another port than a ``--port`` names, a ``--quantization`` would change
# the vectors under an unchanged identity, and an ``--api-key`` would be visible to other users.
_RESERVED: Final[Mapping[str, str]] = {
    "--admin-api-key": _KEY,
    "--allow-auto-truncate": _VECTORS,
    "--api-key": _KEY,
    "--config": _KEY,
    "--context-length": _SIZE,
    "--data-parallel-size": _GPUS,
    "--device": "use device=, or `emberd up --device`",
    "--dp-size": _GPUS,
    "--dtype": _VECTORS,
    "--host": _PLACE,
    "--json-model-override-args": _VECTORS,
    "--load-format": _VECTORS,
    "--max-total-tokens": f"a longer text would wait forever; {_SIZE}",
    "--model-path": "use model=, or `emberd up --model`",
    "--port": _PORT,
    "--quantization": _VECTORS,
    "--revision": "use revision=, or `emberd up --revision`",
    "--served-model-name": _OURS,
    "--tensor-parallel-size": _GPUS,
    "--tokenizer-path": _VECTORS,
    "--tp-size": _GPUS,
    "--weight-version": _OURS,
}


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
            f"tp_size={options.tp_size}, dp_size={options.dp_size} count GPUs, and device='cpu' "
            f"was requested",
            advice="Leave them out.",
        )
