"""Arguments of the user's own, behind emberd's: those that would break a promise are refused.

SGLang takes the last of two that clash, and any unique beginning of an option. Without this, a
``--port`` would be waited for at another port, a ``--quantization`` would change vectors under an
unchanged identity, and an ``--api-key`` would stand where everybody can read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from emberd.errors import StartError
from emberd.settings import StartOptions

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
