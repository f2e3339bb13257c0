"""How the process begins and ends: the port, the loading, signals, exit codes."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import waiting
from emberd import probe
from emberd.catalog import DEMO_MODEL
from served import GRACE_S, Served, command, environment, serving, started

# Three batches: more than two seconds for the slow encoder, or of work for one core.
LONG_REQUEST = [f"passage: sentence {n}. " + "word " * 100 for n in range(24)]
LONGER_REQUEST = LONG_REQUEST * 3


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server with an encoder that takes its time."""
    with started(tmp_path, "--served-model-name", DEMO_MODEL, program=_faulty("slow")) as server:
        waiting.until(lambda: probe.is_ready(server.url))
        yield server


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server with the real encoder."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as slow on every machine
    with serving(tmp_path) as server:
        yield server


def _wait_until_encoding(server: Served, before: float) -> None:
    waiting.until(lambda: server.activity().tokens > before)


def test_sigterm_lets_requests_finish_and_refuses_new_ones(own: Served) -> None:
    before = own.activity().tokens
    with ThreadPoolExecutor() as pool:
        running = pool.submit(own.vectors, LONG_REQUEST)
        _wait_until_encoding(own, before)
        queued = pool.submit(own.vectors, ["passage: one that waits"])
        waiting.until(lambda: own.activity().in_flight == 2 or queued.done())
        own.terminate()
        waiting.until(lambda: not probe.is_ready(own.url))
        refused = own.embed("too late")
        assert not running.done()
        probes = []
        while not running.done():
            probes.append(probe.get(own.url, "/ready"))
        assert len(running.result()) == len(LONG_REQUEST)
        assert len(queued.result()) == 1
    assert (refused.status_code, refused.json()["type"]) == (503, "503")
    reply = probes[len(probes) // 2]  # the last ones may find the process gone
    assert reply is not None
    assert reply.status == 503
    assert "draining" in refused.json()["message"]
    assert own.ended() == 0


def test_an_idle_server_ends_at_once_although_a_client_keeps_its_connection(own: Served) -> None:
    with own.client() as client:
        assert client.get("/v1/models").status_code == 200
        own.terminate()
        assert own.ended(seconds=GRACE_S) == 0


def test_a_second_sigterm_ends_it_now(own: Served) -> None:
    before = own.activity().tokens
    with ThreadPoolExecutor() as pool:
        running = pool.submit(own.vectors, LONG_REQUEST)
        _wait_until_encoding(own, before)
        own.terminate()
        waiting.until(lambda: not probe.is_ready(own.url))
        own.terminate()
        assert own.ended(seconds=GRACE_S) == -signal.SIGTERM
        assert isinstance(running.exception(), httpx.HTTPError)


def test_disconnect_drops_the_request(own: Served) -> None:
    with own.client(timeout=0.3) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/embeddings", json={"input": LONGER_REQUEST, "model": "emberd/demo"})
    waiting.until(lambda: own.activity().in_flight == 0)
    left = own.activity()
    own.vectors("passage: next")
    assert own.activity().tokens - left.tokens < 1100  # one batch was under way at most
    reply = probe.get(own.url, "/metrics")
    assert reply is not None
    assert b'sglang:num_aborted_requests_total{model_name="emberd/demo"} 1.0' in reply.body


def test_probes_answer_while_texts_are_encoded(real: Served) -> None:
    """With the real encoder, whose computing must not hold the interpreter's lock."""
    before = real.activity().tokens
    with ThreadPoolExecutor() as pool:
        running = pool.submit(real.vectors, LONGER_REQUEST)
        _wait_until_encoding(real, before)
        # On a loaded machine a probe may exceed its timeout.
        waiting.until(lambda: probe.is_ready(real.url))
        waiting.until(lambda: probe.is_healthy(real.url))
        assert real.activity().in_flight == 1
        assert not running.done()
        real.process.kill()


def test_a_small_request_does_not_wait_for_a_large_one(own: Served) -> None:
    before = own.activity().tokens
    with ThreadPoolExecutor() as pool:
        large = pool.submit(own.vectors, LONGER_REQUEST)
        _wait_until_encoding(own, before)
        assert len(own.vectors(["passage: small"])) == 1
        assert not large.done()
        own.process.kill()


def test_a_port_that_is_taken_ends_it_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = subprocess.run(
            [*command(), "--port", str(port)],
            env=environment(None),
            capture_output=True,
            text=True,
            timeout=20,
        )
    assert ended.returncode == 3
    assert f"port {port}: address already in use" in ended.stderr
    assert "loading" not in ended.stderr


def test_the_key_is_taken_out_of_the_environment() -> None:
    code = (
        "import os, sys; from emberd.env import SERVER_KEY\n"
        "from emberd.serving import __main__ as process\n"
        "process.create_app = lambda _, key: sys.exit(print(key, SERVER_KEY in os.environ))\n"
        "process.main(['--encoder', 'demo', '--port', '0'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=environment("made-up"),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert ended.stdout == "made-up False\n"


def test_a_socket_that_reserves_the_port_does_not_keep_it_from_listening(tmp_path: Path) -> None:
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = str(reserved.getsockname()[1])
        with serving(tmp_path, "--port", port) as server:
            assert server.url.endswith(f":{port}")


def _faulty(fault: str) -> list[str]:
    script = Path(__file__).parents[1] / "stubs" / "blocked_serving.py"
    return [sys.executable, str(script), fault, "--encoder", "demo"]


def test_while_it_loads_probes_say_so_and_requests_are_refused(tmp_path: Path) -> None:
    with started(tmp_path, program=_faulty("hangs")) as server:
        for path in ("/ready", "/health"):
            reply = probe.get(server.url, path)
            assert reply is not None
            assert reply.status == 503
        refused = server.embed("a")
        assert refused.status_code == 503
        assert "loading" in refused.json()["message"]


def test_sigterm_while_it_loads_ends_it_at_once(tmp_path: Path) -> None:
    with started(tmp_path, program=_faulty("hangs")) as server:
        waiting.until(lambda: probe.get(server.url, "/ready"))
        server.terminate()
        assert server.ended(seconds=3) == -signal.SIGTERM


def test_a_model_that_cannot_be_loaded_ends_it_with_the_reason(tmp_path: Path) -> None:
    with started(tmp_path, program=_faulty("fails")) as server:
        assert server.ended() == 1
        assert "cannot serve emberd/demo: the weights are not there. Fetch them." in (
            server.log.read_text()
        )
