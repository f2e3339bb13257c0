"""Another user takes ports while the real SGLang loads its model, and after it was killed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from squatters.field import needs_two_users, opened, run_under_attack

pytestmark = [*needs_two_users, pytest.mark.full]


@pytest.mark.parametrize("kind", ["starts", "kills"])
def test_sglang_starts_under_attack_and_the_attacker_gets_nothing(
    tiny: Path, kind: str, sglang_python: str
) -> None:
    """The victim is this user: an engine's folder need not be readable by others."""
    with opened(sys.executable, os.geteuid()) as field:
        seen = run_under_attack(
            field, kind, 2 if kind == "starts" else 1, str(tiny), device="cpu", round_s=200
        )
    assert (seen["leaked_keys"], seen["leaked_texts"]) == (0, 0)
    assert set(seen["outcomes"]) == {"right"}
