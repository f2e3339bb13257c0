"""Code of a model that another user can have written is not run by ``--trust-remote-code``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import other_user
from emberd import installs
from emberd.engines import Launch
from emberd.engines.sglang import ENGINE, support
from emberd.errors import StateFolderError
from emberd.installs import Interpreter
from emberd.settings import ServerSpec, StartOptions
from other_user import needs_root


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of the hub's client."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_MODULES_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with code, also in a subfolder."""
    folder = tmp_path / "model"
    for file in ("modeling.py", "inner/more.py", "config.json"):
        (folder / file).parent.mkdir(exist_ok=True, parents=True, mode=0o755)
        (folder / file).write_text("{}")
        (folder / file).chmod(0o644)
    return folder


@pytest.mark.parametrize("path", ["", "inner", "modeling.py", "inner/more.py"])
def test_code_that_others_can_write_is_refused_with_the_command_that_fixes_it(
    model: Path, path: str
) -> None:
    support.check_code(str(model), None)
    (model / path).chmod((model / path).stat().st_mode | 0o002)
    with pytest.raises(StateFolderError) as raised:
        support.check_code(str(model), None)
    assert os.system(str(raised.value).partition("Run: ")[2]) == 0
    support.check_code(str(model), None)


def test_weights_and_settings_are_no_code(model: Path) -> None:
    (model / "config.json").chmod(0o666)
    support.check_code(str(model), None)


@needs_root
def test_code_of_another_user_is_refused(model: Path) -> None:
    other_user.give(model / "modeling.py")
    with pytest.raises(StateFolderError, match=str(other_user.OTHER)):
        support.check_code(str(model), None)


@needs_root
def test_code_that_root_installed_is_accepted(model: Path) -> None:
    other_user.reachable(model)
    assert other_user.run_as(other_user.OTHER, lambda: support.check_code(str(model), None)) is None


def test_file_behind_a_link_of_the_hubs_cache_is_checked(hub: Path) -> None:
    root = hub / "hub" / "models--a--b"
    for folder in ("blobs", "refs", "snapshots/c1"):
        (root / folder).mkdir(parents=True, mode=0o755)
    (root / "refs" / "main").write_text("c1")
    blob = root / "blobs" / "b1"
    blob.write_text("code")
    (root / "snapshots" / "c1" / "modeling.py").symlink_to("../../blobs/b1")
    support.check_code("a/b", None)
    for wrong in (blob, blob.parent, root / "refs"):
        before = wrong.stat().st_mode
        wrong.chmod(before | 0o002)
        with pytest.raises(StateFolderError):
            support.check_code("a/b", None)
        wrong.chmod(before)


def test_copies_that_are_imported_are_checked(model: Path, hub: Path) -> None:
    copy = hub / "modules" / "transformers_modules" / "model"
    copy.mkdir(parents=True)
    (copy / "modeling.py").write_text("code")
    support.check_code(str(model), None)
    (copy / "modeling.py").chmod(0o666)
    with pytest.raises(StateFolderError, match="modules"):
        support.check_code(str(model), None)


@pytest.mark.parametrize(
    ("arguments", "is_refused"),
    [
        (("--trust-remote-code",), True),
        (("--trust-rem",), True),
        (("--schedule-policy", "fcfs"), False),
        ((), False),
    ],
)
def test_start_is_refused_only_if_it_would_run_the_code(
    model: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], is_refused: bool
) -> None:
    version = installs.RECIPES["sglang"].version
    found = Interpreter("/engines/python", version, "/engines/packages", "a test says so")
    monkeypatch.setattr(installs, "locate", lambda *_: found)
    (model / "modeling.py").chmod(0o666)
    launch = Launch(
        1, "key", "stamp", "/state", StartOptions(arguments=arguments), home="/home-of-it"
    )
    spec = ServerSpec(str(model), device="cpu")
    if not is_refused:
        ENGINE.plan(spec, launch)
        return
    with pytest.raises(StateFolderError, match=r"modeling\.py"):
        ENGINE.plan(spec, launch)
