"""What the server says of itself, read the way the manager reads it."""

from __future__ import annotations

from pathlib import Path

from emberd import probe
from served import KEY, Served, serving


def test_models_shows_the_name_and_the_context(server: Served) -> None:
    reply = probe.get(server.url, "/v1/models", server.key)
    assert reply is not None
    (card,) = reply.json()["data"]
    assert card["id"] == card["root"] == "emberd/demo"
    assert (card["max_model_len"], card["owned_by"]) == (512, "emberd")


def test_model_info_has_the_given_weight_version(server: Served) -> None:
    for path in ("/model_info", "/get_model_info"):
        reply = probe.get(server.url, path, server.key)
        assert reply is not None
        info = reply.json()
        assert (info["weight_version"], info["is_generation"]) == ("stamp", False)
        assert (info["model_path"], info["served_model_name"]) == ("emberd/demo", "emberd/demo")


def test_server_info_holds_no_key(server: Served) -> None:
    reply = probe.get(server.url, "/server_info", server.key)
    assert reply is not None
    assert reply.json()["context_length"] == 512
    assert KEY not in reply.body.decode()


def test_ready_and_health_say_200(server: Served) -> None:
    assert probe.is_ready(server.url)
    assert probe.is_healthy(server.url)


def test_an_answered_request_moves_the_counters(server: Served) -> None:
    before = server.activity()
    server.vectors(["passage: a", "query: b"])
    after = server.activity()
    assert after.requests - before.requests == 1
    assert after.tokens - before.tokens == 11
    assert after.in_flight == 0


def test_probes_and_refusals_do_not_move_the_counters(server: Served) -> None:
    before = server.activity()
    assert probe.is_healthy(server.url)
    assert server.embed("").status_code == 400
    assert server.activity() == before


def test_without_a_key_nothing_asks_for_one(tmp_path: Path) -> None:
    with serving(tmp_path, key=None) as server:
        assert len(server.vectors("a")[0]) == 384


def test_the_log_holds_neither_the_key_nor_a_text(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.vectors("a secret sentence")
        assert server.embed(["a secret sentence", ""]).status_code == 400
        server.terminate()
        assert server.ended() == 0
        log = server.log.read_text()
    assert KEY not in log
    assert "secret" not in log
    assert [line.split(" INFO ")[1].split()[0] for line in log.splitlines()] == [
        "listening",
        "loading",
        "ready:",
        "draining:",
    ]
