"""Records what each route of a real SGLang answers, for ``tests/sglang_routes``.

``python tests/real/record_routes.py PYTHON MODEL OUT [NOTE]``: starts the SGLang of the
interpreter PYTHON on the CPU with the command that emberd gives it, once with a key and once
without. The routes are requested without a key, with the right one and with a wrong one, while the
server starts (its scheduler is suspended, so that the warm-up cannot end) and when it is ready.
Vectors and settings of this machine are left out. NOTE says what was special about the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil

from emberd import probe
from emberd.engines.base import Launch
from emberd.engines.sglang import ENGINE
from emberd.manager import cleanup
from emberd.settings import ServerSpec, StartOptions

KEY: Final = "recorded-key"
FINGERPRINT: Final = "recorded-start"
TEXT: Final = "emberd records this"
START_S: Final = 600.0
STARTING_TIMEOUT_S: Final = 3.0
READY_TIMEOUT_S: Final = 25.0
EMBED: Final = {"model": "<model>", "input": [TEXT], "encoding_format": "base64"}
COUNT: Final = {"model": "<model>", "prompt": TEXT}
ROUTES: Final[tuple[tuple[str, str, dict[str, Any] | None], ...]] = (
    ("GET", "/ready", None),
    ("GET", "/health", None),
    ("GET", "/health_generate", None),
    ("GET", "/metrics", None),
    ("GET", "/v1/models", None),
    ("GET", "/model_info", None),
    ("GET", "/get_model_info", None),
    ("GET", "/server_info", None),
    ("GET", "/no-such-route", None),
    ("POST", "/v1/tokenize", COUNT),
    ("POST", "/v1/embeddings", EMBED),
)
KEYS: Final[dict[str, str | None]] = {"none": None, "right": KEY, "wrong": "another-key"}
COUNTERS: Final = (
    *("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    *("sglang:num_requests_total", "sglang:prompt_tokens_total"),
)
SETTINGS: Final = (
    *("revision", "dtype", "quantization", "context_length", "allow_auto_truncate", "version"),
    *("max_total_num_tokens", "max_req_input_len"),
)
IDENTITY: Final = (
    *("model_path", "served_model_name", "is_generation", "weight_version", "architectures"),
    "embedding",
)
BLOCKING: Final = ("/server_info", "/v1/embeddings")  # they wait for the suspended scheduler


def main(python: str, model: str, out: str, note: str = "") -> None:
    """Record both servers and write the file."""
    os.environ["EMBERD_SGLANG_PYTHON"] = python
    code = "import importlib.metadata as m; print(m.version('sglang'))"
    version = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    name = Path(model).name
    recorded = {
        "sglang": version.stdout.strip(),
        "how": f"the real server on a CPU, by tests/real/record_routes.py{note and '; ' + note}",
        "with_key": recording(model, name, KEY),
        "without_key": recording(model, name, None),
    }
    Path(out).write_text(compact(recorded), encoding="utf-8")


def recording(model: str, name: str, key: str | None) -> dict[str, Any]:
    """Return the answers of one server: phase, route, key -> status and body."""
    keys: dict[str, str | None] = KEYS if key else {"none": None}
    with tempfile.TemporaryDirectory() as folder, server(model, Path(folder), key) as (url, parts):
        scheduler = parts()
        scheduler.suspend()
        fast = [route for route in ROUTES if route[1] not in BLOCKING]
        starting = answers(url, model, name, keys, fast, STARTING_TIMEOUT_S)
        scheduler.resume()
        wait_until(lambda: probe.is_healthy(url))
        ready = answers(url, model, name, keys, ROUTES, READY_TIMEOUT_S)
    return {"starting": starting, "ready": ready}


def answers(
    url: str,
    model: str,
    name: str,
    keys: dict[str, str | None],
    routes: Any,
    timeout_s: float,
) -> dict[str, Any]:
    """Return what the routes answer now."""
    found: dict[str, Any] = {}
    for method, path, asked in routes:
        body = None if asked is None else json.dumps({**asked, "model": name}).encode()
        for kind, key in keys.items():
            begun_s = time.monotonic()
            try:
                reply = probe.fetch(url, path, body, key, timeout_s)
            except probe.NO_ANSWER:
                entry: dict[str, Any] = {"status": None}
            else:
                entry = {"status": reply.status, "body": told(path, reply, model, name)}
            if path.startswith("/health"):
                entry["seconds"] = round(time.monotonic() - begun_s)
            found.setdefault(f"{method} {path}", {})[kind] = entry
            print(method, path, kind, entry["status"], flush=True)
    return {route: merged(by_key) for route, by_key in found.items()}


def merged(by_key: dict[str, Any]) -> dict[str, Any]:
    """Return one entry, ``any``, where the key makes no difference."""
    first, *others = by_key.values()
    return by_key if any(other != first for other in others) else {"any": first}


def told(path: str, reply: probe.ProbeReply, model: str, name: str) -> Any:
    """Return a body without what belongs to this machine or this run."""
    text = reply.body.decode("utf-8", "replace")
    if path == "/metrics" and reply.status == 200:
        kept = [line for line in text.splitlines() if line.partition("# TYPE ")[2] or "{" in line]
        return [
            re.sub(r"\{.*\}", '{model_name="<model>"}', line)
            for line in kept
            if any(re.search(rf"{counter}\b", line) for counter in COUNTERS)
        ]
    body = reply.json()
    if body is None:
        return text
    if path == "/server_info" and reply.status == 200:
        body = {key: body.get(key) for key in SETTINGS}
    if path.endswith("model_info") and reply.status == 200:
        body = {key: body[key] for key in IDENTITY if key in body}
        if "embedding" in body:
            body["embedding"] = {"task": body["embedding"].get("task")}
    if path == "/v1/embeddings" and reply.status == 200:
        for entry in body["data"]:
            entry["embedding"] = f"<{type(entry['embedding']).__name__}>"
    if path == "/v1/models" and reply.status == 200:
        body["data"][0]["created"] = 0
    shown = json.dumps(body).replace(model, "<model>").replace(f'"{name}"', '"<model>"')
    assert KEY not in shown
    return json.loads(shown)


@contextlib.contextmanager
def server(
    model: str, folder: Path, key: str | None
) -> Iterator[tuple[str, Callable[[], psutil.Process]]]:
    """Run a server until the end of the ``with``; enter as soon as it answers at all."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = StartOptions(no_auth=key is None)
    spec = ServerSpec(model=model, device="cpu", engine="sglang")
    plan = ENGINE.plan(
        spec, Launch(port, key, FINGERPRINT, str(folder), options, home="/home-of-it")
    )
    for file, content in plan.files.items():
        (folder / file).write_text(content, encoding="utf-8")
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            plan.command, env=dict(plan.environment), stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    memory = cleanup.SharedMemory(f"emberd-{process.pid}")

    def children() -> list[psutil.Process]:
        return psutil.Process(process.pid).children(recursive=True)

    def scheduler() -> psutil.Process:
        return next(own for own in children() if "scheduler" in " ".join(own.cmdline()))

    try:
        wait_until(lambda: process.poll() is not None or probe.get(url, "/health") is not None)
        assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
        yield url, scheduler
    finally:
        with contextlib.suppress(psutil.Error):
            memory.update(lambda: [process.pid, *(own.pid for own in children())], at_once=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
        cleanup.remove_files(f"emberd-{process.pid}", memory.known)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a true value; the poll is short, to see the server before its warm-up ends."""
    deadline = time.monotonic() + START_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def compact(recorded: dict[str, Any]) -> str:
    """Return JSON with a line for each answer."""
    lines = json.dumps(recorded, indent=1, ensure_ascii=False)
    return (
        re.sub(
            r'("(?:any|none|right|wrong)": )(\{\n(?:.*\n)*? {4}\}|\{.*\})',
            lambda found: found[1] + json.dumps(json.loads(found[2]), ensure_ascii=False),
            lines,
        )
        + "\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
