"""Whatever is lost or damaged in a state folder, at whatever moment, no call waits for it.

Each call ends within a bound, with a server that works or an `EmberdError`; what the error names is
then removed, and the next call gives a server. At the end nothing is left.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

import damage
import examined
import leftovers
import other_user
import waiting
from emberd.doctor import servers
from emberd.errors import EmberdError
from emberd.manager import discovery, locks, state
from emberd.manager.paths import LOG_NAME
from emberd.manager.state import Server
from emberd.settings import ServerSpec
from emberd.system import background
from emberd.verified_manager import Manager
from homes import Stub, begin
from plain_client import embed

BOUND_S: Final = 15.0


def _replace_by_dangling_link(file: Path) -> None:
    fresh = file.with_name("l")
    fresh.symlink_to("/nowhere/at/all")
    fresh.replace(file)


def _give(path: Path) -> None:
    if os.geteuid() == 0:  # others cannot
        other_user.give(path)


DAMAGES: Final[dict[str, damage.Damage]] = {
    **damage.OF_ANY_FILE,
    "dangling-link": _replace_by_dangling_link,
    "open-to-all": lambda file: file.chmod(0o666),
    "of-another-user": _give,
}
FILES: Final = (state.RECORD_NAME, "alive", "lock")
OTHER_FILES: Final = ("last-used", LOG_NAME, "secret.yaml", "suspect")
MOMENTS: Final = {
    "running": tuple(DAMAGES),
    **dict.fromkeys(("starting", "killed", "stopped"), ("missing", "fifo")),
}
# A server that runs gets one damage after the other; at other moments each damage costs two starts,
# so only files that are independent of one another are damaged together.
CASES: Final = [
    *(((name,), "running") for name in (*FILES, *OTHER_FILES)),
    *(
        (names, moment)
        for moment in MOMENTS
        if moment != "running"
        for names in (*((name,) for name in FILES), OTHER_FILES)
    ),
]


def bounded(call: Callable[[], Any]) -> Any:
    """Return what ``call`` returns, or the ``EmberdError`` that it raises; fail if it hangs."""
    future = background.run(call, "bounded")
    done, _ = futures.wait([future], BOUND_S)
    if not done:
        pytest.fail(f"no end after {BOUND_S:g} s")
    error = future.exception()
    if isinstance(error, EmberdError):
        assert ". " in str(error), f"no next step: {error!r}"
        return error
    return future.result()


@pytest.fixture
def calls(manager: Manager, home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What is asked of a damaged folder, in turn; with ``goes_on``, a server is not stopped."""
    monkeypatch.setattr(discovery, "_processes", lambda: iter(()))

    def ask(spec: ServerSpec, *, goes_on: bool = False) -> None:
        for call in (
            manager.status,
            lambda: list(servers.check_servers(examined.wanted(home))),
            lambda: list(servers.check_state(examined.wanted(home))),
        ):
            assert isinstance(bounded(call), list)
        found = bounded(lambda: manager.ensure(spec, start_timeout=10))
        if isinstance(found, Server):
            assert embed(found, "hello").status_code == 200
            if goes_on:
                return
        stopped = bounded(manager.stop)
        if isinstance(found, EmberdError) or isinstance(stopped, EmberdError):
            _remove_what_is_named(home, [found, stopped])
            again = bounded(lambda: manager.ensure(spec, start_timeout=10, retry_failed=True))
            assert isinstance(again, Server), again
            assert embed(again, "hello").status_code == 200
            assert isinstance(bounded(manager.stop), list)
        assert leftovers.end_all([str(home)]) == []

    return ask


def _remove_what_is_named(home: Path, errors: list[Any]) -> None:
    text = " ".join(map(str, errors))
    for path in (path for path in sorted(home.rglob("*"), reverse=True) if str(path) in text):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        waiting.remove(path)  # its supervisor may still run, and write its record now
    else:
        path.unlink(missing_ok=True)


