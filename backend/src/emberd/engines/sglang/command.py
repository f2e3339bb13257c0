"""The words of SGLang's command line, and why each is there.

Nothing here has run on a GPU. What is particular to a generation of GPUs stands in ``cards``;
SGLang's own choice of kernels is left alone, so no word here depends on it.

* Arguments of the user's own, behind emberd's: those that would break a promise are refused.

SGLang takes the last of two that clash, and any unique beginning of an option. Without this, a
``--port`` would be waited for at another port, a ``--quantization`` would change vectors under an
unchanged identity, and an ``--api-key`` would stand where everybody can read it.
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

_DTYPE: Final = "bfloat16"
_CUTTABLE: Final = json.dumps({"is_matryoshka": True})
_CPU_WATCHDOG_S: Final = 3600
_COLON: Final = ":"
_INSTEAD_OF_COLON: Final = "_"
_LOOPBACK: Final = ("127.0.0.1", "localhost")
_NO_PROXY: Final = ("no_proxy", "NO_PROXY")
_DUMPS: Final = ("SGLANG_PYSPY_DUMP_BEFORE_CRASH", "SGLANG_CUDA_COREDUMP_BEFORE_CRASH")


@dataclass(frozen=True, slots=True)
class Flag:
    """Words of the command that belong together.

    Attributes:
        words: The option, and its value if it takes one.
        why: The reason, in one sentence without a full stop.
        optional: A version of SGLang that does not know the option may do without.
    """

    words: tuple[str, ...]
    why: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be served, where, and to whom.

    Attributes:
        model: Name on the hub, or a folder.
        port: The loopback port that was chosen for it.
        fingerprint: What it shows as its weight version.
        device: ``GPU`` or ``CPU``.
        memory: The figures for that device; None when nothing is known of the model.
        revision: Commit on the hub; None for whatever is there, and for folders.
        dtype: Number format; None for bfloat16.
        quantization: Quantisation of the weights; None for none.
        context_tokens: Used where ``memory`` is None.
        cuttable: The server may be asked for shorter vectors.
        config: The file that holds the port and the key; None to write the port on the command
            line, as a dry run does.
        tp_size: GPUs over which one copy of the model is spread.
        dp_size: Copies of the model.
    """

    model: str
    port: int
    fingerprint: str
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
    """Return the words that start a server for ``target``; the user's own come behind them."""
    return (
        *_model(target),
        *_address(target),
        *_embedding(target),
        *_sizes(target),
        *_device(target),
        *_service(),
    )


