"""The verdict, and which problem has to be fixed first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import examined
from emberd.doctor.findings import Finding, Level, Part, ok, problem
from emberd.doctor.report import judge

WANTED = examined.wanted(Path("home"), "some/model")
RUNS = replace(ok("found", "one runs", gives="it runs"), part=Part.SERVERS)
STARTS = replace(ok("sglang", "it would", gives="it starts"), part=Part.ENGINE)


def trouble(part: Part) -> Finding:
    return replace(problem(part.value, f"trouble of {part.value}", f"fix {part.value}"), part=part)


def test_an_engine_gives_a_server() -> None:
    verdict, _ = judge(WANTED, [STARTS])
    assert (verdict.good, verdict.text, verdict.next) == (True, "it starts", "")


def test_a_server_that_runs_comes_before_one_that_could_be_started() -> None:
    assert judge(WANTED, [STARTS, RUNS])[0].text == "it runs"


def test_beside_a_server_that_runs_what_keeps_one_from_starting_is_a_note() -> None:
    verdict, findings = judge(WANTED, [RUNS, trouble(Part.MODEL), trouble(Part.ENGINE)])
    assert verdict.good
    assert [f.level for f in findings] == [Level.OK, Level.NOTE, Level.NOTE]


def test_a_setting_that_cannot_be_read_stops_even_the_use_of_a_server_that_runs() -> None:
    verdict, findings = judge(WANTED, [trouble(Part.SETTINGS), RUNS])
    assert not verdict.good
    assert verdict.text.endswith(
        "some/model cannot be served on this machine yet: trouble of settings"
    )
    assert verdict.next == "fix settings"
    assert findings[0].level is Level.PROBLEM


def test_a_base_url_that_serves_something_else_is_not_made_good_by_an_engine() -> None:
    assert not judge(WANTED, [trouble(Part.SERVERS), STARTS])[0].good


def test_if_the_given_server_is_unusable_only_that_is_a_problem() -> None:
    """With a base URL no server is started, so a missing engine does not matter."""
    asked = examined.wanted(Path("home"), "some/model", base_url="http://127.0.0.1:9")
    given = [trouble(Part.ENGINE), trouble(Part.SERVERS), trouble(Part.MODEL)]
    verdict, findings = judge(asked, given)
    assert (verdict.good, verdict.next) == (False, "fix servers")
    assert [f.level for f in findings] == [Level.NOTE, Level.PROBLEM, Level.NOTE]
    _, findings = judge(WANTED, given)
    assert {f.level for f in findings} == {Level.PROBLEM}


def test_the_problem_that_comes_first_is_told_whatever_their_order() -> None:
    """The advice is not to install ten gigabytes if the disk or the card is too small for them."""
    parts = [Part.MODEL, Part.ENGINE, Part.GPU, Part.DISK, Part.STATE]
    for last in range(len(parts), 0, -1):
        verdict, _ = judge(WANTED, [trouble(part) for part in parts[:last]])
        assert verdict.next == f"fix {parts[last - 1].value}"


def test_without_any_word_of_an_engine_nothing_is_promised() -> None:
    assert not judge(WANTED, [ok("python", "is here")])[0].good
