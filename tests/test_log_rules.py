"""Rules that explain the log of a failed program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from emberd.system import log_rules
from emberd.system.log_rules import LogRule

RULES = (
    LogRule("full", re.compile(r"no space on (?P<disk>\S+)"), "{disk} is full", "clear {disk}"),
    LogRule("option", re.compile(r"unknown: (?P<options>.*)"), "unknown option {options}", "-"),
    LogRule("any", re.compile(r"error of (?P<who>\w+)?"), "{who} failed", "-", killed=True),
)


def test_first_matching_rule_gives_cause_advice_and_flags() -> None:
    found = log_rules.match(RULES, "error of x\nno space on /data\n")
    assert found is not None
    assert (found.cause, found.advice, found.killed) == ("/data is full", "clear /data", False)
    found = log_rules.match(RULES, "error of x\n")
    assert found is not None
    assert found.killed
    assert log_rules.match(RULES, "all is well") is None


def test_groups_win_over_facts_and_facts_fill_empty_groups() -> None:
    facts = {"who": "the server"}
    for text, cause in (("error of x", "x failed"), ("error of ", "the server failed")):
        found = log_rules.match(RULES, text, facts)
        assert found is not None
        assert found.cause == cause


def test_only_names_of_options_are_quoted() -> None:
    found = log_rules.match(RULES, "unknown: --a=SECRET --b SECRET")
    assert found is not None
    assert found.cause == "unknown option --a --b"


@pytest.mark.parametrize("pattern", ["'a{2}b'", "['a{2}', 'b']"])
def test_rules_are_loaded_with_phrases_and_joined_patterns(tmp_path: Path, pattern: str) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(
        '[phrases]\nfirst = "stop it"\nsecond = "Now $first"\n'
        '[[rule]]\nname = "n"\ncause = "c"\nadvice = "$second."\nfinal = true\n'
        f"pattern = {pattern}\n"
    )
    [rule] = log_rules.load(file)
    assert rule.pattern.search("xaab")
    assert (rule.advice, rule.final) == ("Now stop it.", True)


def test_excerpts_are_short_single_lines_without_passwords() -> None:
    text = log_rules.excerpt("at http://user:secret@host/\n" + "x" * 1000)
    assert "secret" not in text
    assert "\n" not in text
    assert len(text) == 300


def test_last_line_that_is_not_blank() -> None:
    assert log_rules.last_line("one\ntwo  \n\n") == "two"
    assert log_rules.last_line("") == "it wrote nothing"


def test_signals_are_named() -> None:
    assert log_rules.signal_name(-9) == "SIGKILL"
    assert log_rules.signal_name(-99) == "signal 99"
