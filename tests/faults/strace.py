"""Traces one process with strace, and makes one of its system calls fail or kill it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import waiting

_CALL: Final = re.compile(r"^(?:(\d+) +)?(\w+)\(")
_INJECTED: Final = re.compile(r"^(.*)\(INJECTED", re.MULTILINE)
_KILLED: Final = re.compile(r"^(.*\)) += \?$", re.MULTILINE)
_ATTACHED: Final = "attached"
_ALIKE: Final = 2
_LETS_GO_S: Final = 3.0


class Strace:
    """A tracer; it is told a process, and lets go of it as soon as one call was changed."""

    def __init__(
        self,
        pid: int,
        folder: Path,
        calls: Sequence[str],
        *,
        paths: Sequence[Path] = (),
        inject: str = "",
        follow: bool = False,
    ) -> None:
        """Attach to a process, and wait until that is done.

        Args:
            pid: The process; of its threads only the main one is traced.
            folder: Where the log goes.
            calls: Names of the system calls.
            paths: Only calls that concern these; none for all.
            inject: What strace's option is given, such as ``openat:error=EIO:when=3``.
            follow: Trace what it starts, and its threads, too.
        """
        # A call that kills its process has no result.
        self._pattern = _KILLED if "signal=KILL" in inject else _INJECTED
        self._log = folder / "strace.log"
        self._messages = folder / "strace.messages"
        command = ["strace", "-y", "-o", str(self._log), "-e", f"trace={','.join(calls)}"]
        command += [word for path in paths for word in ("-P", str(path))]
        command += ["-e", f"inject={inject}"] if inject else []
        command += ["-f"] if follow else []
        with self._messages.open("wb") as messages:
            self._process = subprocess.Popen(
                [*command, "-p", str(pid)], stderr=messages, start_new_session=True
            )
        waiting.until(lambda: _ATTACHED in self._messages.read_text() or self._ended())
        if _ATTACHED not in self._messages.read_text():
            raise RuntimeError(self._messages.read_text())

    def _ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def injected(self) -> str:
        """The call that was changed; empty if none was yet."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        found = self._pattern.search(text)
        return found[1].strip() if found else ""

    def let_go_if_injected(self) -> bool:
        """Let go of all processes once a call was changed: no second one shall be.

        Returns:
            Whether it let go now.
        """
        is_due = not self._ended() and bool(self.injected)
        if is_due:
            self.let_go()
        return is_due

    def let_go(self) -> None:
        """Let go of all processes; they continue."""
        self._process.terminate()
        try:
            self._process.wait(_LETS_GO_S)
        except subprocess.TimeoutExpired:  # the kernel then lets go
            self._process.kill()
            self._process.wait()

    def calls(self, pid: int | None = None) -> dict[str, list[int]]:
        """Return which of the calls are worth changing, by name, counted from 1.

        Of calls that are alike, such as those of a loop that waits, only the first few and the
        last one are.

        Args:
            pid: The process, if several were traced.
        """
        made: Counter[str] = Counter()
        alike: dict[str, list[tuple[str, int]]] = {}
        for line in self._log.read_text(errors="replace").splitlines():
            match = _CALL.match(line)
            if match and (pid is None or match[1] == str(pid)):
                made[match[2]] += 1
                what = line[match.start(2) :].partition(") = ")[0].partition(" <unfinished")[0]
                alike.setdefault(what, []).append((match[2], made[match[2]]))
        chosen: dict[str, set[int]] = {}
        for calls in alike.values():
            for name, number in {*calls[:_ALIKE], calls[-1]}:
                chosen.setdefault(name, set()).add(number)
        return {name: sorted(numbers) for name, numbers in sorted(chosen.items())}


def why_not() -> str:
    """Return why this process may not trace another one; empty if it may."""
    if sys.platform != "linux" or shutil.which("strace") is None:
        return "strace is not installed"
    sleeping = subprocess.Popen(["sleep", "60"])
    try:
        command = ["timeout", "-s", "INT", "0.5", "strace", "-p", str(sleeping.pid)]
        tried = subprocess.run(command, capture_output=True, text=True)
        return "" if _ATTACHED in tried.stderr else f"ptrace is not permitted: {tried.stderr}"
    finally:
        sleeping.kill()
        sleeping.wait()
