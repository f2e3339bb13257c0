"""The server's process and its descendants."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import psutil
import pytest

import forked
import waiting
from emberd.manager import process_tree


def test_orphan_that_left_the_session_is_reaped_by_the_supervisor() -> None:
    forked.run(_check_that_nothing_is_left)


def _check_that_nothing_is_left() -> None:
    process_tree.become_subreaper()
    orphan = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    server = process_tree.ServerProcess(
        [sys.executable, "-W", "ignore", "-c", orphan], dict(os.environ), "m", Path(os.devnull), ""
    )
    waiting.until(lambda: server.reap() is not None)
    there = psutil.Process().children(recursive=True)
    ended = server.kill_all(5.0)
    server.close()
    assert there
    assert ended
    assert not psutil.Process().children(recursive=True)


LINES = 300_000
# It waits for this test, which on a busy machine may not run for seconds.
FLOOD = f"""
import os, sys, time
print("a message of the start", flush=True)
for number in range({LINES}):
    while number % 1000 == 0 and os.fstat(1).st_size > 14_000_000:
        time.sleep(0.01)
    sys.stdout.write(f"line {{number:08}} {{'x' * 50}}\\n")
    sys.stdout.flush()
print("the reason of the crash", flush=True)
"""


def test_log_is_bounded_while_the_server_writes_it(tmp_path: Path) -> None:
    # In pytest's process, all its children would be killed at the end, also those of other tests.
    forked.run(lambda: _check_log(tmp_path / "server.log"))


def _check_log(log: Path) -> None:
    log.write_text("start_id abc\n")
    server = process_tree.ServerProcess(
        [sys.executable, "-c", FLOOD], dict(os.environ), "m", log, ""
    )
    most = 0

    def has_ended() -> bool:
        nonlocal most
        ended = server.reap() is not None
        most = max(most, log.stat().st_size)
        server.bound_log()
        return ended

    try:
        waiting.until(has_ended, 120)
    finally:
        server.kill_all(5.0)
        server.close()
    content = log.read_text()
    assert len(content) < 10 << 20
    assert most < 15 << 20  # about 20 MB were written
    assert content.startswith("start_id abc\na message of the start\nline 00000000 x")
    assert content.endswith("\nthe reason of the crash\n")
    assert server.log().endswith("\nthe reason of the crash\n")
    # What remains is in order, and says where it has a gap. A server that never pauses may lose a
    # line that it writes in the instant of the cut.
    head, *rest = re.split(r"\nemberd: \d+ bytes [^\n]*\n", content)
    assert rest
    numbers = [int(found) for found in re.findall(r"^line (\d{8}) ", content, re.MULTILINE)]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] == LINES - 1
    assert numbers[: head.count("line ")] == list(range(head.count("line ")))


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_a_supervisor_that_continues_to_run_keeps_no_descriptor(
    tmp_path: Path, platform: str
) -> None:
    forked.run(lambda: _check_descriptors(tmp_path, platform))


def _check_descriptors(folder: Path, platform: str) -> None:
    sys.platform = platform
    log = folder / "server.log"
    before = os.listdir("/dev/fd")
    with pytest.raises(FileNotFoundError):
        process_tree.ServerProcess(
            ["true"], dict(os.environ), "m", log, "", working_folder="/nowhere"
        )
    assert os.listdir("/dev/fd") == before
    server = process_tree.ServerProcess(["true"], dict(os.environ), "m", log, "")
    waiting.until(lambda: server.reap() is not None)
    server.close()
    server.close_files()
    assert os.listdir("/dev/fd") == before
