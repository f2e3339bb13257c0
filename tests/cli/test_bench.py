"""``emberd bench``: its table, its JSON, and what it prints when it ends early."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import managed
import waiting
from command import Command
from fake_server import MODEL, FakeServer

BATCH = 13  # of no other request
LENGTH = ("--tokens", "64", "--batch-size", str(BATCH))

stopped_at_the_end = managed.stopped_at_the_end


class _Refusing(FakeServer):
    """Refuses documents in bulk."""

    def _refusal(self, inputs: list[Any]) -> str | None:
        return "no more" if len(inputs) == BATCH else super()._refusal(inputs)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def _here(home: Path, server: FakeServer) -> Command:
    return Command(home, {"EMBERD_BASE_URL": server.url})


def test_the_table_has_a_row_for_each_length_and_batch_size(home: Path, server: FakeServer) -> None:
    sizes = ("--batch-size", "1", "--batch-size", "8")
    done = _here(home, server)("bench", MODEL, "--tokens", "64", *sizes, "--duration", "1")
    assert done.code == 0, done.err
    assert done.out.startswith(f"{MODEL} at {server.url} (")
    queries, bulk = done.out.split("Documents in bulk")
    assert [line.split()[1] for line in queries.splitlines() if line.startswith("6")] == ["tokens"]
    rows = [line.split() for line in bulk.splitlines() if line.startswith("6")]
    assert [row[2] for row in rows] == ["1", "8"]
    assert "100%" in [row[-1] for row in rows]
    assert "documents of" in done.err  # progress


def test_json_has_each_figure_with_its_unit(home: Path, server: FakeServer) -> None:
    found = _here(home, server)("bench", MODEL, *LENGTH, "--duration", "1", "--json").json
    assert (found["model"], found["url"], found["complete"]) == (MODEL, server.url, True)
    assert (found["max_concurrency"], found["skipped"], found["dimensions"]) == (8, 0, 16)
    [queries], [bulk] = found["queries"], found["bulk"]
    assert set(queries) == {
        *("tokens_per_text", "words_per_text", "queries", "p50_ms", "p95_ms", "p99_ms"),
    }
    assert set(bulk) == {
        *("tokens_per_text", "words_per_text", "batch_size", "texts", "seconds", "texts_per_s"),
        *("tokens_per_s", "share_of_best", "client_cpu_cores", "server_process_cpu_cores"),
    }
    assert (bulk["batch_size"], bulk["share_of_best"]) == (BATCH, 1)
    assert bulk["texts_per_s"] == pytest.approx(bulk["texts"] / bulk["seconds"])


def test_an_interrupt_prints_what_was_measured(home: Path, server: FakeServer) -> None:
    with _here(home, server).begin("bench", MODEL, *LENGTH, "--duration", "1h", "--json") as child:
        # The time of the queries is half an hour, but two thousand of them are enough.
        waiting.until(lambda: BATCH in map(len, server.embedded))
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert child.returncode == 130
    found = json.loads(out)
    assert (found["complete"], found["bulk"]) == (False, [])
    assert [each["queries"] for each in found["queries"]] == [2_000]
    assert b"interrupted" in err


def test_an_error_comes_after_what_was_measured(home: Path) -> None:
    with _Refusing() as server:
        done = _here(home, server)("bench", MODEL, *LENGTH, "--duration", "1")
        as_json = _here(home, server)("bench", MODEL, *LENGTH, "--duration", "1", "--json")
    assert (done.code, as_json.code) == (1, 1)
    assert "p99 ms" in done.out
    assert "texts/s" not in done.out
    assert "error: " in done.err
    assert set(as_json.json) == {"error"}


def test_a_server_that_refuses_connections_is_an_error(home: Path, server: FakeServer) -> None:
    server.die()
    done = _here(home, server)("bench", MODEL)
    assert (done.code, done.out) == (1, "")
    assert server.url in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--duration", "soon"), "--duration 'soon' must be a duration"),
        (("--duration", "0"), "--duration '0' must be a duration"),
        (("--tokens", "0"), "--tokens"),
        (("--batch-size", "0"), "--batch-size"),
        (("--max-concurrency", "0"), "MAX_CONCURRENCY"),
        (("--device", "cpu"), "--device cpu cannot be given"),
    ],
)
def test_an_invalid_option_is_named(
    home: Path, server: FakeServer, arguments: tuple[str, ...], says: str
) -> None:
    done = _here(home, server)("bench", MODEL, *arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert server.embedded == []


def test_the_demo_engine_is_measured(managed_home: Path) -> None:
    """The server runs, or is started."""
    options = ("--tokens", "16", "--batch-size", "4", "--duration", "1", "--json")
    found = Command(managed_home)("bench", "emberd/demo", *options).json
    [queries], [bulk] = found["queries"], found["bulk"]
    assert found["engine"] == "demo"
    assert queries["queries"] >= 3
    assert bulk["tokens_per_text"] == pytest.approx(16, abs=2)
    # Its process is the one that computes.
    assert bulk["server_process_cpu_cores"] > bulk["client_cpu_cores"]
