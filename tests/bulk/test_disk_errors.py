"""A job on a full or read-only disk ends with an error that says what to do, and can go on."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bulk_standin
import other_user
from bulk_standin import is_right, run, run_request
from emberd.errors import EmberdError, SettingError
from other_user import needs_root
from small_disk import Disk, disk

__all__ = ["disk"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Lines on a disk with space."""
    file = tmp_path / "in.jsonl"
    file.write_text("".join(f'{{"text": "{n}"}}\n' for n in range(300)))
    return file


@pytest.mark.parametrize("free", [0, 4096, 16_384, 40_960])
def test_job_on_a_full_disk_is_an_error_and_continues_when_there_is_space(
    disk: Disk, source: Path, free: int
) -> None:
    disk.fill()
    filler = disk.folder / "filler"
    os.truncate(filler, filler.stat().st_size - free)
    with pytest.raises(EmberdError, match="No space left") as raised:
        run(source, disk.folder / "out.parquet")
    assert str(disk.folder / "out.parquet") in str(raised.value)
    disk.free()
    run(source, disk.folder / "out.parquet")
    assert is_right(disk.folder / "out.parquet")


def test_job_on_a_read_only_disk_is_an_error(disk: Disk, source: Path) -> None:
    disk.remount("ro")
    with pytest.raises(EmberdError, match="Read-only") as raised:
        run(source, disk.folder / "out.parquet")
    assert str(disk.folder) in str(raised.value)


def test_error_of_reading_names_the_input_and_not_the_output(tmp_path: Path, source: Path) -> None:
    later = tmp_path / "later.jsonl.gz"
    later.write_bytes(gzip.compress(source.read_bytes()))

    def embed(texts: Iterable[str]) -> Iterator[Any]:
        # Its first bytes cannot be read, as those of a disk with a fault.
        later.unlink()
        later.symlink_to("/proc/self/mem")
        return bulk_standin.embed(texts)

    with pytest.raises(EmberdError, match="later.jsonl.gz cannot be read") as raised:
        run_request(bulk_standin.request([source, later], tmp_path / "out.jsonl"), embed)
    assert "out.jsonl" not in str(raised.value)


def test_file_that_disappears_is_named_and_not_the_output(tmp_path: Path, source: Path) -> None:
    def embed(texts: Iterable[str]) -> Iterator[Any]:
        source.unlink(missing_ok=True)
        return bulk_standin.embed(texts)

    with pytest.raises(EmberdError, match=r"in\.jsonl cannot be read") as raised:
        run_request(bulk_standin.request(source, tmp_path / "out.jsonl"), embed)
    assert "out.jsonl" not in str(raised.value)


def test_part_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path, source: Path) -> None:
    """Who deletes it, as is advised for damaged ones, would lose finished work."""
    (tmp_path / "bad.jsonl").write_text('{"text": "SERVER DOWN"}\n')
    with pytest.raises(EmberdError):
        run([source, tmp_path / "bad.jsonl"], tmp_path / "out.jsonl")
    part, *_ = (tmp_path / "out.jsonl.parts").glob("*.parquet")
    part.rename(tmp_path / "moved")
    part.symlink_to(part)  # opening it fails for every user
    with pytest.raises(EmberdError, match="symbolic links") as raised:
        run([source, tmp_path / "bad.jsonl"], tmp_path / "out.jsonl")
    assert "damaged" not in str(raised.value)


def test_output_whose_name_is_too_long_is_an_error(tmp_path: Path, source: Path) -> None:
    with pytest.raises(EmberdError, match="too long"):
        run(source, tmp_path / f"{'x' * 252}.parquet"[-255:])


@needs_root
def test_files_that_this_user_may_not_read_or_write_are_errors(tmp_path: Path) -> None:
    folder = other_user.reachable(tmp_path)
    (folder / "secret.jsonl").write_text('{"text": "a"}\n')
    (folder / "secret.jsonl").chmod(0o600)
    (folder / "in.jsonl").write_text('{"text": "a"}\n')
    (folder / "in.jsonl").chmod(0o644)

    def as_other() -> list[str]:
        found = []
        for source in ("secret.jsonl", "in.jsonl"):
            try:
                run(folder / source, folder / "out.jsonl")
            except EmberdError as error:
                found.append(f"{isinstance(error, SettingError)} {error}")
        return found

    folder.chmod(0o755)
    unreadable, unwritable = other_user.run_as(other_user.OTHER, as_other)
    assert unreadable.startswith("True")
    assert "secret.jsonl" in unreadable
    assert "out.jsonl" in unwritable
