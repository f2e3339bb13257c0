"""The folders of state: ours alone, or not used at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from emberd.errors import StateFolderError
from emberd.manager import paths
from emberd.manager.paths import Home
from emberd.system import ownership, processes


def test_path_names_boot_and_namespaces_of_pids_and_network_and_not_the_host(
    tmp_path: Path,
) -> None:
    machine = Home(tmp_path).machine
    assert machine.parent == tmp_path
    boot, pids, network = machine.name.split("-")
    assert processes.boot_id().replace("-", "").startswith(boot)
    assert Path("/proc/self/ns/pid").readlink().name == f"pid:[{pids}]"
    assert Path("/proc/self/ns/net").readlink().name == f"net:[{network}]"


def test_gpu_locks_are_shared_by_all_network_namespaces(tmp_path: Path) -> None:
    """They are locks on GPUs, which are the same in all of them."""
    assert Home(tmp_path).gpu_locks == tmp_path / processes.namespace() / "claims"


def test_path_of_a_kernel_without_namespaces_names_the_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(path: str) -> os.stat_result:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "stat", missing)
    assert processes.boot_id().replace("-", "").startswith(Home(tmp_path).machine.name)


def test_folders_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = ownership.make_private(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o700


def test_folders_with_other_names_are_passed_over(home: Path) -> None:
    (Home(home).servers / "-x").mkdir(parents=True)
    key = Home(home).server_folder("key")
    key.mkdir()
    assert Home(home).all_server_folders() == [key]
    assert Home(home).server_folders("key") == [key]


def test_missing_parents_are_private_too(tmp_path: Path) -> None:
    # Also one that another process has removed since this one made it.
    made = ownership.make_private(tmp_path / "machine" / "servers" / "key")
    for each in (made, *made.parents[:2]):
        ownership.make_private(each)


def test_folder_open_to_others_is_refused_with_the_command_to_fix_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(StateFolderError, match=f"chmod 700 {tmp_path / 'open'}"):
        ownership.make_private(tmp_path / "open")


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(StateFolderError, match="not a folder"):
        ownership.check_private(tmp_path / "link")


def test_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    tmp_path.chmod(0o700)
    with pytest.raises(StateFolderError, match="belongs to user"):
        ownership.check_private(tmp_path)


def test_error_names_the_variable_if_the_folder_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFolderError, match="EMBERD_HOME"):
        ownership.make_private(tmp_path / "file" / "home")


def test_server_folders_of_an_identity_are_sorted(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for folder in (
        home.server_folder("k"),
        home.server_folder("k", 2),
        home.server_folder("other"),
    ):
        folder.mkdir(parents=True)
    assert home.server_folders("k") == [home.server_folder("k"), home.server_folder("k", 2)]
    assert home.free_server_folder("k", taken=[home.server_folder("k")]) == home.server_folder(
        "k", 2
    )
    assert home.free_server_folder("k", taken=[]) == home.server_folder("k")


def test_each_start_has_a_log_of_its_own_that_names_it_and_old_ones_are_kept(
    tmp_path: Path,
) -> None:
    for number in range(6):
        paths.rotate_log(tmp_path, f"start_id{number}")
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["server.log", "server.log.1", "server.log.2", "server.log.3"]
    assert (tmp_path / "server.log").read_text() == "emberd: start start_id5\n"
    assert (tmp_path / "server.log.3").read_text() == "emberd: start start_id2\n"
    assert stat.S_IMODE((tmp_path / "server.log").stat().st_mode) == 0o600
