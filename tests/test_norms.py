from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from emberd.norms import is_unit


@pytest.mark.parametrize(
    ("norm", "expected"),
    [(1.0, True), (0.995, True), (1.005, True), (0.98, False), (1.02, False), (0.0, False)],
)
def test_norms_close_to_one_are_accepted(norm: float, expected: bool) -> None:
    assert is_unit(norm) is expected
    assert is_unit(np.array([norm, 1.0])).tolist() == [expected, True]


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_norms_that_are_not_finite_are_refused(norm: float) -> None:
    assert not is_unit(norm)
    assert not is_unit(np.array([norm])).any()


def test_the_check_imports_no_numpy() -> None:
    """A supervisor runs it."""
    program = "import emberd.norms, sys; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
