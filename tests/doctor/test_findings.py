"""What hangs is left behind, what crashes is told."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time

from emberd.doctor.findings import LateError, gather

SHORT_S = 0.2


def test_each_job_ends_by_itself_and_in_its_place() -> None:
    never = threading.Event()

    def crash() -> int:
        raise KeyError("nothing")

    def hang() -> int:
        never.wait()
        return 0

    begun_s = time.monotonic()
    one, broken, late, two = gather([lambda: 1, crash, hang, lambda: 2], SHORT_S)
    seconds = time.monotonic() - begun_s
    never.set()
    assert (one, two) == (1, 2)
    assert isinstance(broken, KeyError)
    assert isinstance(late, LateError)
    assert SHORT_S <= seconds < SHORT_S + 20


def test_jobs_run_at_once() -> None:
    meeting = threading.Barrier(3, timeout=10)
    assert all(isinstance(outcome, int) for outcome in gather([meeting.wait] * 3, 10))


def test_a_job_that_hangs_does_not_keep_the_process_from_ending() -> None:
    program = """
        import threading
        from emberd.doctor.findings import gather
        [late] = gather([threading.Event().wait], 0.1)
        print(type(late).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (0, "LateError\n")
