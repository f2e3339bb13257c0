"""The recording in the README shows what its programs print, and nothing of the machine."""

from __future__ import annotations

import re
import runpy
from html import unescape
from itertools import groupby
from typing import Final
from xml.etree import ElementTree

import pytest

import managed
from command import run_program
from managed import stopped_at_the_end
from source_tree import ROOT

__all__ = ["stopped_at_the_end"]

IMAGES: Final = ROOT / "docs/images"
RECORDER: Final = runpy.run_path(str(IMAGES / "record.py"))
# The root of what an SVG file contains, and its namespace.
_SVG: Final = "{http://www.w3.org/2000/svg}"
# The model computes in 8 bits, and another processor rounds some of the numbers differently.
_PROCESSORS_DIFFER_BY: Final = 5e-3


def _lines() -> list[str]:
    """Return the lines of the last frame."""
    root = ElementTree.parse(IMAGES / "session-still.svg").getroot()
    rows = {
        f"#{group.get('id')}": "".join(unescape(text.text or "") for text in group)
        for group in root.iter(f"{_SVG}g")
        if group.get("id")
    }
    shown = [use.get("href", "") for use in root.iter(f"{_SVG}use")]
    return [rows[name] for name in shown if name in rows]


def _numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", line)]


def test_the_recorded_commands_and_programs_are_those_of_the_script() -> None:
    lines = _lines()
    assert [line[1:] for line in lines if line.startswith("$")] == [*RECORDER["COMMANDS"], ""]
    source = "".join(RECORDER["PROGRAMS"].values()).splitlines()
    assert lines[1 : 1 + len(source)] == source


@pytest.mark.parametrize("name", list(RECORDER["PROGRAMS"]))
def test_a_recorded_program_prints_what_the_recording_shows(name: str) -> None:
    done = run_program("-c", RECORDER["PROGRAMS"][name], environment=managed.environment())
    assert (done.code, done.err) == (0, "")
    label = done.out.split()[0]
    [recorded] = [line for line in _lines() if line.startswith(f"{label} ")]
    assert recorded.split()[:2] == done.out.split()[:2]
    assert len(_numbers(done.out)) == 2
    assert _numbers(recorded) == pytest.approx(_numbers(done.out), abs=_PROCESSORS_DIFFER_BY)


def test_the_recording_shows_one_ready_server_that_both_programs_used() -> None:
    text = "\n".join(_lines())
    assert len(re.findall(r"http://127\.0\.0\.1:\d+", text)) == 1
    assert re.search(r"^state\s*ready$", text, re.MULTILINE)


def test_the_recording_is_small_and_shows_no_path() -> None:
    for name in ("session.svg", "session-still.svg"):
        drawing = (IMAGES / name).read_text(encoding="utf-8")
        assert len(drawing) < 300_000
        shown = re.sub("<style>.*?</style>|<[^>]*>", "", drawing, flags=re.DOTALL)
        assert "emberd status" in shown
        assert re.findall(r"(?<![:/\w])/(?!demo)\w+", shown) == []
        assert "prefers-color-scheme:dark" in drawing


def test_the_animation_ends_with_the_last_frame() -> None:
    drawing = (IMAGES / "session.svg").read_text(encoding="utf-8")
    steps = re.findall(r"([\d.]+)%\{transform:translateY\(-(\d+)px\)\}", drawing)
    times = [float(percent) for percent, _ in steps]
    places = [int(place) for _, place in steps]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (0.0, 100.0)
    height = RECORDER["_HEIGHT"]
    distinct = [place for place, _ in groupby(places)]
    assert distinct == list(range(0, height * len(distinct), height))
    assert f"transform:translateY(-{places[-1]}px)}}" in drawing.split("prefers-reduced-motion")[1]
