"""A damaged or foreign environment of one engine concerns that engine only, and can be removed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import other_user
import tiny_engine
from emberd import engines as all_engines
from emberd.doctor.engines import EngineEnvironment, environments
from emberd.engines.base import EnvironmentEngine
from emberd.env import Places
from emberd.errors import InstallError, StateFolderError
from emberd.installs import (
    Installed,
    install,
    installed,
    locate,
    lock_holder,
    recipes,
    remove,
    sites,
)
from emberd.settings import ServerSpec
from other_user import needs_root

OTHER = "other"


@pytest.fixture(autouse=True)
def _two(monkeypatch: pytest.MonkeyPatch, tiny: recipes.Recipe) -> None:
    """The tiny engine, and another one that is in order."""
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": tiny, OTHER: replace(tiny, name=OTHER)})
    monkeypatch.delenv("EMBERD_TINY_PYTHON", raising=False)


@pytest.fixture
def engines(tmp_path: Path, index: dict[str, str], places: Places) -> Places:
    """A folder with an environment of each engine, that every user could reach."""
    other_user.reachable(tmp_path)
    own = tiny_engine.make(Path(places.engines))
    folder = Path(own.folder)
    made = tiny_engine.make(tmp_path / "made")
    Path(made.folder).rename(folder.with_name(f"{OTHER}-1.5"))
    return places


def _rewrite(own: Installed, **changes: object) -> None:
    marker = Path(own.folder, "emberd.json")
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **changes}))


def _replace(path: Path, target: str | None) -> None:
    path.rename(path.with_name(f"{path.name}-before"))
    if target is None:
        path.touch()
    else:
        path.symlink_to(target)


DAMAGE: dict[str, Callable[[Installed], object]] = {
    "interpreter is a link to itself": lambda own: _replace(Path(own.python), "python"),
    "interpreter is below a file": lambda own: _replace(Path(own.python), "../pyvenv.cfg/python"),
    "bin is a file": lambda own: _replace(Path(own.python).parent, None),
    "no packages": lambda own: Path(own.packages).rename(f"{own.packages}-before"),
    "no pyvenv.cfg": lambda own: Path(own.folder, "pyvenv.cfg").unlink(),
    "null byte in packages": lambda own: _rewrite(own, packages="lib\0"),
    "packages are a link to themselves": lambda own: _replace(
        Path(own.packages), Path(own.packages).name
    ),
    "a number as version": lambda own: _rewrite(own, version=1),
    "text as size": lambda own: _rewrite(own, bytes="large"),
    "infinite size": lambda own: _rewrite(own, bytes=float("inf")),
    "no time": lambda own: _rewrite(own, installed_at=None),
    "numbers as requirements": lambda own: _rewrite(own, requirements=[1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_environment_is_not_used_and_is_removed_or_installed_again(
    engines: Places, damage: str
) -> None:
    before = installed(engines)
    DAMAGE[damage](next(own for own in before if own.name == "tiny"))
    other = [own for own in before if own.name == OTHER]

    assert locate("tiny", engines) is None
    found = locate(OTHER, engines)
    assert found is not None
    assert found.python == other[0].python
    assert installed(engines, OTHER) == other
    assert [own for own in installed(engines) if own.is_usable] == other
    assert [row.state for row in _rows(engines, OTHER)] == ["installed"]
    assert [row.state for row in _rows(engines, "tiny")] in (["broken"], ["unfinished"])

    assert install("tiny", engines).is_usable
    assert installed(engines) == [*other, *installed(engines, "tiny")]
    DAMAGE[damage](installed(engines, "tiny")[0])
    remove("tiny", engines)
    assert sites(engines, "tiny") == []
    assert installed(engines) == other


def _rows(places: Places, name: str) -> list[EngineEnvironment]:
    return list(environments(recipes.RECIPES[name], places))


UNTRUSTED: dict[str, Callable[[Installed], Path]] = {
    "folder": lambda own: Path(own.folder),
    "marker": lambda own: Path(own.folder, "emberd.json"),
    "packages": lambda own: Path(own.packages),
}


@pytest.mark.parametrize("place", UNTRUSTED)
def test_environment_that_others_can_write_is_refused_for_its_engine_only(
    engines: Places, place: str
) -> None:
    own = next(each for each in installed(engines) if each.name == "tiny")
    UNTRUSTED[place](own).chmod(0o757)
    with pytest.raises(StateFolderError):
        locate("tiny", engines)
    assert locate(OTHER, engines) is not None
    assert [row.state for row in _rows(engines, OTHER)] == ["installed"]
    assert [row.state for row in _rows(engines, "tiny")] == ["unusable"]
    assert "chmod" in _rows(engines, "tiny")[0].detail
    assert remove("tiny", engines) == own
    assert sites(engines, "tiny") == []


def test_engine_whose_environment_is_refused_leaves_the_model_to_the_next_engine(
    engines: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Tiny(EnvironmentEngine):
        product = "Tiny"

        def __init__(self, name: str) -> None:
            self.name = name

        def _why_not_here(self, _: ServerSpec) -> str | None:
            return None

        def _why_not_version(self, _: str, __: ServerSpec) -> str | None:
            return None

    monkeypatch.setattr(all_engines, "NAMES", tuple(recipes.RECIPES))
    monkeypatch.setattr(all_engines, "load", Tiny)
    monkeypatch.setenv("EMBERD_ENGINES", engines.engines)
    own = next(each for each in installed(engines) if each.name == "tiny")
    Path(own.folder).chmod(0o757)
    choice = all_engines.explain(ServerSpec("a/model"))
    assert choice.engine is not None
    assert choice.engine.name == OTHER
    assert "chmod" in choice.refusals["tiny"]
    assert choice.installable is None


def _run_by(own: Installed, program: Path) -> None:
    """Change an environment's interpreter: the one of the tests may be below root's home."""
    Path(own.python).unlink()
    Path(own.python).symlink_to(program)


@needs_root
def test_python_that_only_root_can_reach_is_a_broken_environment_to_others(
    engines: Places, tmp_path: Path
) -> None:
    own = next(each for each in installed(engines) if each.name == "tiny")
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    program = private / "python"
    program.symlink_to("/bin/sh")
    _run_by(own, program)
    _run_by(next(each for each in installed(engines) if each.name == OTHER), Path("/bin/sh"))

    def as_other() -> tuple[object, bool, list[str]]:
        is_there = locate(OTHER, engines) is not None
        return locate("tiny", engines), is_there, [row.state for row in _rows(engines, "tiny")]

    assert other_user.run_as(other_user.OTHER, as_other) == (None, True, ["broken"])


@needs_root
@pytest.mark.parametrize("mode", [0o700, 0o711])
def test_folder_of_all_that_cannot_be_read_is_an_error_that_says_so(
    engines: Places, mode: int
) -> None:
    Path(engines.engines).chmod(mode)

    def as_other() -> list[object]:
        found: list[object] = [[row.state for row in _rows(engines, "tiny")]]
        for call in (locate, install, remove):
            try:
                call("tiny", engines)
            except StateFolderError as error:
                found.append(engines.engines in str(error))
        return found

    assert other_user.run_as(other_user.OTHER, as_other) == [["unusable"], True, True, True]


@needs_root
def test_folder_of_all_below_a_closed_folder_is_an_error_that_says_so(tmp_path: Path) -> None:
    other_user.reachable(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o700)
    engines = tiny_engine.places(tmp_path / "closed" / "engines")

    def as_other() -> bool:
        try:
            locate("tiny", engines)
        except StateFolderError as error:
            return engines.engines in str(error)
        return False

    assert other_user.run_as(other_user.OTHER, as_other)


@needs_root
def test_lock_of_another_user_does_not_hide_the_other_engines(engines: Places) -> None:
    """Root's locks are closed to others, who could otherwise keep root from installing."""
    own = next(each for each in installed(engines) if each.name == "tiny")
    Path(own.folder, "emberd.json").unlink()
    _run_by(installed(engines, OTHER)[0], Path("/bin/sh"))
    lock = Path(engines.engines, "tiny.lock")
    lock.touch(0o600)

    def as_other() -> tuple[list[EngineEnvironment], list[str]]:
        with pytest.raises(InstallError):
            lock_holder(engines, "tiny")
        return _rows(engines, "tiny"), [row.state for row in _rows(engines, OTHER)]

    rows, others = other_user.run_as(other_user.OTHER, as_other)
    assert [row.state for row in rows] == ["unusable"]
    assert str(lock) in rows[0].detail
    assert others == ["installed"]
