"""The page for browsers on this machine: who gets it, its headers, and what it shows of servers."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from pathlib import Path
from typing import Any

import pytest

import waiting
from emberd import TASKS, Manager
from emberd.gateway import access, page
from emberd.manager import State
from emberd.prompts import SYMMETRIC_TASKS
from fake_reranker import MODEL as RERANKER
from fake_server import QWEN
from gateway.conftest import Faked
from gateway.test_starts import own_gateway
from gateways import Running, serving

HTML = page.FILE.read_text(encoding="utf-8")


def _servers(running: Running, model: str) -> list[dict[str, Any]]:
    with running.client() as client:
        listed = client.get("/servers").json()["models"]
    (servers,) = [each["servers"] for each in listed if each["model"] == model]
    return list(servers)


def test_the_page_needs_no_key_and_nothing_else_is_served_without_it(faked: Faked) -> None:
    with faked.running.tcp(key=None) as client:
        reply = client.get("/")
        assert (reply.status_code, reply.text) == (200, HTML)
        assert reply.headers["content-type"] == "text/html; charset=utf-8"
        assert faked.running.key not in reply.text
        assert client.head("/").status_code == 200
        for path in ("/servers", "/x", "/page.html", "/index.html", "/v1/models"):
            assert client.get(path).status_code == 401
    with faked.running.tcp() as client:
        assert client.post("/").status_code == 405


def test_the_headers_allow_the_page_only_its_own_code_and_origin(faked: Faked) -> None:
    with faked.running.tcp(key=None) as client:
        headers = client.get("/").headers
    policy = dict(
        part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for kind in ("script", "style"):
        (code,) = re.findall(f"<{kind}[^>]*>(.*?)</{kind}>", HTML, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert not [name for name in headers if name.startswith("access-control")]


def test_the_page_refers_to_nothing_elsewhere() -> None:
    assert re.findall(r"(?:src|href)\s*=\s*\"(?!#|data:,)[^\"]*\"", HTML) == []
    assert re.findall(r"https?://|@import|url\(|innerHTML|insertAdjacentHTML", HTML) == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:7475"}, 200),
        ({"host": "127.0.0.9"}, 200),
        ({"host": "[::1]:7475"}, 200),
        ({"host": "10.1.2.3:7475"}, 403),
        ({"host": "evil.example"}, 403),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"origin": "https://evil.example"}, 403),
    ],
)
def test_the_page_is_refused_to_other_sites_and_for_other_addresses(
    faked: Faked, headers: dict[str, str], status: int
) -> None:
    with faked.running.tcp() as client:
        assert client.get("/", headers=headers).status_code == status


class _Connection:
    """A connection from an address."""

    def __init__(self, address: str) -> None:
        self.transport, self._address = self, address

    def get_extra_info(self, _: str) -> Any:
        return self

    family = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        return self._address, 1


@pytest.mark.parametrize(
    ("address", "is_from_here"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("172.17.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_only_a_client_on_this_machine_gets_the_page(address: str, is_from_here: bool) -> None:
    scope: Any = {"headers": [(b"host", b"127.0.0.1:7475")]}
    assert access._is_from_here(scope, _Connection(address)) is is_from_here


def test_the_page_is_not_served_to_another_address_of_the_machine(tmp_path: Path) -> None:
    others = {
        str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    }
    address = next((each for each in others if not each.startswith("127.")), None)
    if address is None:
        pytest.skip("this machine has no other address")
    with serving(tmp_path / "home", "emberd/demo", "--host", "0.0.0.0", "--no-socket") as running:
        port = running.url.rpartition(":")[2]
        assert f"page for browsers on this machine: http://127.0.0.1:{port}/ (" in (
            running.log.read_text()
        )
        with running.tcp() as client:
            assert client.get(f"http://127.0.0.1:{port}/").status_code == 200
            # A name of this machine in Host does not make another client local.
            for host in (f"{address}:{port}", "127.0.0.1"):
                url = f"http://{address}:{port}"
                assert client.get(f"{url}/", headers={"host": host}).status_code == 403
                assert client.get(f"{url}/servers", headers={"host": host}).status_code == 200


def test_servers_shows_models_settings_and_requests(faked: Faked) -> None:
    running = faked.running
    with running.client() as client:
        before = client.get("/servers").json()
        running.post(model=QWEN, input="one")
        running.post(model=QWEN, input=["x"], dimensions=9_999)
        after = client.get("/servers").json()
    embedder, reranker = after["models"]
    assert [embedder["model"], reranker["model"]] == [QWEN, RERANKER]
    assert embedder["name"] == "qwen3-embedding-0.6b"
    assert embedder["dimensions"] == 1024
    assert embedder["is_trained_to_be_cut"] is True
    assert embedder["templates"]["query"].startswith("Instruct: ")
    assert "templates" not in reranker
    assert all(each["is_external"] for each in after["models"])
    counted = [
        after["models"][0][name] - before["models"][0][name]
        for name in ("requests", "failed_requests")
    ]
    assert counted == [2, 1]
    assert {task["name"]: task["text"] for task in after["tasks"]} == TASKS
    assert {task["text"] for task in after["tasks"] if task["is_symmetric"]} == SYMMETRIC_TASKS


def test_looking_starts_no_server_and_is_no_use_of_one(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    model = f"stub/ok?start_when={gate}"
    with own_gateway(tmp_path, model, "--idle-timeout", "3s") as own:
        assert [_servers(own, model) for _ in range(3)] == [[], [], []]
        assert Manager(tmp_path / "home").status() == []
        gate.touch()
        assert own.post(model=model, input="a").status_code == 200
        seen = []

        def is_gone() -> bool:
            seen.extend(servers := _servers(own, model))
            return not servers

        waiting.until(is_gone)
    ready = [each for each in seen if each["state"] == State.READY]
    assert {each["idle_timeout_s"] for each in ready} == {3.0}
    # Its supervisor may notice the request late, by the server's counters.
    left = [each["idle_left_s"] for each in ready]
    assert left[-1] == min(left) < 2
    assert max(left) <= 3


def test_a_start_is_shown_by_its_phase_and_a_failure_by_its_cause(tmp_path: Path) -> None:
    model = "stub/ok?faults=dies-at-start&silence=1"
    with own_gateway(tmp_path, model) as own:
        assert own.post(model=model, input="a").status_code == 503
        (server,) = _servers(own, model)
    assert server["state"] == State.FAILED
    assert server["detail"]
    gate = tmp_path / "gate"
    model = f"stub/ok?start_when={gate}"
    with own_gateway(tmp_path / "other", model, "--start-timeout", "0.2") as own:
        assert own.post(model=model, input="a").status_code == 503
        (server,) = _servers(own, model)
        gate.touch()
    assert (server["state"], server["idle_left_s"]) == (State.STARTING, None)
    assert server["detail"]


def test_servers_shows_no_key_and_no_address_of_a_server(tmp_path: Path) -> None:
    with own_gateway(tmp_path, "stub/ok") as own:
        assert own.post(model="stub/ok", input="a").status_code == 200
        (status,) = Manager(tmp_path / "home").status()
        with own.client() as client:
            text = client.get("/servers").text
        assert status.api_key
        assert status.url
        assert own.key not in text
        assert status.api_key not in text
        assert status.url not in text
