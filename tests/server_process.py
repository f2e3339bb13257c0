"""A server of the tests in a separate process, for measurements that it would disturb."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from http_server import HttpServer
from managed import environment


@contextmanager
def in_own_process(kind: type[HttpServer], **fields: Any) -> Iterator[str]:
    """Run a server of a kind, made with these fields, while the context lasts; give its URL."""
    program = (
        f"import sys; from {kind.__module__} import {kind.__name__} as Kind\n"
        f"with Kind(**{fields!r}) as server: print(server.url, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()  # which ends it
