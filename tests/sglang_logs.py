"""Logs of SGLang servers that failed, kept beside the tests of its engine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from emberd.system.log_rules import LogRule

FOLDER: Final = Path(__file__).with_name("engines") / "sglang" / "logs"
_HEADER: Final = re.compile(r"(?:# \w+: .*\n)+")
_FIELD: Final = re.compile(r"^# (\w+): (.*)$", re.MULTILINE)
_NO_CODE: Final = "none"


@dataclass(frozen=True)
class Log:
    """One log: real, with ``run`` the command that gave it, or worded after a ``source``."""

    name: str
    exit_code: int | None
    fields: dict[str, str]
    text: str


def read(name: str) -> Log:
    """Return the log called ``name``: its header apart from what the server wrote."""
    whole = (FOLDER / f"{name}.log").read_text(encoding="utf-8")
    header = _HEADER.match(whole)
    assert header is not None, f"{name}.log has no header"
    fields = dict(_FIELD.findall(header.group()))
    code = fields["exit"]
    return Log(name, None if code == _NO_CODE else int(code), fields, whole[header.end() :])


def names() -> list[str]:
    """Return the names of all logs that are kept."""
    return sorted(path.stem for path in FOLDER.glob("*.log"))


def name_of(failure: str) -> str:
    """Return the name of the log that shows the failure called ``failure``."""
    return re.sub(r"[^a-z0-9]+", "-", failure.lower()).strip("-")


def row(failure: LogRule) -> str:
    """Return what ``docs/failures.md`` says of a failure: a line of its table."""
    log = read(name_of(failure.name))
    proof = (
        f"by its wording, `{failure.source}`" if failure.source else f"real run, `{log.name}.log`"
    )
    cells = (failure.name, _shown(failure.cause), _shown(failure.advice), proof)
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _shown(template: str) -> str:
    return re.sub(r"\{(\w+)(?:!r)?\}", lambda value: value[1].upper(), template)
