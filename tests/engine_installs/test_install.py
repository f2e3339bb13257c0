"""Installation with real environments and a real pip, from wheels on the disk."""

from __future__ import annotations

import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny_engine
import tiny_wheels
from emberd.env import Places
from emberd.errors import InstallError, SettingError, StateFolderError
from emberd.installs import install, installed, locate, recipes, remove, sites
from emberd.system import disk_space

pytestmark = pytest.mark.usefixtures("index")


def test_an_engine_is_installed_once_and_then_removed(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = '#!/bin/sh\necho "error: dns error" >&2\nexit 2\n'
    monkeypatch.setenv("PATH", tiny_engine.path_with_uv(tmp_path / "failing", failing))
    # What would break pip in the environment: none of it may reach pip.
    for name, text in {
        "PYTHONPATH": str(tmp_path / "elsewhere"),
        "PYTHONWARNINGS": "error",
        "PIP_TARGET": str(tmp_path / "elsewhere"),
        "PIP_USER": "1",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "VIRTUAL_ENV": str(tmp_path / "elsewhere"),
    }.items():
        monkeypatch.setenv(name, text)
    said: list[str] = []
    done = install("tiny", places, said.append)

    imported = [done.python, "-c", "import tinydist; print(tinydist.__file__)"]
    where = subprocess.run(imported, capture_output=True, text=True, check=True, env={}).stdout
    assert where.strip() == f"{done.packages}/tinydist.py"
    assert Path(done.folder) == Path(places.engines) / "tiny-1.5"
    assert done.packages.startswith(done.folder)
    assert not (tmp_path / "elsewhere").exists()
    assert done.bytes == pytest.approx(disk_space.used_bytes(Path(done.folder)), rel=0.01)
    assert any(text.startswith("installing tiny 1.5: ") for text in said)
    assert "uv could not install tiny 1.5 (the package index does not answer); trying pip" in said
    log = Path(f"{done.folder}.log")
    assert "venv --no-project --python" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "Successfully installed tinydist-1.5" in log.read_text()
    assert sorted(path.name for path in Path(places.engines).iterdir()) == [
        *("tiny-1.5", "tiny-1.5.log", "tiny.lock")
    ]

    said.clear()
    assert install("tiny", places, said.append) == done
    assert said == []
    assert installed(places) == [done]
    found = locate("tiny", places)
    assert found is not None
    assert (found.python, found.version, found.packages) == (done.python, "1.5", done.packages)

    assert remove("tiny", places) == done
    assert installed(places) == []
    assert [path.name for path in Path(places.engines).iterdir()] == ["tiny.lock"]
    assert remove("tiny", places) is None


def test_other_version_than_the_pinned_one_is_refused(
    places: Places, tiny: recipes.Recipe, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_wheels.wheel(wheels, "tinydist", "1.4")
    loose = replace(tiny, requirements=("tinydist<1.5",))
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": loose})
    with pytest.raises(
        InstallError, match=r"tinydist 1\.5 was requested, but 1\.4 was installed"
    ) as info:
        install("tiny", places)
    assert info.value.log_path == f"{places.engines}/tiny-1.5.log"
    assert installed(places) == []
    assert sites(places) == []


def test_missing_module_is_reported(
    places: Places, tiny: recipes.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = replace(tiny, modules=("tinydist", "heavy"))
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": more})
    with pytest.raises(InstallError, match="heavy cannot be imported afterwards"):
        install("tiny", places)
    assert installed(places) == []


@pytest.mark.usefixtures("no_uv")
def test_unreachable_index_is_reported(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://somebody:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises(InstallError, match="the package index does not answer") as info:
        install("tiny", places)
    assert "secret" not in str(info.value)


def test_too_small_disk_is_refused_before_the_installation(
    places: Places, tiny: recipes.Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage("/").free
    huge = replace(tiny, bytes=free, download_bytes=free)
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": huge})
    with pytest.raises(InstallError, match=r"needs .* GB on the disk of .*engines .* GB are free"):
        install("tiny", places)
    assert sites(places) == []


@pytest.mark.parametrize(
    ("free", "kept"),
    [(1_150 + 500 + 500, True), (1_150 + 500, False), (1_150 + 499, None)],
)
def test_downloads_are_kept_if_the_disk_has_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, kept: bool | None
) -> None:
    asked: list[Path] = []

    def usage(folder: Path) -> Any:
        asked.append(folder)
        return SimpleNamespace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    recipe = tiny_engine.recipe(bytes=1_000, download_bytes=500)
    engines = tmp_path / "not" / "there"
    if kept is None:
        with pytest.raises(InstallError, match="EMBERD_ENGINES"):
            recipes.check_disk_space(recipe, engines)
    else:
        assert recipes.check_disk_space(recipe, engines) is kept
    assert asked == [tmp_path]


def test_full_disk_is_reported(places: Places, wheels: Path, tmp_path: Path) -> None:
    shutil.rmtree(wheels)
    wheels.mkdir()
    tiny_wheels.slow_source(wheels, "tinydist", "1.5")
    (tmp_path / "full").touch()
    (tmp_path / "go").touch()
    with pytest.raises(InstallError, match="could not be installed: the disk is full"):
        install("tiny", places)
    assert not (Path(places.engines) / "tiny-1.5.tmp").exists()


def test_pip_is_not_tried_on_a_full_disk(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = '#!/bin/sh\necho "No space left on device (os error 28)"\nexit 2\n'
    monkeypatch.setenv("PATH", tiny_engine.path_with_uv(tmp_path / "failing", failing))
    with pytest.raises(InstallError, match="the disk is full"):
        install("tiny", places)
    assert sites(places) == []


def test_file_in_place_of_the_folder_is_reported(places: Places) -> None:
    Path(places.engines).touch()
    with pytest.raises(StateFolderError, match="is not a folder"):
        install("tiny", places)


def test_folder_writable_by_everyone_is_refused(places: Places) -> None:
    engines = Path(places.engines)
    engines.mkdir()
    engines.chmod(0o777)
    for use in (install, locate, remove):
        with pytest.raises(StateFolderError, match="chmod go-w"):
            use("tiny", places)


@pytest.mark.parametrize("use", [install, locate, remove])
def test_engine_without_a_recipe_is_refused(use: Any, places: Places) -> None:
    with pytest.raises(SettingError, match="'nothing'.*one of tiny"):
        use("nothing", places)


@pytest.mark.parametrize("change", ["its Python is gone", "the recipe asks for more"])
def test_outdated_environment_is_reinstalled(places: Places, change: str) -> None:
    old = tiny_engine.make(Path(places.engines))
    assert install("tiny", places) == old
    if change == "its Python is gone":
        Path(old.python).unlink()
        Path(old.python).symlink_to("/no/such/python")
        assert locate("tiny", places) is None
    else:
        marker = Path(old.folder) / "emberd.json"
        marker.write_text(marker.read_text().replace("tinydist==1.5", "tinydist"))
    done = install("tiny", places)
    assert done.is_usable
    assert done.requirements == ("tinydist==1.5",)
    assert install("tiny", places) == done


def test_unreadable_marker_means_incomplete(places: Places) -> None:
    own = tiny_engine.make(Path(places.engines))
    assert installed(places) == [own]
    for text in ("", "{", "[]", '{"schema": 2}', '{"schema": 1}'):
        (Path(own.folder) / "emberd.json").write_text(text)
        assert installed(places) == []


def test_moved_environments_are_found(places: Places, tmp_path: Path) -> None:
    tiny_engine.make(Path(places.engines))
    Path(places.engines).rename(tmp_path / "volume")
    found = locate("tiny", tiny_engine.places(tmp_path / "volume"))
    assert found is not None
    assert (found.version, Path(found.python).exists()) == ("1.5", True)
    assert (Path(found.packages) / "tinydist.py").exists()
