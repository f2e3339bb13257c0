"""Which interpreter runs an engine."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import tiny_engine
import tiny_wheels
from emberd.env import Places
from emberd.errors import SettingError
from emberd.installs import locate

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """Places where nothing is installed, and a PATH on which nothing is."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tiny_engine.places(tmp_path / "engines")


def environment(folder: Path, version: str | None) -> str:
    """Make an environment that holds the engine in some version; return its interpreter."""
    venv.create(folder, symlinks=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    if version is not None:
        tiny_wheels.unpacked(packages, "tinydist", version)
    return str(folder / "bin" / "python")


def script(folder: Path, head: str) -> Path:
    """Put the engine's program, which begins with ``head``, into a folder of the PATH."""
    folder.mkdir(exist_ok=True)
    program = folder / "tinyprogram"
    program.write_text(f"{head}\nimport tinydist\n")
    program.chmod(0o755)
    return program


def test_nothing_installed_gives_none(nowhere: Places) -> None:
    assert locate("tiny", nowhere) is None


@pytest.mark.parametrize("named", ["python", "folder", "~"])
def test_the_variable_names_an_interpreter_or_an_environment(
    nowhere: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    tiny_engine.make(Path(nowhere.engines))
    python = environment(tmp_path / "mine", "0.9")
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"python": python, "folder": str(tmp_path / "mine"), "~": "~/mine"}[named]
    monkeypatch.setenv("EMBERD_TINY_PYTHON", given)
    found = locate("tiny", nowhere)
    assert found is not None
    assert (found.python, found.version) == (python, "0.9")
    assert found.packages == str(next((tmp_path / "mine").glob("lib/python*/site-packages")))
    assert found.why == "set by EMBERD_TINY_PYTHON"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (None, "there is no program"),
        ("#!/bin/sh\nexit 0", "cannot be queried .it is not Python"),
        ("#!/bin/sh\necho broken >&2; exit 3", "cannot be queried .broken"),
        ("", "cannot be queried"),
    ],
)
def test_a_variable_that_names_no_interpreter_is_refused(
    nowhere: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made: str | None,
    said: str,
) -> None:
    file = tmp_path / "python"
    if made is not None:
        file.write_text(made)
        file.chmod(0o755)
    monkeypatch.setenv("EMBERD_TINY_PYTHON", str(file))
    with pytest.raises(SettingError, match=f"EMBERD_TINY_PYTHON.*{said}"):
        locate("tiny", nowhere)


def test_a_variable_that_names_a_python_without_the_engine_is_refused_with_the_next_command(
    nowhere: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBERD_TINY_PYTHON", environment(tmp_path / "mine", None))
    with pytest.raises(SettingError, match="has no tinydist.*emberd engine install tiny"):
        locate("tiny", nowhere)


def test_later_installation_is_found(
    nowhere: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = environment(tmp_path / "mine", "0.9")
    monkeypatch.setenv("EMBERD_TINY_PYTHON", python)
    first = locate("tiny", nowhere)
    assert first is not None
    packages = Path(first.packages)
    (packages / "tinydist-0.9.dist-info" / "METADATA").unlink()
    (packages / "tinydist-0.9.dist-info").rename(packages / "old")
    tiny_wheels.unpacked(packages, "tinydist", "1.0")
    second = locate("tiny", nowhere)
    assert (first.version, second and second.version) == ("0.9", "1.0")


def test_emberds_own_environment_comes_before_the_running_one_and_the_path(
    nowhere: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = environment(tmp_path / "other", "1.2")
    program = script(tmp_path / "bin", f"#!{python}")
    on_path = locate("tiny", nowhere)
    assert on_path is not None
    assert (on_path.python, on_path.version) == (python, "1.2")
    assert on_path.why == f"used by {program} on the PATH"

    tiny_wheels.unpacked(tmp_path / "running", "tinydist", "1.3")
    monkeypatch.syspath_prepend(str(tmp_path / "running"))
    importlib.invalidate_caches()
    running = locate("tiny", nowhere)
    assert running is not None
    assert (running.python, running.version) == (sys.executable, "1.3")
    assert running.packages == str(tmp_path / "running")

    own = tiny_engine.make(Path(nowhere.engines))
    found = locate("tiny", nowhere)
    assert found is not None
    assert (found.python, found.version, found.packages) == (own.python, "1.5", own.packages)
    assert found.why == "installed by `emberd engine install tiny`"


@pytest.mark.parametrize(
    "head",
    [
        "#!{python}",
        "#! {python} -E",
        "#!/bin/sh\n'''exec' {python} \"$0\" \"$@\"\n' '''",
        "#!/bin/sh\n'''exec' '{python}' \"$0\" \"$@\"\n' '''",
        "#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''",
        "#!/usr/bin/env python3",
    ],
    ids=["plain", "option", "long", "long of uv's", "long with spaces", "env"],
)
def test_interpreter_is_read_from_the_first_lines_of_a_program(
    nowhere: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    python = environment(tmp_path / "an environment", "1.2")
    if "exec" not in head:
        (tmp_path / "plain").symlink_to(tmp_path / "an environment")
        python = python.replace("an environment", "plain")
    script(tmp_path / "bin", head.format(python=python))
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), str(Path(python).parent)]))
    if "exec' {python}" in head:
        (tmp_path / "plain").symlink_to(tmp_path / "an environment")
        python = python.replace("an environment", "plain")
        script(tmp_path / "bin", head.format(python=python))
    found = locate("tiny", nowhere)
    assert found is not None
    assert Path(found.python).parent == Path(python).parent
    assert found.version == "1.2"


@pytest.mark.parametrize("head", ["#!/bin/bash", "#!/no/such/python3", "", "\x7fELF", "#!"])
def test_program_that_is_not_a_python_script_gives_none(
    nowhere: Places, tmp_path: Path, head: str
) -> None:
    script(tmp_path / "bin", head)
    assert locate("tiny", nowhere) is None


def test_second_query_is_cached(
    nowhere: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine is looked for at each start."""
    monkeypatch.setenv("EMBERD_TINY_PYTHON", environment(tmp_path / "mine", "0.9"))
    found = locate("tiny", nowhere)
    monkeypatch.setattr(subprocess, "run", None)
    assert locate("tiny", nowhere) == found
