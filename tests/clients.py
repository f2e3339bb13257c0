"""Processes of their own that ask for a server, and say in JSON what they got.

``python -m clients ensure HOME SPEC`` waits for a line on its input first, so that many can be
let go at the same instant.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emberd.errors import EmberdError
from emberd.manager import Timing
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager


def begin(home: Path, spec: ServerSpec, timing: Timing) -> subprocess.Popen[str]:
    """Start a process that will ask for ``spec`` once it is let go."""
    asked = json.dumps({"home": str(home), "spec": asdict(spec), "timing": asdict(timing)})
    return subprocess.Popen(
        [sys.executable, __file__, asked],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def wait_until_loaded(client: subprocess.Popen[str]) -> None:
    """Wait until the process has imported all that it needs."""
    assert client.stdout is not None
    assert client.stdout.readline() == "loaded\n"


def let_go(client: subprocess.Popen[str]) -> None:
    """Let the process ask now."""
    assert client.stdin is not None
    client.stdin.write("go\n")
    client.stdin.flush()


def answer(client: subprocess.Popen[str], seconds: float = 60) -> dict[str, Any]:
    """Return what the process got."""
    output = client.communicate(timeout=seconds)[0]
    answered: dict[str, Any] = json.loads(output)
    return answered


def forked(home: Path, spec: ServerSpec, timing: Timing, count: int) -> list[dict[str, Any]]:
    """Return what ``count`` processes got that asked at the same instant.

    They are forks of one process that has imported emberd: interpreters of their own, as from
    ``begin``, cost a third of a second of CPU time each.
    """
    asked = json.dumps({"home": str(home), "spec": asdict(spec), "timing": asdict(timing)})
    command = [sys.executable, __file__, asked, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=_environment(), timeout=300)
    assert done.returncode == 0
    answered: list[dict[str, Any]] = json.loads(done.stdout)
    return answered


def main() -> None:
    """Be such a process, or the parent of so many."""
    asked = json.loads(sys.argv[1])
    if len(sys.argv) > 2:
        print(json.dumps(_asked_by_forks(asked, int(sys.argv[2]))))
        return
    manager = Manager(asked["home"], timing=Timing(**asked["timing"]))
    print("loaded", flush=True)
    sys.stdin.readline()
    print(json.dumps(_ask(manager, asked)), flush=True)


def _ask(manager: Manager, asked: dict[str, Any]) -> dict[str, Any]:
    try:
        server = manager.ensure(ServerSpec(**asked["spec"]))
    except EmberdError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"url": server.endpoint.url, "start_id": server.start_id, "started": server.started}


def _asked_by_forks(asked: dict[str, Any], count: int) -> list[Any]:
    gate, opener = os.pipe()
    gc.freeze()  # or each fork would copy what it only looks at
    answers = []
    for _ in range(count):
        answer, answering = os.pipe()
        if not os.fork():
            os.close(opener)
            os.read(gate, 1)  # the end of the pipe: all go at once
            manager = Manager(asked["home"], timing=Timing(**asked["timing"]))
            os.write(answering, json.dumps(_ask(manager, asked)).encode())
            os._exit(0)
        os.close(answering)
        answers.append(answer)
    os.close(opener)
    return [json.loads(Path(f"/dev/fd/{answer}").read_bytes()) for answer in answers]


if __name__ == "__main__":
    main()
