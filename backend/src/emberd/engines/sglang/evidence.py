"""What of a log tells why the server died: its last words, without noise and without secrets."""

from __future__ import annotations

import re
from typing import Final

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
