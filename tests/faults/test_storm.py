"""64 processes that ask for one server while it is killed; a smaller storm in ``make test``."""

from __future__ import annotations

import sys

import pytest

from faults import programs
from faults.scale import scale


@pytest.mark.skipif(sys.platform != "linux", reason="the campaign reads Linux's /proc")
@pytest.mark.timeout(7200)
def test_every_process_gets_the_one_server_or_an_error_of_ours() -> None:
    processes, rounds = scale(16, 64), scale(2, 50)
    programs.run("faults.storm", "--processes", processes, "--rounds", rounds)
