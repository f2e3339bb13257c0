"""Rules that explain the log of a failed program: one format and one reader for all of them.

The engines' servers and the installers of engines are explained by such rules. A log may hold keys
and passwords; a diagnosis holds none.
"""

from __future__ import annotations

import re
import signal
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emberd.system.redaction import redactor

READ_LOG: Final = "Read its log; `emberd doctor` checks the machine."

_OPTIONS: Final = "options"
_QUOTED_CHARS: Final = 300

# Only the patterns: values of this process's environment are not in another program's log.
_redact: Final = redactor({})


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why a program failed.

    Attributes:
        cause: What happened, in one sentence.
        advice: What to do about it.
        port_taken: Another program took the port, so another port is worth a try.
        killed: The program was killed from outside (SIGKILL or SIGTERM, and no reason in the log),
            so another start is worth a try; a few in a row are not.
        final: Another program with the same task would fail in the same way.
    """

    cause: str
    advice: str = ""
    port_taken: bool = False
    killed: bool = False
    final: bool = False


@dataclass(frozen=True, slots=True)
class LogRule:
    """One known failure.

    Attributes:
        name: Short name, used in documentation and tests.
        pattern: Found in the log of a program that failed in this way, and of no failure that
            comes later in the table. Its named groups are values for ``cause`` and ``advice``; of
            a group ``options`` only the names of options are quoted, because their values may be
            keys.
        cause: What happened, in one sentence. ``{...}`` is a group of ``pattern`` or a fact.
        advice: What to do about it, with the same values.
        source: Where the wording comes from, as file and line in the packages' root, if no
            recorded log shows the failure; None if one does.
        port_taken, killed, final: As in ``Diagnosis``.
    """

    name: str
    pattern: re.Pattern[str]
    cause: str
    advice: str
    source: str | None = None
    port_taken: bool = False
    killed: bool = False
    final: bool = False


def load(path: Path) -> tuple[LogRule, ...]:
    """Read rules from a TOML file.

    The table ``[phrases]`` holds texts that several rules share. A rule, or a later phrase, refers
    to one as ``$name``. The pieces of a ``pattern`` that is a list are joined.
    """
    import tomllib  # late: of all processes, only supervisors read rules

    data = tomllib.loads(path.read_text(encoding="utf-8"))
    phrases: dict[str, str] = {}
    for name, text in data["phrases"].items():
        phrases[name] = string.Template(text).substitute(phrases)
    rules = []
    for row in data["rule"]:
        row["pattern"] = re.compile("".join(row["pattern"]))
        for key in ("cause", "advice"):
            row[key] = string.Template(row[key]).substitute(phrases)
        rules.append(LogRule(**row))
    return tuple(rules)


def match(
    rules: Sequence[LogRule], text: str, facts: Mapping[str, str] | None = None
) -> Diagnosis | None:
    """Return the diagnosis of the first rule that is found in ``text``; None if none is.

    Args:
        rules: Specific rules first: a broad one, such as any CUDA error, is the last of its kind.
        text: The part of the log that may hold the reason.
        facts: Values for the rules' texts; a group of the pattern with the same name wins.
    """
    for rule in rules:
        if (found := rule.pattern.search(text)) is None:
            continue
        groups = {name: value for name, value in found.groupdict().items() if value}
        if _OPTIONS in groups:
            words = groups[_OPTIONS].split()
            names = [word.partition("=")[0] for word in words if word.startswith("--")]
            groups[_OPTIONS] = " ".join(names) or "given in the arguments"
        values = {name: excerpt(value) for name, value in {**(facts or {}), **groups}.items()}
        cause, advice = rule.cause.format_map(values), rule.advice.format_map(values)
        return Diagnosis(cause, advice, rule.port_taken, rule.killed, rule.final)
    return None


def excerpt(text: str) -> str:
    """Return ``text`` in one line of bounded length, without keys, tokens and passwords."""
    text = " ".join(_redact(text).split())
    return text if len(text) <= _QUOTED_CHARS else text[: _QUOTED_CHARS - 1] + "…"


def last_line(log: str) -> str:
    """Return an excerpt of the last line that is not blank."""
    lines = (line for line in reversed(log.splitlines()) if line.strip())
    return excerpt(next(lines, "it wrote nothing"))


def signal_name(exit_code: int) -> str:
    """Return the name of the signal of a negative exit code, such as ``SIGSEGV``."""
    known = -exit_code in set(signal.Signals)
    return signal.Signals(-exit_code).name if known else f"signal {-exit_code}"
