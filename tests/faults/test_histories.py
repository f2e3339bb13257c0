"""Random histories; ``FAULTS_SEED=123 pytest tests/faults/test_histories.py`` runs one of them."""

from __future__ import annotations

import os
import sys
from typing import Final

import pytest

from faults import programs
from faults.scale import scale

_SEED: Final = os.environ.get("FAULTS_SEED")
_PART: Final = scale(1, 50)

pytestmark = [
    pytest.mark.timeout(7200),
    pytest.mark.skipif(sys.platform != "linux", reason="the campaign reads Linux's /proc"),
]


if _SEED is None:

    @pytest.mark.parametrize("first", range(0, scale(1, 1000), _PART))
    def test_histories_of_the_stub_break_nothing(first: int) -> None:
        programs.run("faults.run_histories", "--seeds", f"{first}:{first + _PART}")

    if scale(0, 1):  # a real engine is killed only in the whole campaign

        def test_histories_of_the_demo_break_nothing() -> None:
            programs.run("faults.run_histories", "--seeds", "0:50", "--engine", "demo")

else:

    @pytest.mark.parametrize("engine", ["stub", "demo"])
    def test_history_of_the_seed_breaks_nothing(engine: str) -> None:
        programs.run("faults.run_histories", "--seeds", _SEED, "--engine", engine, "--log")
