"""The whole examination: it does not hang or crash, and shows no secret."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import examined
from emberd import model_files
from emberd.cli import doctor as command
from emberd.doctor import examine, wanted
from emberd.doctor import report as doctor_report
from emberd.doctor.findings import Finding, Level, Part, note, ok
from emberd.doctor.wanted import Wanted
from emberd.errors import StartError
from emberd.manager import discovery
from emberd.manager.state import ServerSnapshot, ServerStatus
from emberd.settings import ServerSpec
from emberd.system import listeners
from emberd.verified_manager import Manager

SHORT_S = 0.3
SECRET = "correct-horse"
DEMO = {"model": "emberd/demo"}


@pytest.fixture(autouse=True)
def _nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_processes", lambda: iter(()))
    monkeypatch.setattr(listeners, "find", lambda _: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """What hangs waits for it; set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def one(_wanted: Wanted) -> Iterable[Finding]:
    yield ok("one", "is good", gives="it can be had")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time enough for a machine that runs other tests beside."""
    monkeypatch.setattr(doctor_report, "CHECKS_S", 60.0)
    monkeypatch.setattr(doctor_report, "READING_S", 60.0)


def test_the_demo_can_be_had_here(
    patient: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EMBERD_HOME", str(tmp_path / "home"))  # where no server runs
    report = examine(DEMO)
    assert report.verdict.good
    assert report.verdict.text == (
        "emberd/demo can be served on this machine with the engine demo: "
        "emberd up --model emberd/demo"
    )
    assert {finding.part for finding in report.findings} == set(doctor_report.CHECKS)
    assert [f for f in report.findings if f.level is Level.PROBLEM] == []


def test_no_check_of_a_sound_machine_fails(patient: None) -> None:
    crashed = [f for f in examine(DEMO).findings if f.fact.startswith("the check failed")]
    assert crashed == []


def test_a_check_that_crashes_is_a_note_and_the_others_go_on() -> None:
    def crash(_wanted: Wanted) -> Iterable[Finding]:
        yield ok("first", "is lost with the rest")
        raise ZeroDivisionError("of all things")

    report = examine(DEMO, {Part.GPU: (crash,), Part.ENGINE: (one,)})
    crashed, good = report.findings
    assert crashed.level is Level.NOTE
    assert crashed.fact == "the check failed: ZeroDivisionError('of all things')"
    assert (good.name, report.verdict.good) == ("one", True)


def test_a_check_that_hangs_is_a_problem_after_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, never: threading.Event
) -> None:
    def hang(_wanted: Wanted) -> Iterable[Finding]:
        never.wait()
        return []

    monkeypatch.setattr(doctor_report, "CHECKS_S", SHORT_S)
    begun_s = time.monotonic()
    report = examine(DEMO, {Part.STATE: (hang,), Part.ENGINE: (one,)})
    assert time.monotonic() - begun_s < SHORT_S + 20
    hung, good = report.findings
    assert (hung.level, good.level) == (Level.PROBLEM, Level.OK)
    assert not report.verdict.good


def test_all_bounds_together_are_below_ten_seconds() -> None:
    assert doctor_report.READING_S + doctor_report.CHECKS_S + doctor_report.KEYS_S < 10


def test_a_models_folder_that_hangs_is_told_and_the_rest_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, never: threading.Event
) -> None:
    # A read does not return, as on a network disk whose server is away.
    real = model_files.read_json
    hangs = "emberd.model_card.read_json"
    monkeypatch.setattr(hangs, lambda path: real(path) if never.wait() else {})
    monkeypatch.setattr(doctor_report, "READING_S", SHORT_S)
    checks = {Part.SETTINGS: (wanted.check_variables,), Part.ENGINE: (one,)}
    report = examine({"model": str(tmp_path)}, checks)
    assert report.wanted["model"] == str(tmp_path)
    assert not report.verdict.good


def test_a_home_that_hangs_does_not_keep_the_report(
    monkeypatch: pytest.MonkeyPatch, never: threading.Event
) -> None:
    monkeypatch.setattr(doctor_report, "_recorded", lambda _: never.wait() and [])
    monkeypatch.setattr(doctor_report, "KEYS_S", SHORT_S)
    assert examine(DEMO, {Part.ENGINE: (one,)}).verdict.good


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_HOME", str(tmp_path / "home"))
    examine(DEMO)
    assert list(tmp_path.iterdir()) == []


def secrets_everywhere(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    for name, text in {
        "EMBERD_API_KEY": f"{SECRET}-0",
        "EMBERD_APIKEY": f"{SECRET}-1",
        "EMBERD_DISCOVER": "http://127.0.0.1:9",
        "EMBERD_ENGINE_ARGS": f"--api-key {SECRET}-2",
        "EMBERD_HOME": str(home),
        "EMBERD_SERVER_KEY": f"{SECRET}-3",
        "HF_ENDPOINT": f"http://me:{SECRET}-4@127.0.0.1:9",
        "HF_TOKEN": f"{SECRET}-5",
        "HTTPS_PROXY": f"http://me:{SECRET}-6@127.0.0.1:9",
        "http_proxy": f"me:{SECRET}-7@127.0.0.1:9",
        "OPENAI_API_KEY": f"{SECRET}-8",
    }.items():
        monkeypatch.setenv(name, text)


def written(given: dict[str, str]) -> str:
    """Return all that the command writes, in both of its forms."""
    report = examine(given)
    return json.dumps(command.as_content(report)) + repr(report)


@pytest.mark.parametrize(
    "base_url",
    [
        None,
        "http://127.0.0.1:9/v1",
        f"http://me:{SECRET}-9@127.0.0.1:9/v1",
        f"http://127.0.0.1:9/v1?api_key={SECRET}-9",
    ],
)
def test_no_secret_of_the_environment_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_url: str | None
) -> None:
    secrets_everywhere(monkeypatch, tmp_path / "home")
    if base_url:
        monkeypatch.setenv("EMBERD_BASE_URL", base_url)
    text = written({"model": "somebody/model"})
    assert "HTTPS_PROXY=127.0.0.1:9" in text
    assert re.findall(f".{{30}}{SECRET}.{{10}}", text) == []


def test_a_value_that_cannot_be_read_shows_no_key_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_ENGINE_ARGS", f'--api-key "{SECRET}')
    text = written(DEMO)
    assert "EMBERD_ENGINE_ARGS" in text
    assert SECRET not in text


def test_no_key_of_a_server_that_emberd_keeps_is_written(
    home: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where some text holds it that nobody thought of."""
    monkeypatch.setenv("EMBERD_HOME", str(home))
    endpoint = manager.ensure(ServerSpec("stub/ok", engine="stubs.engine")).endpoint
    key = endpoint.api_key
    assert key is not None

    def repeat(_wanted: Wanted) -> Iterable[Finding]:
        yield note("log", f"it says {key}", f"say {key}")
        yield ok("server", "runs", gives=f"with {key}")

    checks = {**doctor_report.CHECKS, Part.NETWORK: (repeat,)}
    report = examine({"model": "stub/ok", "engine": "stubs.engine"}, checks)
    assert report.verdict.good
    assert examined.named(report.findings, "log").fact == "it says ***"
    assert key not in json.dumps(command.as_content(report)) + repr(report)


def test_a_failure_that_quotes_a_log_shows_no_key(
    home: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_HOME", str(home))
    spec = ServerSpec("stub/x?faults=dies-at-start", engine="stubs.engine")
    with pytest.raises(StartError):
        manager.ensure(spec)
    status = ServerSnapshot.status

    def quoting(seen: ServerSnapshot) -> ServerStatus | None:
        was = status(seen)
        return was and replace(was, detail=f"ServerArgs(api_key='{SECRET}')")

    monkeypatch.setattr(ServerSnapshot, "status", quoting)
    text = written({"model": spec.model, "engine": "stubs.engine"})
    assert "ServerArgs(api_key=***)" in text
    assert SECRET not in text
