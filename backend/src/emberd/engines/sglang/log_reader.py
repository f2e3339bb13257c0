"""What SGLang's log says: the step of a starting server, and why one failed.

The lines are those of the versions in ``support.VERSIONS``. The exit code says little, because
after most failures the parent process kills itself. So the log is searched first, for the rules in
``known_failures.toml``, and the exit code counts only if the log gives no reason.
"""

from __future__ import annotations

import re
import signal
from functools import cache
from pathlib import Path
from typing import Final

from emberd.engines.sglang.support import VERSIONS
from emberd.system import log_rules
from emberd.system.log_rules import READ_LOG, Diagnosis, LogRule

# ------------------------------------------------------------ progress

_TAIL_CHARS: Final = 64 * 1024  # the line with all settings is 20 KB long

_COMPLETED: Final = r" *\d+% Completed \| (?P<file>\d+)/(?P<files>\d+)"
# In the order in which a start writes them. SGLang switches the hub's progress bars off, so the
# step does not change during a download.
_STEPS: Final = tuple(
    (re.compile(pattern), step)
    for pattern, step in (
        (r"Retrying in \d+s \[Retry (?P<retry>\d+)/(?P<retries>\d+)\]", "waiting for the hub"),
        (r"server_args=", "starting the scheduler"),
        ("|".join({version.prepares for version in VERSIONS.values()}), "preparing the device"),
        (r"Using model weights format", "downloading the weights"),
        (r"Fetching \d+ files: +(?P<percent>\d+)%", "downloading the weights"),
        (r"\.safetensors: +(?P<size>\d+)%", "downloading the weights"),
        (r"Load weight begin", "loading the weights"),
        (rf"[Ll]oading .*?shards: {_COMPLETED}", "loading the weights"),
        (rf"Loading safetensors using .*?: {_COMPLETED}", "loading the weights"),
        (r"Load weight end", "allocating the KV cache"),
        (r"Memory pool end", "preparing the first batch"),
        (r"Capture .*? begin", "capturing graphs"),
        (r"Capturing [^|]*\|[^|]*\| +(?P<graph>\d+)/(?P<graphs>\d+)", "capturing graphs"),
        (
            r"DeepGEMM warmup: [^|]*\|[^|]*\| +(?P<kernel>\d+)/(?P<kernels>\d+)",
            "compiling kernels",
        ),
        (r"flashinfer\.jit: ", "compiling kernels"),
        (r"max_total_num_tokens=", "opening its port"),
        (r"Application startup complete", "warming up"),
        (r"The server is fired up", "answering"),
    )
)
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

    Only the end of the log is searched, because the function is called many times a second.
    """
    for line in reversed(log[-_TAIL_CHARS:].splitlines()):
        # From the last step: if a line matches two, the later one counts.
        for pattern, step in reversed(_STEPS):
            if found := pattern.search(line):
                known = found.groupdict()
                figures = [
                    form.format(**known) for name, form in _FIGURES.items() if known.get(name)
                ]
                return " ".join([step, *figures])
    return "importing SGLang"


# ------------------------------------------------------------ the part that gives the reason

# Lines that mention failures without being one: optional modules of models that cannot be imported,
# warnings, the usage text with all options, access lines (written by clients), and the source lines
# of tracebacks.
_NOISE: Final = re.compile(
    r"server_args=|Ignore import error when loading|(?:User|Future|Deprecation)Warning: "
    r"|^usage: |^ {4}|^  File \"|INFO: +\S+ - \"(?:GET|POST|HEAD|PUT|DELETE|OPTIONS) "
)
_SERVING: Final = ("The server is fired up", "Prefill batch, #new-seq")
_LOST_PORT: Final = "error while attempting to bind on address"
_FATAL: Final = (
    ("hit an exception: Traceback", _LOST_PORT, "Initialization failed. warmup error"),
    ("watchdog timeout (", "Fatal Python error", "crashed with exit code", "Bus error"),
)
# Lines that a process writes when it continues: all of its logger, except those before its end.
_CONTINUES: Final = re.compile(
    r"^(?:INFO: |\[\d{4}-\d\d-\d\d(?![^\n]*(?:kill_process_tree called|Received sig))).*\n?",
    re.MULTILINE,
)
_EXCEPTION: Final = re.compile(
    r"^(?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b.*", re.MULTILINE
)
_SETTING: Final = r"['\"]?{name}['\"]?[=:] ?(?:'(?P<text>[^']*)'|(?P<bare>[^,\s)}}]+))"


def last_words(log: str, *, killed: bool = False) -> str:
    """Return the part of a log that can give the reason; empty if none can.

    What a process writes when it fails counts first, and of several processes the first: the
    others only notice that one has ended. If the server has served requests, nothing else counts,
    because tracebacks of requests did not end it. An exception after which the start continued does
    not count either.

    Args:
        log: What the server wrote.
        killed: A signal ended the main process. SGLang kills itself after most failures, but the
            signal may also come from outside.
    """
    text = "\n".join(line for line in log.splitlines() if not _NOISE.search(line))
    for marks in _FATAL:
        places = [place for mark in marks if (place := text.find(mark)) >= 0]
        if places:
            return text[text.rfind("\n", 0, min(places)) + 1 :]
    if any(mark in text for mark in _SERVING):
        return ""
    if not killed:
        return text
    *_, end = _CONTINUES.split(text)
    return end if _EXCEPTION.search(end) else ""


def _setting(log: str, name: str) -> str | None:
    """Return a value from the line in which SGLang writes its settings; None if it is missing.

    Never used for a key: the value may be quoted.
    """
    begin = log.find("server_args=")
    line = log[begin:].partition("\n")[0] if begin >= 0 else ""
    found = re.search(_SETTING.format(name=name), line)
    return (found["text"] or found["bare"]) if found else None


# ------------------------------------------------------------ diagnosis

_FROM_OUTSIDE: Final = (-signal.SIGKILL, -signal.SIGTERM)
_BY_SIGNAL: Final = {
    -signal.SIGKILL: (
        "was killed, most likely because memory ran out",
        "Check `dmesg -T | grep -i oom`; if memory ran out, free some or serve a smaller model.",
    ),
    -signal.SIGTERM: ("was terminated from outside (SIGTERM)", "Start it again."),
    -signal.SIGINT: ("was interrupted from outside (SIGINT)", "Start it again."),
    -signal.SIGILL: (
        "used an instruction that this processor lacks (SIGILL)",
        "Serve the model on another machine: EMBERD_BASE_URL=http://HOST:30000/v1.",
    ),
    -signal.SIGBUS: (
        (
            "was killed by SIGBUS: a memory-mapped file could not grow, most likely because a disk "
            "or /dev/shm is full"
        ),
        "Free space there: `df -h /dev/shm` and `df -h`; a container needs --shm-size 2g.",
    ),
    -signal.SIGSEGV: ("crashed (SIGSEGV)", READ_LOG),
    -signal.SIGABRT: ("aborted (SIGABRT)", READ_LOG),
}


@cache
def known_failures() -> tuple[LogRule, ...]:
    """Return the known failures, in the order in which a log is searched for them."""
    return log_rules.load(Path(__file__).with_name("known_failures.toml"))


def diagnose(exit_code: int | None, log: str) -> Diagnosis:
    """Return why a server failed; see ``Engine.diagnose``."""
    words = last_words(log, killed=exit_code in _FROM_OUTSIDE)
    facts = {
        "model": _setting(log, "model_path") or "the model",
        "port": _setting(log, "port") or "its port",
    }
    if known := log_rules.match(known_failures(), words, facts):
        return known
    if exit_code is None:
        step = progress(log)
        advice = READ_LOG
        if "downloading" in step:
            advice = "Check the network and the hub; downloaded files are kept, so start it again."
        return Diagnosis(f"SGLang wrote nothing for too long while {step}, and was ended", advice)
    if exceptions := _EXCEPTION.findall(words):
        return Diagnosis(f"SGLang failed: {log_rules.excerpt(exceptions[-1])}", READ_LOG)
    if exit_code in _BY_SIGNAL:
        cause, advice = _BY_SIGNAL[exit_code]
        return Diagnosis(f"SGLang {cause}", advice, killed=exit_code in _FROM_OUTSIDE)
    last = log_rules.last_line(words)
    return Diagnosis(f"SGLang ended with code {exit_code}; its last line: {last}", READ_LOG)


def has_failed(log: str) -> bool:
    """Return whether a server has failed although its process still runs.

    If SGLang finds its port taken, its warm-up asks the server on that port for two minutes whether
    it is ready, and ends only then.
    """
    return _LOST_PORT in log
