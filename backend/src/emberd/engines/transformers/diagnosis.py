"""What a starting server is doing, and why one died, from its log and its exit code."""

from __future__ import annotations

import re
import signal
from typing import Final, NamedTuple

from emberd.engines.base import Diagnosis

_INSTALL_ANEW: Final = (
    "Install it anew: `emberd engine remove transformers`, then `emberd engine install "
    "transformers`."
)
_READ_LOG: Final = "Read its log; `emberd doctor` checks the machine."
_SMALLER: Final = "Free some memory, or serve a smaller model with an index of its own."

_PORT_TAKEN: Final = "address already in use"
_TAIL_CHARS: Final = 64 * 1024
_QUOTED_CHARS: Final = 300
# "cannot serve NAME: CAUSE. ADVICE", as emberd.serving writes it and its bootstrap.
_TOLD: Final = re.compile(
    r"\bcannot serve(?: [^\n]*?)?: (?P<cause>[^\n]+?)(?:\. (?P<advice>[^\n]+))?$", re.MULTILINE
)
_FOREIGN: Final = re.compile(r"^(?P<type>[A-Za-z_][\w.]*), raised at$")
_STEP: Final = re.compile(r" INFO (?P<step>ready:|listening|(?:down)?loading\b.*$)")
_WORDS: Final = {"ready:": "answering", "listening": "starting"}
_OWN_STEPS: Final = ("loading the ", "loading torch", "downloading")


class _Failure(NamedTuple):
    mark: re.Pattern[str]
    cause: str
    advice: str


# Of what the server cannot explain itself.
_FAILURES: Final = (
    _Failure(
        re.compile(r"error: unrecognized arguments: (?P<what>[^\n]+)"),
        "the server does not know the option {what}",
        "Take it out of EMBERD_ENGINE_ARGS (or of the arguments of `emberd up`).",
    ),
    _Failure(
        re.compile(r": error: (?P<what>argument [^\n]+)"),
        "the server refuses an option: {what}",
        "Correct it in EMBERD_ENGINE_ARGS (or in the arguments of `emberd up`).",
    ),
    _Failure(
        re.compile(r"^(?:ModuleNotFoundError|ImportError): (?P<what>[^\n]+)", re.MULTILINE),
        "the engine's environment is incomplete: {what}",
        _INSTALL_ANEW,
    ),
    _Failure(
        re.compile(r"No space left on device"),
        "a disk is full",
        "`df -h` shows which; HF_HOME moves the hub's cache, TMPDIR the temporary files.",
    ),
    _Failure(
        re.compile(
            r"out of memory|can't allocate memory|not enough memory|^MemoryError", re.MULTILINE
        ),
        "the server ran out of memory",
        _SMALLER,
    ),
)


def progress(log: str) -> str:
    """Return what a starting server is doing, in a few words, from its log so far."""
    for line in reversed(log[-_TAIL_CHARS:].splitlines()):
        found = _STEP.search(line)
        if found is None:
            continue
        step = found["step"]
        if step.startswith(_OWN_STEPS):
            return step
        return _WORDS.get(step, "loading the model")  # "loading", and the model's name
    return "starting"


def diagnose(exit_code: int | None, log: str) -> Diagnosis:
    """Return why a server died; see ``Engine.diagnose``."""
    if exit_code is None:
        return Diagnosis(
            f"the server said nothing for too long while {progress(log)}, and was ended",
            "Look at the disk, the network and the load of the machine, and start it again.",
        )
    if _PORT_TAKEN in log:
        return Diagnosis(
            "another program took the port first",
            "Try again; a fixed port (EMBERD_PORT) must be one that nobody else uses: `ss -ltnp`.",
            port_taken=True,
        )
    return _told(log) or _known(log) or _by_code(exit_code, log)


def _told(log: str) -> Diagnosis | None:
    told = list(_TOLD.finditer(log))
    if not told:
        return None
    cause, advice = told[-1]["cause"].rstrip("."), told[-1]["advice"] or ""
    if foreign := _FOREIGN.match(cause):
        return Diagnosis(f"the model could not be made ready ({foreign['type']})", _READ_LOG)
    return Diagnosis(cause[:_QUOTED_CHARS], advice or _READ_LOG)


def _known(log: str) -> Diagnosis | None:
    # A server that has answered may have logged failures of requests, which killed nothing.
    served = log.rfind(" INFO ready:")
    text = log[max(0, served) :]
    for failure in _FAILURES:
        if found := failure.mark.search(text):
            quoted = {name: value[:_QUOTED_CHARS] for name, value in found.groupdict().items()}
            return Diagnosis(failure.cause.format(**quoted), failure.advice)
    return None


def _by_code(exit_code: int, log: str) -> Diagnosis:
    if exit_code == -signal.SIGKILL:
        return Diagnosis(
            "the server was killed, most likely because memory ran out",
            f"Look at `dmesg -T | grep -i oom`. {_SMALLER}",
            killed=True,
        )
    if exit_code == -signal.SIGILL:
        return Diagnosis(
            "this processor lacks an instruction that torch is compiled for (SIGILL)",
            "Name a server on another machine: EMBERD_BASE_URL=http://HOST:30000/v1.",
        )
    if exit_code < 0:
        number = -exit_code
        known = number in set(signal.Signals)
        name = signal.Signals(number).name if known else f"signal {number}"
        return Diagnosis(f"the server was ended by {name}", _READ_LOG)
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1][:_QUOTED_CHARS] if lines else "it wrote nothing"
    return Diagnosis(f"the server exited with code {exit_code}; its last line: {last}", _READ_LOG)
