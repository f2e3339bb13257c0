"""What a starting SGLang server is doing, read from its log.

The lines are those of SGLang 0.5.23, in the order in which a start writes them. Of a download
it shows nothing: it switches the hub's bars off, so the step stands still until the files are
there.

* What of a log tells why the server died: its last words, without noise and without secrets.

* Why an SGLang server died, from its exit code and its log.

The exit code says little: most failures end with the parent killing itself. So the log is asked
first, against ``FAILURES`` in order, and the code only when the log gives no reason.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Final, NamedTuple

from emberd.engines.base import Diagnosis
from emberd.engines.sglang.known_failures import FAILURES, Failure

_TAIL_CHARS: Final = 64 * 1024  # the line with all its settings is 20 KB long
_FIRST_STEP: Final = "importing SGLang"


class _Step(NamedTuple):
    mark: str
    says: str


_STEPS: Final = (
    _Step(r"Retrying in \d+s \[Retry (?P<retry>\d+)/(?P<retries>\d+)\]", "waiting for the hub"),
    _Step(r"server_args=", "starting the scheduler"),
    _Step(r"Init (?:parallel|torch distributed) begin", "preparing the device"),
    _Step(r"Using model weights format", "downloading the weights"),
    _Step(r"Fetching \d+ files: +(?P<percent>\d+)%", "downloading the weights"),
    _Step(r"\.safetensors: +(?P<size>\d+)%", "downloading the weights"),
    _Step(r"Load weight begin", "loading the weights"),
    _Step(
        r"(?:[Ll]oading .*?shards|Loading safetensors using .*?): +\d+% Completed \| "
        r"(?P<file>\d+)/(?P<files>\d+)",
        "loading the weights",
    ),
    _Step(r"Load weight end", "allocating the KV cache"),
    _Step(r"Memory pool end", "preparing the first batch"),
    _Step(r"Capture .*? begin", "capturing graphs"),
    _Step(r"Capturing [^|]*\|[^|]*\| +(?P<graph>\d+)/(?P<graphs>\d+)", "capturing graphs"),
    _Step(
        r"DeepGEMM warmup: [^|]*\|[^|]*\| +(?P<kernel>\d+)/(?P<kernels>\d+)", "compiling kernels"
    ),
    _Step(r"flashinfer\.jit: ", "compiling kernels"),
    _Step(r"max_total_num_tokens=", "opening its port"),
    _Step(r"Application startup complete", "warming up"),
    _Step(r"The server is fired up", "answering"),
)
_MARKS: Final = tuple((re.compile(step.mark), step.says) for step in _STEPS)
_FIGURES: Final = {
    "retry": "(retry {retry} of {retries})",
    "percent": "{percent} %",
    "size": "{size} %",
    "file": "({file} of {files} files)",
    "graph": "{graph}/{graphs}",
    "kernel": "{kernel}/{kernels}",
}


def progress(log: str) -> str:
    """Return what a starting server is doing, in a few words.

    Args:
        log: What it wrote since its start, or the end of that. Only the last 64 Ki characters
            are looked at: the function is called many times a second.
    """
    for line in reversed(log[-_TAIL_CHARS:].splitlines()):
        step = _step(line)
        if step is not None:
            return step
    return _FIRST_STEP


def _step(line: str) -> str | None:
    # From the last: a line that says two things says the later one in the start's order.
    for mark, says in reversed(_MARKS):
        if found := mark.search(line):
            return " ".join([says, *_figures(found)])
    return None


def _figures(found: re.Match[str]) -> list[str]:
    known = found.groupdict()
    return [form.format(**known) for name, form in _FIGURES.items() if known.get(name)]


_LINE_END: Final = "\n"
_SETTINGS: Final = "server_args="
# Lines that name failures which are none: a model's module that cannot be imported is left out,
# warnings are warnings, a usage text lists every option there is, a request's line is the client's,
# and a traceback quotes the source with the wordings of other failures in it.
_NOISE: Final = re.compile(
    r"server_args=|Ignore import error when loading|(?:User|Future|Deprecation)Warning: "
    r"|^usage: |^ {4}|^  File \"|INFO: +\S+ - \"(?:GET|POST|HEAD|PUT|DELETE|OPTIONS) "
)
_SERVING: Final = ("The server is fired up", "Prefill batch, #new-seq")
_EXCEPTIONS: Final = (
    "hit an exception: Traceback",
    "error while attempting to bind on address",
    "Initialization failed. warmup error",
)
_DEATHS: Final = (
    "watchdog timeout (",
    "Fatal Python error",
    "crashed with exit code",
    "Bus error",
)

_VALUE: Final = r"(?P<value>'[^']*'|\"[^\"]*\"|[^\s,'\"]+)"
_SECRETS: Final = (
    re.compile(rf"(?P<name>api[-_]?key['\"]?[\s=:]+){_VALUE}", re.IGNORECASE),
    re.compile(rf"(?P<name>(?:token|password|secret)['\"]?\s*[=:]\s*){_VALUE}", re.IGNORECASE),
    re.compile(rf"(?P<name>Bearer\s+){_VALUE}", re.IGNORECASE),
    re.compile(r"(?P<name>)(?P<value>\bhf_[A-Za-z0-9]{8,}|\bsk-[\w-]{8,})"),
    re.compile(r"(?P<name>://)(?P<value>[^\s/@]+)(?=@)"),
)
_HIDDEN: Final = r"\g<name><hidden>"
_QUOTED_CHARS: Final = 300
# What a process that lives on writes: lines of its logger, but those with which the parent ends.
_GOING_ON: Final = re.compile(
    r"^(?:INFO: |\[\d{4}-\d\d-\d\d(?![^\n]*(?:kill_process_tree called|Received sig))).*\n?",
    re.MULTILINE,
)

_EXCEPTION_LINE: Final = re.compile(
    r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b.*", re.MULTILINE
)
_SETTING: Final = r"['\"]?{name}['\"]?[=:] ?(?:'(?P<text>[^']*)'|(?P<bare>[^,\s)}}]+))"


def last_words(log: str, *, killed: bool = False) -> str:
    """Return the part of a log that can say why the server died; empty when none can.

    What a process says when it dies counts before all else, and the first that says it: the
    others only notice that one is gone. Of a server that has served nothing else counts: hours
    of requests may have left tracebacks that killed nothing. Nor does an exception that a start
    has outlived.

    Args:
        log: What the server wrote.
        killed: A signal ended it. SGLang ends itself so after most failures, but others may too.
    """
    text = _without_noise(log)
    for marks in (_EXCEPTIONS, _DEATHS):
        places = [place for mark in marks if (place := text.find(mark)) >= 0]
        if places:
            return text[text.rfind(_LINE_END, 0, min(places)) + 1 :]
    if any(mark in text for mark in _SERVING):
        return ""
    return _at_the_end(text) if killed else text


def setting(log: str, name: str) -> str | None:
    """Return one value of the line in which SGLang writes its settings; None if it is not there.

    Never ask for a key: what is returned may be quoted.
    """
    start = log.find(_SETTINGS)
    if start < 0:
        return None
    line = log[start : log.find("\n", start)]
    found = re.search(_SETTING.format(name=re.escape(name)), line)
    if found is None:
        return None
    return found["text"] if found["text"] is not None else found["bare"]


def last_exception(text: str) -> str | None:
    """Return the line that names the last exception in ``text``; None if there is none."""
    lines = _EXCEPTION_LINE.findall(text)
    return lines[-1].strip() if lines else None


def options(words: str) -> str:
    """Return the names of the options in a part of a command line, without any value."""
    return " ".join(word.partition("=")[0] for word in words.split() if word.startswith("--"))


def quotable(text: str) -> str:
    """Return ``text`` in one line, of bounded length, with keys, tokens and passwords hidden."""
    for secret in _SECRETS:
        text = secret.sub(_HIDDEN, text)
    text = " ".join(text.split())
    return text if len(text) <= _QUOTED_CHARS else text[: _QUOTED_CHARS - 1] + "…"


def _at_the_end(text: str) -> str:
    """Return the exception with which ``text`` ends; empty when the process went on after it."""
    *_, end = _GOING_ON.split(text)
    return end if last_exception(end) else ""


def _without_noise(log: str) -> str:
    return "\n".join(line for line in log.splitlines() if not _NOISE.search(line))


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
    words = last_words(log, killed=killed)
    for failure in FAILURES:
        if found := failure.mark.search(words):
            return _told(failure, found.groupdict(), log)
    if exit_code is None:
        return _silent(log)
    if last := last_exception(words):
        return Diagnosis(f"SGLang failed: {quotable(last)}", _READ_LOG)
    return _by_code(exit_code, words)


def doomed(log: str) -> bool:
    """Return whether a server has failed although its process still lives.

    SGLang that finds its port taken asks whoever has it for two minutes whether it is warm, and
    ends only then.
    """
    return _LOST_PORT in log


def _told(failure: Failure, groups: Mapping[str, str | None], log: str) -> Diagnosis:
    facts = {name: setting(log, key) for name, key in _FACTS.items()}
    if flags := groups.get(_FLAGS):
        # Their values are the user's, and may be keys.
        groups = {**groups, _FLAGS: options(flags) or _NO_FLAG}
    values = _UNKNOWN | {
        name: quotable(value) for name, value in {**facts, **groups}.items() if value
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
    last = quotable(lines[-1]) if lines else "it wrote none"
    return Diagnosis(f"SGLang ended with code {exit_code}; its last line: {last}", _READ_LOG)
