"""A server of the tests in a process of its own, for measurements that it would disturb."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from managed import environment


@contextmanager
def server_process(file: str, *arguments: str) -> Iterator[str]:
    """Run a server while the context lasts, and give its URL.

    Args:
        file: A program that prints its URL when it listens, and ends with its standard input.
        arguments: Arguments of the program.
    """
    with subprocess.Popen(
        [sys.executable, file, *arguments],
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
