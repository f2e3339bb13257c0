"""Client processes that call ``ensure`` and print the result as JSON.

A process from ``begin`` first waits for a line on its input, so that many can be released at the
same time.
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
    """Start a process that ensures ``spec`` once it is released."""
    request = json.dumps({"home": str(home), "spec": asdict(spec), "timing": asdict(timing)})
    return subprocess.Popen(
        [sys.executable, __file__, request],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}


def wait_until_loaded(client: subprocess.Popen[str]) -> None:
    """Wait until the process has finished its imports."""
    assert client.stdout is not None
    assert client.stdout.readline() == "loaded\n"


def release(client: subprocess.Popen[str]) -> None:
    """Let the process call ``ensure`` now."""
    assert client.stdin is not None
    client.stdin.write("go\n")
    client.stdin.flush()


def answer(client: subprocess.Popen[str], seconds: float = 60) -> dict[str, Any]:
    """Return the result of the process."""
    output = client.communicate(timeout=seconds)[0]
    result: dict[str, Any] = json.loads(output)
    return result


def forked(home: Path, spec: ServerSpec, timing: Timing, count: int) -> list[dict[str, Any]]:
    """Return the results of ``count`` processes that call ``ensure`` at the same time.

    They are forks of one process that has imported emberd: a new interpreter, as in ``begin``,
    costs a third of a second of CPU time.
    """
    request = json.dumps({"home": str(home), "spec": asdict(spec), "timing": asdict(timing)})
    command = [sys.executable, __file__, request, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=_environment(), timeout=300)
    assert done.returncode == 0
    result: list[dict[str, Any]] = json.loads(done.stdout)
    return result


def main() -> None:
    """Run one client, or the parent of many."""
    request = json.loads(sys.argv[1])
    if len(sys.argv) > 2:
        print(json.dumps(_ensure_in_forks(request, int(sys.argv[2]))))
        return
    manager = Manager(request["home"], timing=Timing(**request["timing"]))
    print("loaded", flush=True)
    sys.stdin.readline()
    print(json.dumps(_ensure(manager, request)), flush=True)


def _ensure(manager: Manager, request: dict[str, Any]) -> dict[str, Any]:
    try:
        server = manager.ensure(ServerSpec(**request["spec"]))
    except EmberdError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"url": server.endpoint.url, "start_id": server.start_id, "started": server.started}


def _ensure_in_forks(request: dict[str, Any], count: int) -> list[Any]:
    gate, opener = os.pipe()
    gc.freeze()  # otherwise garbage collection copies shared pages in each fork
    answers = []
    for _ in range(count):
        answer, answering = os.pipe()
        if not os.fork():
            os.close(opener)
            os.read(gate, 1)  # returns at the end of file: all start at once
            manager = Manager(request["home"], timing=Timing(**request["timing"]))
            os.write(answering, json.dumps(_ensure(manager, request)).encode())
            os._exit(0)
        os.close(answering)
        answers.append(answer)
    os.close(opener)
    return [json.loads(Path(f"/dev/fd/{answer}").read_bytes()) for answer in answers]


if __name__ == "__main__":
    main()
