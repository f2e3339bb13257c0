"""An external server must be known to have what a spec pins, including the files of a folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import checkpoints_made
from emberd import model_files
from emberd.endpoint import Endpoint
from emberd.errors import NoEngineError
from emberd.manager import discovery
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager
from foreign import Foreign
from homes import QUICK
from stub_server import DIMENSIONS

pytestmark = pytest.mark.usefixtures("no_default_port")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder."""
    return _write(tmp_path / "model", "one training")


@pytest.fixture
def changed_later() -> Iterator[pytest.MonkeyPatch]:
    """Files that changed a minute from now: no user can set the time that the kernel keeps."""
    real = model_files.changed_s
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_files, "changed_s", lambda name: real(name) + 60)
        yield patch


def _write(folder: Path, about: str) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"hidden_size": DIMENSIONS, "about": about}
    (folder / "config.json").write_text(json.dumps(config))
    return checkpoints_made.write_modules(folder)


def _wanted(folder: Path) -> ServerSpec:
    return ServerSpec(model=os.fspath(folder), content=model_files.content_hash(os.fspath(folder)))


def test_a_server_of_the_same_folder_is_adopted(
    manager: Manager, foreign: Foreign, folder: Path
) -> None:
    url, _ = foreign(model=os.fspath(folder))
    assert manager.ensure(_wanted(folder)).endpoint.url == url
    assert manager.ensure(_wanted(folder)).origin == "found"  # from the record


def test_a_server_of_a_folder_that_its_engine_pools_otherwise_is_not_adopted(
    manager: Manager, foreign: Foreign, folder: Path
) -> None:
    checkpoints_made.write_modules(folder, pooling={"pooling_mode": "mean"})
    foreign(model=os.fspath(folder))
    assert manager.find(_wanted(folder)) is None
    checkpoints_made.write_modules(folder)
    foreign(model=os.fspath(folder))
    assert manager.find(_wanted(folder)) is not None


def test_a_server_of_a_link_or_a_copy_is_adopted(
    manager: Manager, foreign: Foreign, folder: Path, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(folder)
    url, process = foreign(model=os.fspath(link))
    assert manager.ensure(_wanted(folder)).endpoint.url == url
    process.kill()
    process.wait()
    copy = shutil.copytree(folder, tmp_path / "copy")
    url, _ = foreign(model=os.fspath(copy))
    assert manager.ensure(_wanted(folder)).endpoint.url == url


def test_a_server_of_another_folder_with_the_same_last_name_is_not_adopted(
    manager: Manager, foreign: Foreign, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = _write(tmp_path / "other" / "model", "another training")
    foreign(model=os.fspath(other))
    with pytest.raises(NoEngineError, match=f"serves {other}, but {folder} was requested"):
        manager.ensure(_wanted(folder))


def test_a_server_that_was_started_before_the_files_changed_is_not_adopted(
    manager: Manager, foreign: Foreign, folder: Path, changed_later: pytest.MonkeyPatch
) -> None:
    url, _ = foreign(model=os.fspath(folder))
    with pytest.raises(NoEngineError, match="was started before the files of .* changed"):
        manager.ensure(_wanted(folder))
    changed_later.undo()
    assert manager.ensure(_wanted(folder)).endpoint.url == url


def test_a_remembered_server_is_not_used_once_the_files_have_changed(
    manager: Manager, foreign: Foreign, folder: Path, request: pytest.FixtureRequest
) -> None:
    foreign(model=os.fspath(folder))
    manager.ensure(_wanted(folder))
    # Changed and changed back: the same files as then, in a server of neither.
    request.getfixturevalue("changed_later")
    with pytest.raises(NoEngineError, match="was started before"):
        manager.ensure(_wanted(folder))


def test_a_path_that_is_none_here_is_not_adopted_and_may_be_given(
    manager: Manager, foreign: Foreign, folder: Path
) -> None:
    """A container's path: its last name is right, and proves nothing of the files."""
    url, _ = foreign(model="/models/model")
    with pytest.raises(NoEngineError, match="Pass it as base_url"):
        manager.ensure(_wanted(folder))
    assert manager.ensure(_wanted(folder), base_url=url).endpoint.url == url


def test_a_server_elsewhere_shows_no_files(folder: Path) -> None:
    said = discovery.pinned_mismatch(Endpoint("http://embeddings.invalid", "?", 0), _wanted(folder))
    assert said is not None
    assert "does not prove that it serves the files" in said


def test_a_name_on_the_hub_pins_no_files(home: Path, foreign: Foreign) -> None:
    url, _ = foreign()
    assert Manager(home, timing=QUICK).ensure(ServerSpec(model="stub/foreign")).endpoint.url == url


def test_a_file_whose_time_was_set_back_has_changed_all_the_same(folder: Path) -> None:
    before = model_files.changed_s(os.fspath(folder))
    os.utime(folder / "config.json", (0, 0))
    assert model_files.changed_s(os.fspath(folder)) >= before > 0
