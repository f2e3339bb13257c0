"""Another user takes ports before, during and after starts, and after servers were killed.

What must hold: no key that is in use, no text and no accepted vector at the attacker; nearly every
start gives a working server; every job ends with right vectors or an error of ours. The numbers of
rounds are small here, and large with ``SQUATTERS_STARTS=200 SQUATTERS_KILLS=50``. With
``SQUATTERS_SOURCE`` the source tree of another version is attacked.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

import waiting
from squatters.victim import MARKER

VICTIM: Final = 64_101
ATTACKER: Final = 64_102
ROOT: Final = Path(__file__).parents[2]
STARTS: Final = int(os.environ.get("SQUATTERS_STARTS", "6"))
KILLS: Final = int(os.environ.get("SQUATTERS_KILLS", "3"))
SOURCE: Final = os.environ.get("SQUATTERS_SOURCE", str(ROOT / "backend" / "src"))
ROUND_S: Final = 60

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the attack uses Linux's tables"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make two other users"),
    pytest.mark.timeout(120 + ROUND_S * max(STARTS, KILLS)),
]


def _interpreter() -> str:
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
    """The two users and what each of them left in its file."""

    folder: Path
    python: str

    @property
    def received(self) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == "received"]

    @property
    def log(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "attacker" / "log")

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return _lines(self.folder / "victim" / "rounds")

    def victim(self, kind: str, count: int, model: str, *more: str) -> subprocess.Popen[str]:
        """Start the victim; it writes a line for each round."""
        home = self.folder / "victim"
        program = str(ROOT / "tests" / "squatters" / "victim.py")
        engines = {k: v for k, v in os.environ.items() if k.startswith("EMBERD_ENGINES")}
        return self._run(
            VICTIM,
            [program, kind, str(count), model, str(home / "rounds"), *more],
            engines | {"EMBERD_HOME": str(home / "emberd"), "HOME": str(home)},
        )

    def attacker(self) -> subprocess.Popen[str]:
        """Start the attacker, and wait until it has taken its first ports."""
        log = self.folder / "attacker" / "log"
        program = str(ROOT / "tests" / "squatters" / "attacker.py")
        process = self._run(ATTACKER, [program, str(VICTIM), str(log)], {})
        waiting.until(lambda: any(line["event"] == "ready" for line in self.log), 30)
        return process

    def server(self, port: int, key: str) -> subprocess.Popen[str]:
        """Start a demo server as the victim would by hand."""
        command = ["-m", "emberd.serving", "--encoder", "demo", "--port", str(port)]
        return self._run(VICTIM, command, {"EMBERD_SERVER_KEY": key} if key else {})

    def _run(
        self, user: int, arguments: list[str], environment: dict[str, str]
    ) -> subprocess.Popen[str]:
        paths = [SOURCE, str(ROOT / "tests"), sysconfig.get_paths()["purelib"]]
        return subprocess.Popen(
            [self.python, *arguments],
            user=user,
            group=user,
            extra_groups=[],
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
        """Return the keys of servers in use that the attacker was sent."""
        used = {key for line in self.rounds for key in line["keys"] if key}
        return {key for key in used if any(key in line["key"] for line in self.received)}

    def leaked_texts(self) -> int:
        """Return how many requests with a text of the victim's the attacker was sent."""
        return sum(MARKER in line["body"] for line in self.received)

    def summary(self, name: str) -> dict[str, Any]:
        """Print and return what came of it."""
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


def _lines(path: Path) -> list[dict[str, Any]]:
    # The last line may be half written.
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@pytest.fixture
def field() -> Iterator[Field]:
    """Folders of two users, which nobody else may enter."""
    folder = Path(tempfile.mkdtemp(prefix="squatters-"))
    folder.chmod(0o711)
    for name, user in (("victim", VICTIM), ("attacker", ATTACKER)):
        (folder / name).mkdir(mode=0o700)
        os.chown(folder / name, user, user)
    try:
        yield Field(folder, _interpreter())
    finally:
        _end_all()
        shutil.rmtree(folder)


def _end_all() -> None:
    """End whatever runs as one of the two users, who were made up for this."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.uids().real in {VICTIM, ATTACKER}:
                process.kill()


def _ended(process: subprocess.Popen[str], seconds: float) -> str:
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        pytest.fail(f"the victim did not end: {said[-2000:]}")
    return said


def _attacked(field: Field, kind: str, count: int, model: str) -> dict[str, Any]:
    attacker = field.attacker()
    try:
        said = _ended(field.victim(kind, count, model), ROUND_S * count)
    finally:
        attacker.kill()
        attacker.communicate()
    assert len(field.rounds) == count, said[-3000:]
    return field.summary(f"{kind} of {model}")


@pytest.mark.parametrize(
    "model",
    [
        pytest.param("emberd/demo", id="inherits-its-socket"),
        pytest.param("stub/hidden", id="opens-its-port-itself"),
    ],
)
def test_starts_under_attack_give_working_servers_and_the_attacker_gets_nothing(
    field: Field, model: str
) -> None:
    seen = _attacked(field, "starts", STARTS, model)
    assert (seen["leaked_keys"], seen["leaked_texts"]) == (0, 0)
    assert set(seen["outcomes"]) <= {"right", "error"}
    assert seen["outcomes"]["right"] >= 0.99 * STARTS - (STARTS < 100)


def test_a_port_that_every_user_can_read_costs_tries_and_never_a_key_or_a_text(
    field: Field,
) -> None:
    """The attacker takes it before the server listens: what was started is not what is there."""
    seen = _attacked(field, "starts", STARTS, "stub/shown?shows_port=1&start=0.3")
    assert (seen["leaked_keys"], seen["leaked_texts"], seen["requests"]) == (0, 0, 0)
    assert seen["of_the_victim"] > 0
    assert set(seen["outcomes"]) <= {"right", "error"}


@pytest.mark.parametrize("model", ["emberd/demo", "stub/hidden"])
def test_jobs_whose_server_is_killed_end_right_and_the_attacker_gets_nothing(
    field: Field, model: str
) -> None:
    seen = _attacked(field, "kills", KILLS, model)
    assert (seen["leaked_keys"], seen["leaked_texts"]) == (0, 0)
    assert set(seen["outcomes"]) <= {"right", "error"}


@pytest.mark.parametrize("kind", ["found", "given"])
def test_an_external_server_whose_port_changes_hands_is_not_used_again(
    field: Field, kind: str
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = field.server(port, "the-users-key" if kind == "given" else "")
    attacker = None
    try:
        waiting.until(lambda: _listens(port), 30)
        victim = field.victim(kind, 1, "emberd/demo", url)
        waiting.until(lambda: field.rounds or victim.poll() is not None, 60)
        assert field.rounds, _ended(victim, 1)
        attacker = field.attacker()
        server.kill()
        server.communicate()
        waiting.until(lambda: _taken(field, port), 30)
        assert victim.stdin is not None
        victim.stdin.write("\n")
        victim.stdin.flush()
        said = _ended(victim, ROUND_S)
    finally:
        for process in filter(None, (server, attacker)):
            process.kill()
            process.communicate()
    first, second = field.rounds or pytest.fail(said)
    field.summary(kind)
    assert (first["outcome"], first["origin"]) == ("right", kind)
    # A found server is replaced by one of ours; one that was given is the user's to restart.
    assert second["outcome"].split(":")[0] == ("right" if kind == "found" else "error")
    assert field.received == []


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _taken(field: Field, port: int) -> bool:
    return any(line["event"] == "took" and line["port"] == port for line in field.log)
