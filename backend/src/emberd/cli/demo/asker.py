"""A process that wants a server: ``python -m emberd.cli.demo.asker SETTINGS``, given as JSON."""

from __future__ import annotations

import json
import os
import sys
import time

import typer

from emberd.cli import options, waiting


def ask(model: str, engine: str | None) -> dict[str, object]:
    """Ask for a server and return which one it is."""
    began_s = time.perf_counter()
    server = waiting.ensure(options.settings(model=model, engine=engine))
    return {
        "pid": os.getpid(),
        "url": server.endpoint.url,
        "start_id": server.start_id,
        "seconds": time.perf_counter() - began_s,
    }


if __name__ == "__main__":
    typer.echo(json.dumps(ask(**json.loads(sys.argv[1]))))
