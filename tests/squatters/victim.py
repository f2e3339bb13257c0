"""The user under attack: starts servers, kills them, and embeds texts at the same time.

Run as its own process and user: ``victim.py KIND COUNT MODEL OUT [URL]``. Writes to OUT a line of
JSON for each round: its outcome, and the keys of the servers that it used.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from emberd import Embedder, EmberdError
from emberd.verified_manager import Manager

MARKER = "a text that only its own server may see"
ENGINE = {"stub": "stubs.engine"}
JOB_TEXTS = 160

Round = Callable[[int], dict[str, Any]]


def texts(count: int) -> list[str]:
    return [f"{MARKER}, number {number}" for number in range(count)]


def looks_forged(vectors: Any) -> bool:
    """Return whether one of the vectors is the attacker's, whose numbers are all equal."""
    return bool((np.ptp(vectors, axis=1) < 1e-6).any())


class Victim:
    """Rounds of one kind."""

    def __init__(self, model: str, url: str | None) -> None:
        self.model, self.url = model, url
        self.engine = ENGINE.get(model.partition("/")[0])
        self.expected: Any = None

    def embedder(self, **more: Any) -> Embedder:
        if "stub" in self.model and self.engine:
            more |= {"query_instruction": "", "document_instruction": ""}
        return Embedder(
            self.model, engine=self.engine, start_timeout=300, timeout=60, batch_size=8, **more
        )

    def outcome_of(self, vectors: Any) -> str:
        if looks_forged(vectors):
            return "forged"
        if self.expected is None:
            self.expected = vectors
        return (
            "right" if np.allclose(vectors, self.expected[: len(vectors)], atol=1e-4) else "wrong"
        )

    def start(self, _: int) -> dict[str, Any]:
        """Start a server, embed, stop it."""
        try:
            embedder = self.embedder()
            outcome = self.outcome_of(embedder.embed_documents(texts(5)))
            keys = [embedder.endpoint().api_key]
        except EmberdError as error:
            outcome, keys = f"error: {error}", []
        finally:
            Manager().stop()
        return {"outcome": outcome, "keys": keys}

    def kill(self, number: int) -> dict[str, Any]:
        """Kill the server in the middle of a job."""
        keys = []
        try:
            embedder = self.embedder()
            self.expected = (
                embedder.embed_documents(texts(JOB_TEXTS)) if number == 0 else self.expected
            )
            embedder.embed_query("attach")
            keys.append(embedder.endpoint().api_key)
            killer = threading.Timer(0.02 + 0.01 * (number % 10), self.kill_server)
            killer.start()
            vectors = embedder.embed_documents(texts(JOB_TEXTS))
            killer.join()
            keys.append(embedder.endpoint().api_key)
            outcome = self.outcome_of(vectors)
        except EmberdError as error:
            outcome = f"error: {error}"
        return {"outcome": outcome, "keys": keys}

    def kill_server(self) -> None:
        for status in Manager().status():
            if status.supervisor_pid is not None:
                for child in psutil.Process(status.supervisor_pid).children():
                    if "orphan_reaper.py" not in " ".join(child.cmdline()):
                        child.send_signal(signal.SIGKILL)

    def external(self, _: int) -> dict[str, Any]:
        """Use an external server, which ends; then embed with the same object."""
        kind = sys.argv[1]
        given = {"base_url": self.url} if kind == "given" else {}
        given |= {"api_key": "the-users-key"} if kind != "found" else {}
        embedder = self.embedder(**given)
        outcome = self.outcome_of(embedder.embed_documents(texts(5)))
        origin = embedder.ensure().origin
        write_result({"outcome": outcome, "keys": ["the-users-key"], "origin": origin})
        sys.stdin.readline()  # until the attacker has the port
        try:
            outcome = self.outcome_of(embedder.embed_documents(texts(5)))
        except EmberdError as error:
            outcome = f"error: {type(error).__name__}: {error}"
        finally:
            Manager().stop()
        return {"outcome": outcome, "keys": []}


def write_result(content: dict[str, Any]) -> None:
    with open(sys.argv[4], "a", buffering=1) as file:
        file.write(json.dumps({**content, "at": time.monotonic()}) + "\n")


def main() -> None:
    kind, count, model = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    victim = Victim(model, sys.argv[5] if len(sys.argv) > 5 else None)
    rounds: dict[str, Round] = {
        "starts": victim.start,
        "kills": victim.kill,
        "found": victim.external,
        "listed": victim.external,
        "given": victim.external,
    }
    Path(os.environ["EMBERD_HOME"]).mkdir(exist_ok=True)
    try:
        for number in range(count):
            write_result(rounds[kind](number))
    finally:
        Manager().stop()


if __name__ == "__main__":
    main()
