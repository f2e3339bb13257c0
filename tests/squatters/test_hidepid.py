"""A user who cannot see the processes of others: ``/proc`` is mounted with ``hidepid``."""

from __future__ import annotations

import subprocess

import pytest

from squatters.field import ROUND_S, interpreter, needs_two_users, opened, output_of

pytestmark = needs_two_users


@pytest.mark.parametrize("hidepid", [1, 2, 4])
def test_server_starts_and_stops_where_processes_of_others_are_hidden(hidepid: int) -> None:
    mount = f"mount -t proc -o hidepid={hidepid} proc /proc"
    if subprocess.run(["unshare", "--mount", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("/proc cannot be mounted here")
    with opened(interpreter()) as field:
        output = output_of(field.victim("starts", 1, "stub/hidden", hidepid=hidepid), ROUND_S)
        assert [line["outcome"] for line in field.rounds] == ["right"], output
