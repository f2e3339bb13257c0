"""A file system whose locks do not work: an error, and never two servers."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from emberd.errors import StateFolderError
from emberd.manager import locks
from emberd.verified_manager import Manager
from homes import Starts, Stub

refusals = pytest.mark.parametrize("refusal", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])


def _without_flock(patch: pytest.MonkeyPatch, refusal: int = errno.ENOLCK) -> None:
    def refuse(*_: object) -> None:
        raise OSError(refusal, "not here")

    patch.setattr(fcntl, "flock", refuse)


@refusals
def test_lock_that_the_kernel_refuses_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    """A killed process would leave it behind."""
    with monkeypatch.context() as patch:
        _without_flock(patch, refusal)
        with pytest.raises(StateFolderError, match="not here.*EMBERD_HOME"):
            with locks.start_lock(tmp_path, timeout_s=1):
                pass


@refusals
def test_without_locks_nothing_is_started(
    manager: Manager, stub: Stub, starts: Starts, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    with monkeypatch.context() as patch:
        _without_flock(patch, refusal)
        with pytest.raises(StateFolderError, match="not here"):
            manager.ensure(stub())
    assert starts() == 0


def test_liveness_lock_that_cannot_be_probed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = locks.take_liveness(tmp_path)
    assert descriptor is not None
    with monkeypatch.context() as patch:
        _without_flock(patch)
        with pytest.raises(StateFolderError):
            locks.is_alive(tmp_path)
    locks.release(descriptor)
