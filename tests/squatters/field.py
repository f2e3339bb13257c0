"""Two users of one machine, the victim and the attacker, and the logs that they write.

Only root can create them. Both are unprivileged if every user may run what the victim needs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

import waiting
from squatters.victim import MARKER

# Ids that no other test run uses.
VICTIM: Final = 100_000 + 2 * os.getpid()
ATTACKER: Final = VICTIM + 1
ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = os.environ.get("SQUATTERS_SOURCE", str(ROOT / "backend" / "src"))
ROUND_S: Final = 60

needs_two_users = [
    pytest.mark.skipif(sys.platform != "linux", reason="the attack uses Linux's tables"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make two other users"),
]


def interpreter() -> str:
    """Return an interpreter of this version that every user may run."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (os.path.realpath(sys.executable), f"/usr/bin/{version}"):
        with suppress(OSError):
            tried = [candidate, "-c", "import ssl, sqlite3"]
            if subprocess.run(tried, user=VICTIM, group=VICTIM, cwd="/").returncode == 0:
                return candidate
    pytest.skip(f"needs a {version} that every user may run")


@dataclass
class Field:
    """The two users and the logs that they write."""

    folder: Path
    python: str
    user: int = VICTIM

    @property
    def received(self) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == "received"]

    @property
    def log(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "attacker" / "log")

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "victim" / "rounds")

    def victim(
        self,
        kind: str,
        count: int,
        model: str,
        *more: str,
        device: str = "",
        discover: str = "",
        hidepid: int = 0,
    ) -> subprocess.Popen[str]:
        """Start the victim; it writes a line for each round.

        Its ``/proc`` is mounted with ``hidepid``.
        """
        home = self.folder / "victim"
        program = str(ROOT / "tests" / "squatters" / "victim.py")
        engines = {k: v for k, v in os.environ.items() if k.startswith("EMBERD_ENGINES")}
        engines |= {"EMBERD_DEVICE": device} if device else {}
        engines |= {"EMBERD_DISCOVER": discover} if discover else {}
        return self._run(
            self.user,
            [program, kind, str(count), model, str(home / "rounds"), *more],
            engines | {"EMBERD_HOME": str(home / "emberd"), "HOME": str(home)},
            hidepid,
        )

    def attacker(self) -> subprocess.Popen[str]:
        """Start the attacker, and wait until it has taken its first ports."""
        log = self.folder / "attacker" / "log"
        program = str(ROOT / "tests" / "squatters" / "attacker.py")
        process = self._run(ATTACKER, [program, str(self.user), str(log)], {})
        waiting.until(lambda: any(line["event"] == "ready" for line in self.log), 30)
        return process

    def server(self, port: int, key: str) -> subprocess.Popen[str]:
        """Start a demo server as the victim would by hand."""
        command = ["-m", "emberd.serving", "--encoder", "demo", "--port", str(port)]
        return self._run(self.user, command, {"EMBERD_SERVER_KEY": key} if key else {})

    def _run(
        self, user: int, arguments: list[str], environment: dict[str, str], hidepid: int = 0
    ) -> subprocess.Popen[str]:
        paths = [SOURCE, str(ROOT / "tests"), sysconfig.get_paths()["purelib"]]
        return subprocess.Popen(
            [
                *_as_user(user, hidepid),
                *(self.python if user == self.user else interpreter(), *arguments),
            ],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONSAFEPATH": "1",
                **environment,
            },
        )

    def leaked_keys(self) -> set[str]:
        """Return the keys of the servers used that were sent to the attacker."""
        used = {key for line in self.rounds for key in line["keys"] if key}
        return {key for key in used if any(key in line["key"] for line in self.received)}

    def leaked_texts(self) -> int:
        """Return the number of requests to the attacker that contain a text of the victim."""
        return sum(MARKER in line["body"] for line in self.received)

    def summary(self, name: str) -> dict[str, Any]:
        """Print and return the results."""
        events = Counter(line["event"] for line in self.log)
        content = {
            "outcomes": dict(Counter(line["outcome"].split(":")[0] for line in self.rounds)),
            "errors": [line["outcome"] for line in self.rounds if "error" in line["outcome"]][:3],
            "ports_taken": events["took"],
            "of_the_victim": sum(line["event"] == "took" and line["wanted"] for line in self.log),
            "connections": events["accepted"],
            "requests": events["received"],
            "leaked_keys": len(self.leaked_keys()),
            "leaked_texts": self.leaked_texts(),
        }
        print(f"\n{name}: {json.dumps(content)}")
        return content


def _as_user(user: int, hidepid: int) -> list[str]:
    """Return the command that runs another one as ``user``, with its own ``/proc``."""
    become = f"exec setpriv --reuid={user} --regid={user} --clear-groups"
    mount = f"mount -t proc -o hidepid={hidepid} proc /proc && " if hidepid else ""
    return [*(["unshare", "--mount"] if hidepid else []), "sh", "-c", f'{mount}{become} "$@"', "sh"]


def _lines(path: Path) -> list[dict[str, Any]]:
    # The last line may be half written.
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@contextmanager
def opened(python: str, user: int = VICTIM) -> Iterator[Field]:
    """Give each of the two users a private folder; remove both at the end."""
    folder = Path(tempfile.mkdtemp(prefix="squatters-", dir="/tmp"))
    folder.chmod(0o711)
    for name, owner in (("victim", user), ("attacker", ATTACKER)):
        (folder / name).mkdir(mode=0o700)
        os.chown(folder / name, owner, owner)
    try:
        yield Field(folder, python, user)
    finally:
        _end_all()
        shutil.rmtree(folder)


def _end_all() -> None:
    """Kill all processes of the two users; no other process has their ids."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.uids().real in {VICTIM, ATTACKER}:
                process.kill()


def output_of(process: subprocess.Popen[str], seconds: float) -> str:
    """Wait for a process to end, and return its output."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        pytest.fail(f"the victim did not end: {output[-2000:]}")
    return output


def run_under_attack(
    field: Field, kind: str, count: int, model: str, *, device: str = "", round_s: float = ROUND_S
) -> dict[str, Any]:
    """Run the victim's rounds under attack, and return the results."""
    attacker = field.attacker()
    try:
        output = output_of(field.victim(kind, count, model, device=device), round_s * count)
    finally:
        attacker.kill()
        attacker.communicate()
    assert len(field.rounds) == count, output[-3000:]
    return field.summary(f"{kind} of {model}")
