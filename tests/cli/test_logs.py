"""``logs``."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

import damage
import waiting
from command import Command, stub
from emberd import Manager
from emberd.cli import logs


def test_without_a_server_there_is_no_log(emberd: Command) -> None:
    done = emberd("logs")
    assert (done.code, done.out) == (3, "")
    assert done.err == "No server has a log here. `emberd up` starts one.\n"


def test_the_last_lines_of_the_log_are_shown(emberd: Command) -> None:
    emberd("up", *stub())
    path = Path(emberd("logs", "--path").out.strip())
    whole = path.read_text()
    assert emberd("logs").out == whole
    assert "stub: loading" in whole
    long = "".join(f"line {number:08}\n" for number in range(20_000))
    path.write_text(long)
    # 4681 lines and a piece of one are what is read at once.
    for lines in (4681, 4682, 9000):
        assert emberd("logs", "-n", str(lines)).out == long[-lines * len("line 00000000\n") :]
    assert emberd("logs", "-n", "0").out == ""


@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "socket", "unsafe"])
def test_what_has_the_name_of_the_log_is_refused_and_not_waited_for(
    emberd: Command, kind: str
) -> None:
    emberd("up", *stub())
    path = Path(emberd("logs", "--path").out.strip())
    path.chmod(0o666) if kind == "unsafe" else damage.OF_ANY_FILE[kind](path)
    done = emberd("logs")
    assert done.code == 1
    assert str(path) in done.err


def test_the_log_of_a_failed_start_is_kept(emberd: Command) -> None:
    emberd("up", *stub(faults="dies-at-start"))
    assert "no memory left for the model" in emberd("logs").out


def test_following_goes_on_until_the_server_ends(emberd: Command) -> None:
    emberd("up", *stub())
    path = Path(emberd("logs", "--path").out.strip())
    with emberd.begin("logs", "--follow", "-n", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        with path.open("a") as log:
            log.write("something new\n")
        assert process.stdout.readline() == b"something new\n"
        assert process.poll() is None
        emberd("stop")
        assert process.wait(timeout=20) == 0


def test_following_goes_on_with_the_log_of_a_server_that_is_started_again(
    emberd: Command,
) -> None:
    emberd("up", *stub())
    with emberd.begin("logs", "--follow", "-n", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        emberd("stop")
        emberd("up", *stub())
        first = process.stdout.readline().decode()
        assert Manager(emberd.home).status()[0].start_id in first
        path = Path(emberd("logs", "--path").out.strip())
        with path.open("a") as log:
            log.write("something new\n")
        while (line := process.stdout.readline()) != b"something new\n":
            assert line
        emberd("stop")
        assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b"stub/ok was started again.\n"


def test_an_interrupt_ends_following(emberd: Command) -> None:
    emberd("up", *stub())
    with emberd.begin("logs", "--follow") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"interrupted\n")


def test_keys_in_the_log_are_not_shown(emberd: Command) -> None:
    emberd("up", *stub())
    key = emberd("env", *stub(), "--json").json["OPENAI_API_KEY"]
    path = Path(emberd("logs", "--path").out.strip())
    kept = "Prefill batch, #new-token: 16, #cached-token: 0, token usage: 0.00"
    path.write_text(f"a line with {key} in it\nServerArgs(api_key='other', port=1)\n{kept}\n")
    with emberd.begin("logs", "--follow") as process:
        assert process.stdout is not None
        shown = [process.stdout.readline().decode() for _ in range(3)]
        with path.open("a") as log:
            log.write(f"half {key[:9]}")
            log.flush()
            time.sleep(0.5)
            log.write(f"{key[9:]} whole\nno end: {key}")
        shown.append(process.stdout.readline().decode())
        emberd("stop")
        rest = process.communicate(timeout=20)[0].decode()
    assert shown[0] == "a line with *** in it\n"
    assert shown[1] == "ServerArgs(api_key=***, port=1)\n"
    assert shown[2] == f"{kept}\n"
    assert shown[3] == "half *** whole\n"
    assert rest.splitlines()[0].startswith("no end: ***")


def test_bytes_of_the_log_that_are_no_text_are_shown_as_they_are(emberd: Command) -> None:
    emberd("up", *stub())
    path = Path(emberd("logs", "--path").out.strip())
    path.write_bytes(b"caf\xe9 10%\r20%\r100%\n")
    with emberd.begin("logs") as process:
        assert process.communicate()[0] == b"caf\xe9 10%\r20%\r100%\n"


def test_following_survives_that_the_log_is_shortened(emberd: Command) -> None:
    emberd("up", *stub())
    path = Path(emberd("logs", "--path").out.strip())
    flood = "".join(f"line {number:08} {'x' * 100}\n" for number in range(100_000))
    with path.open("a") as log:
        log.write("the last known line\n")
    with emberd.begin("logs", "--follow", "-n", "1") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"the last known line\n"
        with path.open("a") as log:
            log.write(flood)
            log.write("before\n")
        while (line := process.stdout.readline()) != b"before\n":
            assert line, process.stderr and process.stderr.read()
        waiting.until(lambda: path.stat().st_size < 10 << 20)  # the supervisor did
        with path.open("a") as log:
            log.write("after\n")
        assert process.stdout.readline() == b"after\n"
        emberd("stop")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "server.log"
    path.write_text("".join(f"line {number}\n" for number in range(1000)))
    return path


def test_log_that_becomes_shorter_between_two_readings_is_followed(log: Path) -> None:
    with log.open("rb") as file:
        follower = logs.Follower(file, logs._tail(file, 1)[1])
        for rest in (b"a few lines\n", b"", b"line\n" * 2000, b"short\n"):
            log.write_bytes(rest)
            assert follower.read() == rest
            with log.open("ab") as writer:
                writer.write(b"more\n")
            assert (follower.read(), follower.read()) == (b"more\n", b"")


def test_log_that_becomes_shorter_while_it_is_read_is_followed(log: Path) -> None:
    """What was read is known, although it is in the file no more."""
    with log.open("rb") as file:
        follower = logs.Follower(file, logs._tail(file, 1)[1])
        with log.open("ab") as writer:
            writer.write(b"new\n")
        assert follower.read() == b"new\n"
        content = log.read_bytes()
        log.write_bytes(content[:100] + content[-5000:])
        assert follower.read() == b""
        with log.open("ab") as writer:
            writer.write(b"newer\n")
        assert follower.read() == b"newer\n"


def test_following_shows_no_line_twice_if_the_log_becomes_shorter_at_once(log: Path) -> None:
    with log.open("rb") as file:
        last, mark = logs._tail(file, 3)
        content = log.read_bytes()
        log.write_bytes(content[:100] + content[-5000:])
        assert logs.Follower(file, mark).read() == b""
    assert last == b"line 997\nline 998\nline 999\n"


def test_after_a_flood_all_that_was_kept_is_shown(log: Path) -> None:
    with log.open("rb") as file:
        follower = logs.Follower(file, logs._tail(file, 0)[1])
        kept = b"emberd: 5000 bytes of this log were removed here\nkept\n"
        log.write_bytes(b"head\n" + kept)
        assert follower.read() == kept


def test_of_several_servers_the_running_one_is_shown(emberd: Command) -> None:
    emberd("up", *stub("runs"))
    emberd("up", *stub("fails", faults="dies-at-start"))
    shown = emberd("logs")
    assert "no memory left" not in shown.out
    assert shown.err == "Showing the log of stub/runs (ready). Pass --model to show another.\n"
    other = emberd("logs", "--model", "stub/fails?faults=dies-at-start")
    assert "no memory left" in other.out


def test_a_reader_that_leaves_ends_the_command_quietly(emberd: Command) -> None:
    emberd("up", *stub())
    path = Path(emberd("logs", "--path").out.strip())
    with emberd.begin("logs", "--follow") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        waiting.until(lambda: _write(path) and process.poll() is not None)
        assert process.stderr is not None
        assert (process.returncode, process.stderr.read()) == (1, b"")


def _write(path: Path) -> bool:
    with path.open("a") as log:
        log.write("more\n")
    return True


def test_what_was_read_is_found_again_although_the_log_has_grown_past_it(tmp_path: Path) -> None:
    """A reader that was blocked sees a log that was shortened and is longer again."""
    path = tmp_path / "server.log"
    path.write_bytes(b"".join(b"%d again\n" % (number % 2) for number in range(1000)) + b"last\n")
    with path.open("rb") as file:
        mark = logs._tail(file, 0)[1]
        follower = logs.Follower(file, mark)
        with path.open("r+b") as other:
            other.truncate(0)
            other.write(b"head\n" + mark + b"0 again\n" * 5000)
        assert follower.read() == b"0 again\n" * 5000
        assert follower.read() == b""
