"""Processes of their own that ask for a server, and say in JSON what they got.

``python -m clients ensure HOME SPEC`` waits for a line on its input first, so that many can be
let go at the same instant.
"""

from __future__ import annotations

import json
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
    import os

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


def main() -> None:
    """Be such a process."""
    asked = json.loads(sys.argv[1])
    manager = Manager(asked["home"], timing=Timing(**asked["timing"]))
    print("loaded", flush=True)
    sys.stdin.readline()
    try:
        server = manager.ensure(ServerSpec(**asked["spec"]))
        got = {"url": server.endpoint.url, "start_id": server.start_id, "started": server.started}
    except EmberdError as error:
        got = {"error": type(error).__name__, "text": str(error)}
    print(json.dumps(got), flush=True)


if __name__ == "__main__":
    main()
