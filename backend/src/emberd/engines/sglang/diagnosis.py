"""Why an SGLang server died, from its exit code and its log.

The exit code says little: most failures end with the parent killing itself. So the log is asked
first, against ``FAILURES`` in order, and the code only when the log gives no reason.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Final

from emberd.engines.base import Diagnosis
from emberd.engines.sglang import evidence
from emberd.engines.sglang.failure import Failure
from emberd.engines.sglang.failures import FAILURES
from emberd.engines.sglang.progress import progress

_READ_LOG: Final = "Read its log; `emberd doctor` checks the machine."
_MEMORY: Final = (
    "Look at `dmesg -T | grep -i oom`; if memory ran out, free some or serve a smaller model."
)
_FACTS: Final = {"model": "model_path", "port": "port"}  # ours -> SGLang's name
_UNKNOWN: Final = {"model": "the model", "port": "its port"}
_FLAGS: Final = "flags"  # the group that holds words of the user's command line
_NO_FLAG: Final = "that stands in the arguments"
_FROM_OUTSIDE: Final = (signal.SIGKILL, signal.SIGTERM)
_LOST_PORT: Final = "error while attempting to bind on address"
_SILENT_DOWNLOAD: Final = "downloading"

_SIGNALS: Final = {
    signal.SIGKILL: ("SGLang was killed, most likely because memory ran out", _MEMORY),
    signal.SIGTERM: ("SGLang was asked to end from outside (SIGTERM)", "Start it again."),
    signal.SIGINT: ("SGLang was interrupted from outside (SIGINT)", "Start it again."),
    signal.SIGILL: (
        "SGLang ran into an instruction that this processor lacks (SIGILL)",
        "Serve the model on another machine: EMBERD_BASE_URL=http://HOST:30000/v1.",
    ),
    signal.SIGBUS: (
        "SGLang lost memory that it had mapped (SIGBUS): a disk or /dev/shm is full",
        "Free space there: `df -h /dev/shm` and `df -h`; a container needs --shm-size 2g.",
    ),
    signal.SIGSEGV: ("SGLang crashed (SIGSEGV)", _READ_LOG),
    signal.SIGABRT: ("SGLang aborted (SIGABRT)", _READ_LOG),
}


def diagnose(exit_code: int | None, log: str) -> Diagnosis:
    """Return why a server died.

    Args:
        exit_code: As ``subprocess`` gives it, negative for a signal; None when the server was
            ended by its supervisor because nothing moved.
        log: What it wrote since its start, or the end of that. It may hold keys; the diagnosis
            holds none.
    """
    killed = exit_code in [-number for number in _FROM_OUTSIDE]
    words = evidence.last_words(log, killed=killed)
    for failure in FAILURES:
        if found := failure.mark.search(words):
            return _told(failure, found.groupdict(), log)
    if exit_code is None:
        return _silent(log)
    if last := evidence.last_exception(words):
        return Diagnosis(f"SGLang failed: {evidence.quotable(last)}", _READ_LOG)
    return _by_code(exit_code, words)


def doomed(log: str) -> bool:
    """Return whether a server has failed although its process still lives.

    SGLang that finds its port taken asks whoever has it for two minutes whether it is warm, and
    ends only then.
    """
    return _LOST_PORT in log


def _told(failure: Failure, groups: Mapping[str, str | None], log: str) -> Diagnosis:
    facts = {name: evidence.setting(log, key) for name, key in _FACTS.items()}
    if flags := groups.get(_FLAGS):
        # Their values are the user's, and may be keys.
        groups = {**groups, _FLAGS: evidence.options(flags) or _NO_FLAG}
    values = _UNKNOWN | {
        name: evidence.quotable(value) for name, value in {**facts, **groups}.items() if value
    }
    return Diagnosis(
        failure.cause.format_map(values),
        failure.advice.format_map(values),
        port_taken=failure.port_taken,
        killed=failure.killed,
    )


def _silent(log: str) -> Diagnosis:
    step = progress(log)
    advice = _READ_LOG
    if _SILENT_DOWNLOAD in step:
        advice = "Look at the network and the hub; what has arrived is kept, so start again."
    return Diagnosis(f"SGLang said nothing for too long while {step}, and was ended", advice)


def _by_code(exit_code: int, words: str) -> Diagnosis:
    if exit_code < 0 and -exit_code in _SIGNALS:
        number = signal.Signals(-exit_code)
        cause, advice = _SIGNALS[number]
        return Diagnosis(cause, advice, killed=number in _FROM_OUTSIDE)
    lines = [line for line in words.splitlines() if line.strip()]
    last = evidence.quotable(lines[-1]) if lines else "it wrote none"
    return Diagnosis(f"SGLang ended with code {exit_code}; its last line: {last}", _READ_LOG)
