"""Who may ask: keys, users, and web pages."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emberd.gateway import access
from gateway.conftest import Faked
from gateways import serving

MODELS = "/v1/models"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Basic {key}"}, 401),
        ({"authorization": "Bearer {key}"}, 200),
        ({"authorization": "bearer {key}"}, 200),
    ],
)
def test_a_request_over_tcp_needs_the_key(
    faked: Faked, headers: dict[str, str], status: int
) -> None:
    given = {name: value.format(key=faked.running.key) for name, value in headers.items()}
    with faked.running.tcp(key=None) as client:
        reply = client.get(MODELS, headers=given)
    assert reply.status_code == status
    if status == 401:
        assert reply.json()["error"]["type"] == "authentication_error"
        assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_probes_and_metrics_need_no_key(faked: Faked, path: str) -> None:
    with faked.running.tcp(key=None) as client:
        assert client.get(path).status_code == 200
        # Exact paths: no other route begins like one of them.
        assert client.get(f"{path}x").status_code == 401


PAGES: list[tuple[dict[str, str], int]] = [
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "http://[x"}, 403),
    ({"origin": "http://[::1]x]:1"}, 403),
    ({"origin": "http://localhost:3000"}, 403),
    ({"sec-fetch-site": "cross-site"}, 403),
    ({"sec-fetch-site": "same-site"}, 403),
    ({"sec-fetch-site": "none"}, 200),
    ({"sec-fetch-site": "same-origin"}, 200),
    ({"origin": "{url}", "sec-fetch-site": "same-origin"}, 200),
]
"""Headers that browsers add, and whether the request may be one of the gateway's own page."""


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:7475", 200),
        ("10.1.2.3:7475", 200),
        ("localhost:7475", 200),
        ("LOCALHOST", 200),
        ("evil.example", 403),
        ("evil.example:7475", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example", 403),
        ("evil.example#127.0.0.1", 403),
        ("127.0.0.1@evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_host_name_of_a_web_page_is_refused_with_the_key_too(
    faked: Faked, host: str, status: int
) -> None:
    with faked.running.tcp() as client:
        assert client.get(MODELS, headers={"host": host}).status_code == status
        assert client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(("headers", "status"), PAGES)
def test_a_request_of_another_origin_is_refused_with_the_key_too(
    faked: Faked, headers: dict[str, str], status: int
) -> None:
    given = {name: value.format(url=faked.running.url) for name, value in headers.items()}
    with faked.running.tcp() as client:
        reply = client.get(MODELS, headers=given)
        assert reply.status_code == status
        # What is accepted is an empty request.
        posted = client.post("/v1/embeddings", headers=given, json={})
        assert posted.status_code == (403 if status == 403 else 400)
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert status == 200 or reply.json()["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in faked.running.log.read_text()


def test_a_page_gets_no_text_embedded(faked: Faked) -> None:
    before = len(faked.inputs())
    with faked.running.tcp() as client:
        body = {"model": "qwen3-embedding-0.6b", "input": "from a page"}
        refused = client.post(
            "/v1/embeddings", json=body, headers={"origin": "https://evil.example"}
        )
    assert refused.status_code == 403
    assert len(faked.inputs()) == before


def test_the_unix_socket_is_for_this_user_only_and_needs_no_key(faked: Faked) -> None:
    facts = faked.running.socket.stat()
    assert stat.S_ISSOCK(facts.st_mode)
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert stat.S_IMODE(faked.running.socket.parent.stat().st_mode) == 0o700
    with faked.running.client() as client:
        assert client.get(MODELS).status_code == 200
        for host in ("anything", "docker:80", ""):
            assert client.get(MODELS, headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        *PAGES,
        ({"host": "evil.example"}, 403),
        ({"host": "evil.example:7475", "origin": "http://evil.example:7475"}, 403),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, 200),
    ],
)
def test_a_web_page_is_refused_on_the_unix_socket_too(
    faked: Faked, headers: dict[str, str], status: int
) -> None:
    """Its user may forward it to a TCP port, where pages reach it without a key."""
    with faked.running.client() as client:
        given = {name: value.format(url="http://localhost") for name, value in headers.items()}
        assert client.get(MODELS, headers=given).status_code == status


_ASK = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    lines = ["GET /v1/models HTTP/1.1", "Host: a", sys.argv[2], "", ""]
    client.sendall("\\r\\n".join(lines).encode())
    print(client.recv(20).decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_of_the_unix_socket_needs_the_key(faked: Faked) -> None:
    """Whoever opens the socket to others, such as a unit with SocketMode=0666, opens no more."""
    path = faked.running.socket
    folders = [path.parent, *path.parent.parents]
    modes = {each: stat.S_IMODE(each.stat().st_mode) for each in (path, *folders)}
    try:
        for each, mode in modes.items():
            each.chmod(mode | (0o666 if each == path else 0o111))

        def ask(header: str) -> str:
            command = [sys.executable, "-S", "-c", _ASK, str(path), header]
            return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout

        assert " 401 " in ask("accept: */*")
        assert " 200 " in ask(f"authorization: Bearer {faked.running.key}")
    finally:
        for each, mode in modes.items():
            each.chmod(mode)


def test_where_the_kernel_tells_no_user_the_key_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = socket.socketpair()
    with contextlib.closing(one), contextlib.closing(other):
        assert access._is_own_user(one)
        monkeypatch.delattr(socket, "SO_PEERCRED")
        assert not access._is_own_user(one)


def test_an_allowed_name_and_several_keys_are_accepted(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n\nsecond-key\n")
    options = ("--key-file", str(keys), "--allow-host", "Embed.Example", "--no-socket")
    with serving(tmp_path / "home", "emberd/demo", *options) as running:
        assert not running.socket.exists()

        def status(key: str, **headers: Any) -> int:
            with running.tcp(key) as client:
                return client.get(MODELS, headers=headers).status_code

        assert [status(key) for key in ("first-key", "second-key", "third")] == [200, 200, 401]
        assert status("first-key", host="embed.example:80") == 200
        assert status("first-key", host="other.example") == 403
