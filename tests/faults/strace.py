"""Traces a process with strace, and injects an error or a kill into one of its system calls."""

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
_IDENTICAL: Final = 2
_DETACH_S: Final = 3.0


class Strace:
    """An strace attached to a process; ``detach_if_injected`` ends it after the first injection."""

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
        """Attach to a process, and wait until strace is attached.

        Args:
            pid: The process; of its threads only the main one is traced.
            folder: Where the log goes.
            calls: Names of the system calls.
            paths: Trace only calls on these paths; all calls if empty.
            inject: The value of strace's ``inject``, such as ``openat:error=EIO:when=3``.
            follow: Also trace its child processes and threads.
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
        """The call with the injected fault; empty if there is none yet."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        found = self._pattern.search(text)
        return found[1].strip() if found else ""

    def detach_if_injected(self) -> bool:
        """Detach from all processes after an injection, so that there is no second one.

        Returns:
            Whether it detached now.
        """
        is_due = not self._ended() and bool(self.injected)
        if is_due:
            self.detach()
        return is_due

    def detach(self) -> None:
        """Detach from all processes; they continue."""
        self._process.terminate()
        try:
            self._process.wait(_DETACH_S)
        except subprocess.TimeoutExpired:  # the kernel then detaches
            self._process.kill()
            self._process.wait()

    def calls(self, pid: int | None = None) -> dict[str, list[int]]:
        """Return the numbers of the calls to inject faults into, by name, counted from 1.

        Of identical calls, such as those of a polling loop, it returns only the first two and the
        last one.

        Args:
            pid: Only calls of this process, if several were traced.
        """
        made: Counter[str] = Counter()
        identical: dict[str, list[tuple[str, int]]] = {}
        for line in self._log.read_text(errors="replace").splitlines():
            match = _CALL.match(line)
            if match and (pid is None or match[1] == str(pid)):
                made[match[2]] += 1
                what = line[match.start(2) :].partition(") = ")[0].partition(" <unfinished")[0]
                identical.setdefault(what, []).append((match[2], made[match[2]]))
        chosen: dict[str, set[int]] = {}
        for calls in identical.values():
            for name, number in {*calls[:_IDENTICAL], calls[-1]}:
                chosen.setdefault(name, set()).add(number)
        return {name: sorted(numbers) for name, numbers in sorted(chosen.items())}


def why_unavailable() -> str:
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
