"""An environment that another user can have changed is not run; the error says how to fix it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import other_user
import tiny_engine
from emberd.env import Places
from emberd.errors import StateFolderError
from emberd.installs import Installed, install, installed, locate
from other_user import needs_root

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def engines(tmp_path: Path) -> Places:
    """A folder of environments that every user could reach."""
    return tiny_engine.places(other_user.reachable(tmp_path) / "engines")


PLACES: dict[str, Callable[[Installed], Path]] = {
    "folder-of-all": lambda own: Path(own.folder).parent,
    "folder": lambda own: Path(own.folder),
    "marker": lambda own: Path(own.folder, "emberd.json"),
    "settings": lambda own: Path(own.folder, "pyvenv.cfg"),
    "programs": lambda own: Path(own.python).parent,
    "packages": lambda own: Path(own.packages),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", [0o757, pytest.param(0o775, marks=needs_root)])
def test_environment_that_others_can_write_is_refused_with_the_command_that_fixes_it(
    engines: Places, place: str, mode: int
) -> None:
    own = tiny_engine.make(Path(engines.engines))
    other_user.give_group(PLACES[place](own), mode) if mode & 0o020 else PLACES[place](own).chmod(
        mode
    )
    with pytest.raises(StateFolderError) as raised:
        locate("tiny", engines)
    subprocess.run(str(raised.value).partition("Run: ")[2], shell=True, check=True)
    assert locate("tiny", engines) is not None


@needs_root
@pytest.mark.parametrize("place", PLACES)
def test_environment_of_another_user_is_refused(engines: Places, place: str) -> None:
    own = tiny_engine.make(Path(engines.engines))
    other_user.give(PLACES[place](own))
    with pytest.raises(StateFolderError, match=f"belongs to user {other_user.OTHER}"):
        locate("tiny", engines)


@needs_root
def test_interpreter_of_another_user_is_refused(engines: Places, tmp_path: Path) -> None:
    own = tiny_engine.make(Path(engines.engines))
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    other_user.give(program)
    Path(own.python).unlink()
    Path(own.python).symlink_to(program)
    with pytest.raises(StateFolderError, match="its programs are not run"):
        locate("tiny", engines)


@needs_root
def test_environment_that_root_installed_is_used_by_all(engines: Places) -> None:
    tiny_engine.make(Path(engines.engines))

    def as_other() -> list[str]:
        return [own.version for own in installed(engines)]

    assert other_user.run_as(other_user.OTHER, as_other) == [tiny_engine.VERSION]


def test_pipe_in_place_of_the_marker_is_an_incomplete_environment(engines: Places) -> None:
    own = tiny_engine.make(Path(engines.engines))
    marker = PLACES["marker"](own)
    marker.unlink()
    os.mkfifo(marker)
    assert locate("tiny", engines) is None


def test_environment_that_is_installed_with_an_open_umask_is_used(
    index: dict[str, str], places: Places
) -> None:
    before = os.umask(0)
    try:
        own = install("tiny", places)
    finally:
        os.umask(before)
    found = locate("tiny", places)
    assert found is not None
    assert found.python == own.python
    open_to_all = [path for path in Path(own.folder).rglob("*") if path.lstat().st_mode & 0o022]
    assert [path for path in open_to_all if not path.is_symlink()] == []