def arrange(manager: Manager, spec: ServerSpec, moment: str, go: Path) -> Path:
    """Bring the server of ``spec`` to a moment of its life, and return its folder."""
    if moment != "running":  # there, the server of the last damage may still run
        go.unlink(missing_ok=True)
    begin(manager, spec)
    (status,) = manager.status()
    folder = Path(status.log_path).parent
    if moment == "starting":
        waiting.until((folder / "secret.yaml").exists)
        return folder
    go.touch()
    manager.ensure(spec)
    if moment == "stopped":
        manager.stop()
    if moment == "killed":
        (status,) = manager.status()
        psutil.Process(status.supervisor_pid).kill()
        waiting.until(lambda: not locks.is_alive(folder))
        # The orphan reaper ends the server; other tests call in the meantime.
        waiting.until(lambda: not leftovers.find([str(folder)]))
    return folder


def _damage(file: Path, kind: str) -> bool:
    """Damage a file; return False if its supervisor removed or wrote it at the same time."""
    if file.is_symlink() or not file.is_file():  # not there, or damaged by the last one
        _remove(file)
        file.touch(mode=0o600)
    try:
        DAMAGES[kind](file)
    except (FileNotFoundError, FileExistsError):
        return False
    return True


@pytest.mark.parametrize(
    ("names", "moment"), CASES, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_damaged_file_gives_a_server_or_an_error_and_leaves_nothing(
    manager: Manager,
    stub: Stub,
    tmp_path: Path,
    calls: Callable[..., None],
    names: tuple[str, ...],
    moment: str,
) -> None:
    spec = stub(start_when=tmp_path / "go")
    for kind in MOMENTS[moment]:
        print(kind)  # shown if it fails
        folder = arrange(manager, spec, moment, tmp_path / "go")
        for file in (folder / name for name in names):
            waiting.until(functools.partial(_damage, file, kind))
        (tmp_path / "go").touch()
        # A server that runs survives most of it, so it gets several damages in turn.
        calls(spec, goes_on=moment == "running" and kind != MOMENTS[moment][-1])
        if "lock" in names:  # a server that runs is found without it: it may still be damaged
            _remove(folder / "lock")


def _replace_folder(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        aside = folder.with_name(f"{folder.name}.aside")
        folder.rename(aside)
        shutil.rmtree(aside)
        make(folder)

    return replace


OF_FOLDER: Final[dict[str, Callable[[Path], object]]] = {
    "missing": _replace_folder(lambda folder: None),
    "empty": _replace_folder(lambda folder: folder.mkdir(mode=0o700)),
    "file": _replace_folder(lambda folder: folder.touch()),
    "fifo": _replace_folder(os.mkfifo),
    "link": _replace_folder(lambda folder: folder.symlink_to("/nowhere")),
    "open-to-all": lambda folder: folder.chmod(0o777),
    "of-another-user": _give,
}


@pytest.mark.parametrize(
    ("moment", "kinds"),
    [("running", tuple(OF_FOLDER)), ("stopped", ("missing", "file", "link"))],
    ids=["running", "stopped"],
)
@pytest.mark.parametrize("above", [0, 1, 2], ids=["folder", "servers", "machine"])
def test_damaged_folder_gives_a_server_or_an_error_and_leaves_nothing(
    manager: Manager,
    stub: Stub,
    tmp_path: Path,
    calls: Callable[..., None],
    above: int,
    moment: str,
    kinds: tuple[str, ...],
) -> None:
    spec = stub(start_when=tmp_path / "go")
    for kind in kinds:
        print(kind)
        folder = arrange(manager, spec, moment, tmp_path / "go")
        OF_FOLDER[kind]((folder, *folder.parents)[above])
        (tmp_path / "go").touch()
        calls(spec)
        for place in (folder, *folder.parents[:2]):  # as for files
            if place.is_dir():
                other_user.give(place, os.geteuid(), os.getegid())
                place.chmod(0o700)
