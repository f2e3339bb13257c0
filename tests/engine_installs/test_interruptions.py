"""Kills, interrupts and concurrent installations leave nothing incomplete."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import leftovers
import tiny_engine
import tiny_wheels
import waiting
from emberd.env import Places
from emberd.errors import InstallError
from emberd.installs import install, installed, lock_holder, remove, sites

_PATIENCE_S = 60.0  # an environment with its own pip, on a busy machine

pytestmark = pytest.mark.usefixtures("index")


@pytest.fixture
def slow(places: Places, wheels: Path) -> Places:
    """Places where pip builds the engine's distribution until ``go`` is there."""
    shutil.rmtree(wheels)
    wheels.mkdir()
    tiny_wheels.slow_source(wheels, "tinydist", tiny_engine.VERSION)
    return places


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"it ended with {process.wait()} and did not say {text!r}")


def _number_in(path: Path) -> int:
    # The file is there before its content is.
    return int(waiting.until(lambda: path.exists() and path.read_text(), _PATIENCE_S))


def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.usefixtures("no_uv")
def test_a_pip_of_the_environment_ends_with_the_installing_process(
    slow: Places, tmp_path: Path, index: dict[str, str]
) -> None:
    _end_while_it_builds(slow, tmp_path, index, signal.SIGKILL)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_uv_and_what_it_started_end_with_the_installing_process(
    slow: Places, tmp_path: Path, index: dict[str, str], signum: signal.Signals
) -> None:
    _end_while_it_builds(slow, tmp_path, index, signum)
    (tmp_path / "go").touch()
    done = install("tiny", slow)
    assert installed(slow) == [done]
    assert not (Path(slow.engines) / "tiny-1.5.tmp").exists()


def _end_while_it_builds(
    slow: Places, tmp_path: Path, index: dict[str, str], signum: signal.Signals
) -> None:
    with tiny_engine.begin("install", Path(slow.engines), index) as process:
        builder = _number_in(tmp_path / "building")
        process.send_signal(signum)
        process.communicate(timeout=10)
    assert process.returncode != 0
    waiting.until(lambda: _is_gone(builder))
    waiting.until(lambda: not leftovers.find([str(tmp_path)]))
    assert installed(slow) == []
    # Only an interrupted one has the time to remove what it had made.
    left = [] if signum == signal.SIGINT else ["tiny-1.5"]
    assert [place.folder.name for place in sites(slow)] == left


@pytest.mark.parametrize("moment", ["venv", "before the mark"])
def test_killed_at_other_moments_the_next_one_succeeds(
    places: Places, tmp_path: Path, index: dict[str, str], moment: str
) -> None:
    verb = "install" if moment == "venv" else "stand-before-the-mark"
    folder = Path(places.engines) / "tiny-1.5"
    with tiny_engine.begin(verb, Path(places.engines), index) as process:
        if moment == "venv":
            waiting.until((folder / "bin").exists)
        else:
            _read_until(process, "standing")
        process.kill()
        process.communicate(timeout=10)
    assert installed(places) == []
    assert install("tiny", places).is_usable


def test_second_installer_waits_and_finds_it_installed(
    slow: Places, tmp_path: Path, index: dict[str, str]
) -> None:
    engines = Path(slow.engines)
    with tiny_engine.begin("install", engines, index) as first:
        _number_in(tmp_path / "building")
        assert lock_holder(slow, "tiny") == f"process {first.pid}"
        with pytest.raises(InstallError, match=f"installed or removed by process {first.pid}"):
            remove("tiny", slow)
        with tiny_engine.begin("install", engines, index) as second:
            line = _read_until(second, "waiting for")
            assert line == f"waiting for process {first.pid}, which installs or removes tiny\n"
            (tmp_path / "go").touch()
            assert first.communicate(timeout=60)[0].endswith("done\n")
            made = installed(slow)
            assert second.communicate(timeout=60)[0] == "done\n"
    assert (first.returncode, second.returncode) == (0, 0)
    assert installed(slow) == made
    assert lock_holder(slow, "tiny") is None


def test_processes_of_a_dead_installer_are_killed_first(places: Places, tmp_path: Path) -> None:
    folder = Path(places.engines) / "tiny-1.5"
    marked = {"EMBERD_MARK": f"{folder}:install"}
    with subprocess.Popen(["/bin/sleep", "60"], env=marked) as stray:
        install("tiny", places)
        stray.wait(timeout=5)  # of its 60 s


def test_an_environment_that_a_process_runs_from_is_not_removed(
    places: Places, tmp_path: Path
) -> None:
    done = tiny_engine.make(Path(places.engines))
    code = "print('up', flush=True); import time; time.sleep(60)"
    with subprocess.Popen([done.python, "-c", code], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            with pytest.raises(InstallError, match=rf"in use by process {server.pid} \("):
                remove("tiny", places)
            assert installed(places) == [done]
        finally:
            server.kill()
    assert remove("tiny", places) == done


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux shows what is mapped")
def test_renamed_process_is_found_by_its_loaded_libraries(places: Places) -> None:
    """A scheduler of SGLang's has neither the path of its program nor its command line left."""
    done = tiny_engine.make(Path(places.engines))
    library = Path(done.folder) / "library.so"
    library.write_bytes(b"x" * 4096)
    code = (
        f"import mmap, sys; file = open({str(library)!r}, 'rb')\n"
        "held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "sys.stdout.write('up\\n'); sys.stdout.flush(); sys.stdin.read()"
    )
    command = ["sglang::scheduler", "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, executable=sys.executable, stdin=pipe, stdout=pipe) as part:
        assert part.stdout is not None
        part.stdout.readline()
        try:
            with pytest.raises(InstallError, match=f"in use by process {part.pid}"):
                remove("tiny", places)
        finally:
            part.kill()


def test_kill_during_removal_leaves_nothing_that_looks_complete(
    places: Places, tmp_path: Path, index: dict[str, str]
) -> None:
    tiny_engine.make(Path(places.engines))
    with tiny_engine.begin("stand-while-removing", Path(places.engines), index) as process:
        _read_until(process, "standing")
        process.kill()
        process.communicate(timeout=10)
    assert installed(places) == []
    assert [place.folder.name for place in sites(places)] == ["tiny-1.5"]
    assert remove("tiny", places) is None
    assert sites(places) == []