def words(chosen: Sequence[Flag], arguments: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command's words; the last of two that clash wins, so the user's come last."""
    return (*(word for flag in chosen for word in flag.words), *arguments)


def reasons(chosen: Sequence[Flag], arguments: Sequence[str] = ()) -> tuple[Reason, ...]:
    """Return the words with their reasons, for people."""
    ours = tuple(Reason(" ".join(flag.words), flag.why) for flag in chosen)
    return (*ours, Reason(" ".join(arguments), "you asked for it")) if arguments else ours


def adapt(chosen: Sequence[Flag], known: frozenset[str] | None) -> tuple[Flag, ...]:
    """Return what a version of SGLang with these options takes: optional ones may be dropped.

    Args:
        chosen: What we would say.
        known: Its options by ``known_options``; None leaves all as they are.

    Raises:
        StartError: It does not know an option that we cannot do without.
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
    """Return the name that a server for ``model`` goes by.

    SGLang reads ``a:b`` in a request as adapter ``b`` of model ``a``.
    """
    return model.replace(_COLON, _INSTEAD_OF_COLON)


def config_text(port: int, api_key: str | None) -> str:
    """Return the content of the file that ``--config`` names: a JSON text is YAML as well.

    The port stands in it so that no other user learns it before the server listens.
    """
    key = f"api-key: {json.dumps(api_key)}\n" if api_key else ""
    return f"port: {port}\n{key}"


def variables(
    environ: Mapping[str, str], device: str, gpus: Sequence[Gpu] = ()
) -> dict[str, tuple[str, str]]:
    """Return what the server's environment needs besides ``environ``: name -> value and reason.

    ``SGL_FORCE_SHUTDOWN`` is left out on purpose: with it SGLang drops requests at a stop at once;
    without it the drain has no end, which the supervisor gives it.
    """
    needed = {
        name: (
            _with_loopback(environ.get(name, "")),
            "SGLang's own warm-up asks itself by HTTP, which a proxy must not take",
        )
        for name in _NO_PROXY
    }
    for name in _DUMPS:
        needed[name] = ("0", "a dump before the end holds it up for a minute")
    if device == CPU:
        needed["SGLANG_USE_CPU_ENGINE"] = ("1", "SGLang looks for a GPU otherwise")
        return needed
    uuids = ",".join(gpu.uuid for gpu in gpus)
    needed[VISIBLE] = (uuids, f"chosen for their free memory: {', '.join(map(_card, gpus))}")
    if len(gpus) > 1:
        needed["SGLANG_ENABLE_TP_MEMORY_INBALANCE_CHECK"] = (
            "0",
            "shared GPUs are never equally free, and the figures are for the least free",
        )
    return needed


def _model(target: Target) -> tuple[Flag, ...]:
    given = [
        Flag(("--model-path", target.model), "the model that was asked for"),
        Flag(("--dtype", target.dtype or _DTYPE), _why_dtype(target.dtype)),
    ]
    if target.revision is not None:
        given.append(Flag(("--revision", target.revision), "the commit that was asked for"))
    if target.quantization is not None:
        given.append(Flag(("--quantization", target.quantization), "asked for; it is identity"))
    return tuple(given)


def _why_dtype(dtype: str | None) -> str:
    if dtype is not None:
        return "asked for; it is identity"
    return "the models' own format; in float16 Qwen3-Embedding can give NaN"


def _address(target: Target) -> tuple[Flag, ...]:
    given = [
        Flag(("--host", HOST), "nobody outside this machine reaches it"),
        Flag(
            ("--served-model-name", served_name(target.model)),
            "what /v1/models says; SGLang would say the path",
        ),
        Flag(
            ("--weight-version", target.fingerprint),
            "the name of this start, which /model_info shows",
        ),
    ]
    if target.config is None:
        given.append(Flag(("--port", str(target.port)), "chosen for it"))
    else:
        given.append(
            Flag(
                ("--config", target.config),
                "holds the port and the key, which ps would show on a command line",
            )
        )
    return tuple(given)


def _embedding(target: Target) -> tuple[Flag, ...]:
    given = [
        Flag(("--is-embedding",), "without it a Qwen3 model is served for generation"),
        Flag(
            ("--disable-radix-cache",),
            "a hit changes the numbers a little, and texts of an index share no long beginnings",
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
                "does not say it",
            )
        )
    return tuple(given)


def _sizes(target: Target) -> tuple[Flag, ...]:
    plan = target.memory
    if plan is None:
        asked = target.context_tokens
        why = "what was asked for; nothing is known of the model's size"
        return (Flag(("--context-length", str(asked)), why),) if asked else ()
    return (
        Flag(
            ("--context-length", str(plan.context_tokens)),
            f"texts of up to {plan.longest_text_tokens:,} tokens: "
            f"SGLang keeps up to seven for itself",
        ),
        Flag(
            ("--max-total-tokens", str(plan.kv_tokens)),
            "the KV cache takes no more than the longest text and the batches under way, so the "
            "device can be shared",
        ),
        Flag(
            ("--mem-fraction-static", f"{plan.fraction:.3f}"),
            "a bound on weights and KV cache, of what is free at the start; SGLang's own figure "
            "is of the whole card, and negative on small ones without chunks",
        ),
        Flag(
            ("--chunked-prefill-size", str(plan.chunked_prefill_tokens)),
            "each token of an encoder sees the whole text"
            if plan.chunked_prefill_tokens == NO_CHUNKS
            else "bounds what a batch takes, whatever the length of the texts",
        ),
        Flag(("--max-prefill-tokens", str(plan.max_prefill_tokens)), "the size of a batch"),
    )


def _device(target: Target) -> tuple[Flag, ...]:
    if target.device == CPU:
        return (
            Flag(("--device", CPU), "asked for, or there is no GPU"),
            Flag(("--attention-backend", "torch_native"), "needs no kernels of SGLang's"),
            Flag(
                ("--watchdog-timeout", str(_CPU_WATCHDOG_S)),
                "a long batch takes minutes on a CPU, and SGLang ends itself after 300 s",
            ),
        )
    given = [Flag(("--device", GPU), "never another one by itself")]
    for name, size in (("--tp-size", target.tp_size), ("--dp-size", target.dp_size)):
        if size > 1:
            given.append(Flag((name, str(size)), "asked for"))
    return tuple(given)


def _service() -> tuple[Flag, ...]:
    return (
        Flag(
            ("--sleep-on-idle",),
            "an idle scheduler takes a whole core otherwise",
            optional=True,
        ),
        Flag(
            ("--enable-metrics",),
            "its counters tell whether it is idle",
        ),
        Flag(("--log-level", "info"), "its progress and readiness are at this level"),
        Flag(
            ("--uvicorn-access-log-exclude-prefixes", "/"),
            "a line for each request would fill the disk",
            optional=True,
        ),
    )


def _with_loopback(listed: str) -> str:
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    return ",".join([*hosts, *(host for host in _LOOPBACK if host not in hosts)])


def _card(gpu: Gpu) -> str:
    kind = generation(gpu.capability)
    return f"{gpu.name}, {kind.name if kind else 'unknown'}"


_PORT: Final = "give it to emberd: `emberd up --port`, or EMBERD_PORT"
_KEY: Final = "emberd makes a key for each start; `emberd up --no-auth` starts without one"
_OURS: Final = "emberd needs its own to know the server by"
_OTHER: Final = "it changes the vectors, and everybody who asks for this model would get them"
_PLACE: Final = "servers of emberd listen on loopback only; start one by hand, and give base_url="
_SIZE: Final = "give it to emberd: context_tokens=, or `emberd up --context-tokens`"
_GPUS: Final = "give it to emberd, which chooses the GPUs: `emberd up --tp-size`, `--dp-size`"

_RESERVED: Final[Mapping[str, str]] = {
    "--admin-api-key": _KEY,
    "--allow-auto-truncate": _OTHER,
    "--api-key": _KEY,
    "--config": _KEY,
    "--context-length": _SIZE,
    "--data-parallel-size": _GPUS,
    "--device": "give it to emberd: device=, or `emberd up --device`",
    "--dp-size": _GPUS,
    "--dtype": _OTHER,
    "--host": _PLACE,
    "--json-model-override-args": _OTHER,
    "--load-format": _OTHER,
    "--max-total-tokens": f"a text that is longer would wait for ever; {_SIZE}",
    "--model-path": "give it to emberd: model=, or `emberd up --model`",
    "--port": _PORT,
    "--quantization": _OTHER,
    "--revision": "give it to emberd: revision=, or `emberd up --revision`",
    "--served-model-name": _OURS,
    "--tensor-parallel-size": _GPUS,
    "--tokenizer-path": _OTHER,
    "--tp-size": _GPUS,
    "--weight-version": _OURS,
}


def check(options: StartOptions, *, on_cpu: bool) -> None:
    """Refuse what would break a promise of emberd's.

    Raises:
        StartError: An argument is emberd's to give, or a CPU was asked for several times.
    """
    for word in options.arguments:
        name = word.partition("=")[0]
        reserved = _reserved(name)
        if reserved is not None:
            raise StartError(
                f"{name} cannot be given to SGLang through emberd: {_RESERVED[reserved]}",
                advice="Take it out of EMBERD_ENGINE_ARGS, or of the command.",
            )
    if on_cpu and options.gpus > 1:
        raise StartError(
            f"tp_size={options.tp_size}, dp_size={options.dp_size} count GPUs, and device='cpu' "
            f"was asked for",
            advice="Leave them out.",
        )


def _reserved(name: str) -> str | None:
    if not name.startswith("--"):
        return None
    # Equal, or a beginning that SGLang's parser would complete to it.
    return next((option for option in _RESERVED if option.startswith(name)), None)
