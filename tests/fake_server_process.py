"""A ``FakeServer`` in a process of its own, for measurements that it would disturb as a thread."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fake_server import FakeServer
from managed import environment


@contextmanager
def fake_server_process(model: str, dimensions: int) -> Iterator[str]:
    """Serve ``model`` and give the URL."""
    command = [sys.executable, __file__, model, str(dimensions)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()  # which ends it


if __name__ == "__main__":
    with FakeServer(
        model=sys.argv[1], dimensions=int(sys.argv[2]), context_tokens=32_768
    ) as running:
        print(running.url, flush=True)
        sys.stdin.read()
