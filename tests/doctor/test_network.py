"""Proxies and ports."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import examined
from emberd.doctor import servers
from emberd.doctor.findings import Finding, Level
from emberd.settings import StartOptions
from emberd.system import listeners
from emberd.system.listeners import Listener

FAR = "http://gpu.lan:30000"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def port() -> Iterator[int]:
    """A port on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def look(tmp_path: Path, **more: Any) -> list[Finding]:
    return list(servers.check_network(examined.wanted(tmp_path, **more)))


def proxies(tmp_path: Path, **more: Any) -> list[Finding]:
    return [finding for finding in look(tmp_path, **more) if finding.name == "proxy"]


def test_without_a_proxy_nothing_is_wrong(tmp_path: Path) -> None:
    assert examined.told(proxies(tmp_path, base_url=FAR)) == [(Level.OK, "no proxy is set", "")]


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_between_emberd_and_its_server_is_noted_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://me:secret@proxy.lan:3128")
    shown, between = proxies(tmp_path, base_url=FAR)
    assert f"{name.upper()}=proxy.lan:3128" in shown.fact
    assert between.fact == "requests to gpu.lan:30000 go through the proxy proxy.lan:3128"
    assert between.advice.endswith("export NO_PROXY=gpu.lan")
    assert "secret" not in f"{shown} {between}"


@pytest.mark.parametrize(
    ("variable", "url", "excepted"),
    [
        ("HTTP_PROXY", "http://127.0.0.1:30000", ""),
        ("HTTP_PROXY", "http://localhost:30000", ""),
        ("HTTP_PROXY", FAR, "other.lan, gpu.lan"),
        ("HTTP_PROXY", FAR, ".lan"),
        ("HTTPS_PROXY", FAR, ""),
    ],
)
def test_a_proxy_that_is_not_used_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, url: str, excepted: str
) -> None:
    monkeypatch.setenv(variable, "proxy.lan:3128")
    monkeypatch.setenv("NO_PROXY", excepted)
    assert examined.worse(proxies(tmp_path, discover=(url,))) == []


def test_a_port_that_a_server_is_to_have_and_another_has_is_a_problem(
    tmp_path: Path, port: int
) -> None:
    found = examined.named(look(tmp_path, options=StartOptions(port=port)), f"port {port}")
    assert found.level is Level.PROBLEM
    assert found.fact.startswith(f"a process of user {os.getuid()} listens there")


@pytest.mark.parametrize(("stranger", "level"), [(False, Level.OK), (True, Level.NOTE)])
def test_a_stranger_on_the_default_port_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stranger: bool, level: Level
) -> None:
    owner = os.geteuid() + 12345 if stranger else os.geteuid()
    monkeypatch.setattr(listeners, "find", lambda _: Listener(owner, inode=1))
    found = examined.named(look(tmp_path), "port 30000")
    assert found.level is level
    assert ("EMBERD_BASE_URL" in found.advice) == stranger


def test_a_port_that_cannot_be_read_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(_url: str) -> Listener | None:
        raise PermissionError("not allowed here")

    monkeypatch.setattr(listeners, "find", unreadable)
    found = examined.named(look(tmp_path), "port 30000")
    assert found.level == Level.NOTE
    assert "not allowed here" in found.fact


def test_a_free_port_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "find", lambda _: None)
    assert examined.named(look(tmp_path), "port 30000").fact == "nothing listens there"
