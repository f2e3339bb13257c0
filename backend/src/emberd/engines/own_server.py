"""What the engines share whose server is our own (``emberd.serving``)."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Final

from emberd.engines.base import Engine, Launch
from emberd.serving import BOOTSTRAP, MODULE
from emberd.system import log_rules
from emberd.system.log_rules import READ_LOG, Diagnosis, LogRule

_SCRIPT: Final = (*MODULE.split("."), BOOTSTRAP)


def address(launch: Launch) -> tuple[str, ...]:
    """Return the words that tell our server where to listen."""
    if launch.descriptor is not None:
        return ("--fd", str(launch.descriptor))
    return ("--host", "127.0.0.1", "--port", str(launch.port))


_TAIL_CHARS: Final = 64 * 1024
_STEP: Final = re.compile(r" INFO (?P<step>ready:|listening|(?:down)?loading\b.*$)")
_IN_WORDS: Final = {"ready:": "answering", "listening": "starting"}
# "cannot serve NAME: CAUSE. ADVICE", as emberd.serving writes it and its bootstrap.
_REPORTED: Final = re.compile(
    r"\bcannot serve(?: [^\n]*?)?: (?P<cause>[^\n]+?)(?:\. (?P<advice>[^\n]+))?$", re.MULTILINE
)
_FOREIGN: Final = re.compile(r"^(?P<type>[A-Za-z_][\w.]*), raised at$")


@cache
def _rules() -> tuple[LogRule, ...]:
    return log_rules.load(Path(__file__).with_name("own_server_failures.toml"))


class OwnServerEngine(Engine):
    """Base class of engines whose server is our own.

    Attributes:
        library: The compiled library that computes the vectors.
        reinstall: What to do if the installation is incomplete.
        free_memory: What to do if memory is short.
    """

    takes_descriptor = True
    library: str
    reinstall: str
    free_memory: str

    def progress(self, log: str) -> str:
        """Return what the starting server is doing, in a few words, from its log so far."""
        for line in reversed(log[-_TAIL_CHARS:].splitlines()):
            if (found := _STEP.search(line)) is not None:
                step = found["step"]
                if step.startswith(("loading the ", "loading torch", "downloading")):
                    return step
                return _IN_WORDS.get(step, "loading the model")  # "loading", and the model's name
        return "starting"

    def diagnose(self, exit_code: int | None, log: str) -> Diagnosis:
        """Return why the server failed; see ``Engine.diagnose``."""
        if exit_code is None:
            return Diagnosis(
                f"the server wrote nothing for too long while {self.progress(log)}, and was ended",
                "Check the disk, the network and the load of the machine, and start it again.",
            )
        if "address already in use" in log:
            return Diagnosis(
                "another program took the port first",
                "Try again; a fixed port (EMBERD_PORT) must not be used by another program: "
                "`ss -ltnp`.",
                port_taken=True,
            )
        if reported := list(_REPORTED.finditer(log)):
            cause, advice = reported[-1]["cause"].rstrip("."), reported[-1]["advice"]
            if foreign := _FOREIGN.match(cause):
                return Diagnosis(f"the model could not be loaded ({foreign['type']})", READ_LOG)
            return Diagnosis(log_rules.excerpt(cause), advice or READ_LOG)
        # The log of a server that has answered may hold failures of requests, which did not end it.
        end = log[max(0, log.rfind(" INFO ready:")) :]
        facts = {"reinstall": self.reinstall, "free_memory": self.free_memory}
        if known := log_rules.match(_rules(), end, facts):
            return known
        if exit_code == -signal.SIGKILL:
            return Diagnosis(
                "the server was killed, most likely because memory ran out",
                f"Check `dmesg -T | grep -i oom`. {self.free_memory}",
                killed=True,
            )
        if exit_code == -signal.SIGILL:
            return Diagnosis(
                f"this processor lacks an instruction that {self.library} is compiled for (SIGILL)",
                "Use a server on another machine: EMBERD_BASE_URL=http://HOST:30000/v1.",
            )
        how = f"exited with code {exit_code}; its last line: {log_rules.last_line(log)}"
        if exit_code < 0:
            how = f"was ended by {log_rules.signal_name(exit_code)}"
        return Diagnosis(f"the server {how}", READ_LOG)

    def recognises(self, command: Sequence[str]) -> bool:
        """Return whether a process with this command line is a server of this kind."""
        named = ("--encoder", self.name)
        if named not in pairwise(command) and "=".join(named) not in command:
            return False
        # Python leaves "-m" and the module in the command line, whatever options surround them.
        as_script = (PurePath(word).parts[-3:] == _SCRIPT for word in command[1:])
        return ("-m", MODULE) in pairwise(command) or any(as_script)
