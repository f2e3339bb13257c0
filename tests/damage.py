"""Ways in which a file of the state folder is lost or damaged."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import waiting

Damage = Callable[[Path], object]


def _replace_by_directory(file: Path) -> None:
    # A directory cannot replace a file atomically, and a supervisor may write the file in between.
    while True:
        file.unlink(missing_ok=True)
        with suppress(FileExistsError):
            file.mkdir()
            break
    (file / "content").touch()


def _replace_by_link(file: Path) -> None:
    elsewhere = file.parent.parent / "elsewhere"
    fresh = file.with_name(f"{file.name}.link")
    fresh.symlink_to(elsewhere)
    elsewhere.write_bytes(file.read_bytes())
    os.replace(fresh, file)


def _replace_by_fifo(file: Path) -> None:
    # Replaced atomically, because a supervisor may write the file again in between.
    fresh = file.with_name(f"{file.name}.fifo")
    os.mkfifo(fresh)
    os.replace(fresh, file)


def make_socket(path: Path) -> None:
    """Create a socket file without a listener; ``bind`` would limit the length of its path."""
    os.mknod(path, 0o600 | stat.S_IFSOCK)


def _replace_by_socket(file: Path) -> None:
    fresh = file.with_name(f"{file.name}.socket")
    make_socket(fresh)
    os.replace(fresh, file)


def _halve(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def change(**fields: object) -> Damage:
    def damage(file: Path) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))

    return damage


OF_ANY_FILE: Final[dict[str, Damage]] = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"\xff\x00\x80" * 100),
    "directory": _replace_by_directory,
    "link": _replace_by_link,
    "fifo": _replace_by_fifo,
    "socket": _replace_by_socket,
    "unreadable": lambda file: file.chmod(0),
}

OF_RECORD: Final[dict[str, Damage]] = OF_ANY_FILE | {
    "null": lambda file: file.write_text("null"),
    "half": _halve,
    "no-fields": lambda file: file.write_text("{}"),
    "nested": lambda file: file.write_text("[" * 100_000),
    "other-start_id": change(start_id="another"),
    "wrong-types": change(spec=[], timing="soon"),
    "open-to-others": lambda file: file.chmod(0o644),
}
"""``other-start_id`` is a record of another start; ``open-to-others`` is still readable."""

USUAL: Final = ("missing", "null", "half", "directory")
"""For tests that start a server for each kind; all kinds are tested with a ready supervisor."""


def wait_until_repaired(record: Path, before: bytes, seconds: float = 10.0) -> None:
    """Wait until the file is again a regular one of mode 0600 with the content of ``before``."""

    def repaired() -> bool:
        try:
            facts = record.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(facts.st_mode) or stat.S_IMODE(facts.st_mode) != 0o600:
            return False
        return record.read_bytes() == before

    waiting.until(repaired, seconds)
