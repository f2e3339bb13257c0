"""What was asked for when the work was begun: going on with anything else would mix two outputs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from emberd.bulk import durable
from emberd.errors import SettingError

NAME: Final = "manifest.json"
_SCHEMA: Final = 1

BEGUN: Final = "begun"
EMBEDDED: Final = "embedded"
"""Every row is in a part."""
ASSEMBLED: Final = "assembled"
"""The output is whole, and is being put in its place."""


@dataclass(slots=True)
class Manifest:
    """The content of the file.

    Attributes:
        asked: What must not differ when a run goes on.
        inputs: The stamps of the files that are read.
        state: How far the work is.
        rows: How many rows the parts cover, once all are embedded.
        set_aside: How many of them have no vector, once the output is assembled.
    """

    asked: dict[str, Any]
    inputs: list[dict[str, Any]]
    state: str = BEGUN
    rows: int = 0
    set_aside: int = 0

    def save(self, folder: Path, state: str) -> None:
        """Keep it in ``folder``, with the work being as far as ``state``."""
        self.state = state
        content = {"schema": _SCHEMA, **asdict(self)}
        with durable.written(folder / NAME) as file:
            file.write(json.dumps(content, indent=1).encode())

    def differences(self, wanted: Manifest) -> list[str]:
        """Return where ``wanted`` is not what was begun, in words."""
        names = [name for name in wanted.asked if self.asked.get(name) != wanted.asked[name]]
        told = [f"{n} {self.asked.get(n)!r} then, {wanted.asked[n]!r} now" for n in names]
        return told + _changed(self.inputs, wanted.inputs)


def load(folder: Path) -> Manifest | None:
    """Return what is kept in ``folder``; None when nothing is.

    Raises:
        SettingError: It was written by another version of emberd.
    """
    try:
        content = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        return None
    if content.pop("schema", None) != _SCHEMA:
        raise SettingError(
            f"{folder} was begun by another version of emberd. Go on with that one, or give "
            f"--restart to begin anew."
        )
    return Manifest(**content)


def exists(folder: Path) -> bool:
    """Return whether one is kept in ``folder``, be it one that can be read or not."""
    return (folder / NAME).exists()


def remove(folder: Path) -> None:
    """Forget what is kept in ``folder``."""
    (folder / NAME).unlink(missing_ok=True)


def unchanged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    """Do nothing if the inputs are what they were when reading began.

    Raises:
        SettingError: One has changed since.
    """
    if told := _changed(before, now):
        raise SettingError(
            f"The input changed while it was read: {'; '.join(told)}. Give --restart to begin anew."
        )


def _changed(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    old, new = _by_path(before), _by_path(now)
    if list(old) != list(new):
        gone = [path for path in old if path not in new]
        more = [path for path in new if path not in old]
        named = ", ".join(
            [f"{path} is gone" for path in gone[:3]] + [f"{path} is new" for path in more[:3]]
        )
        return [f"the input was {len(old)} files and is {len(new)} ({named or 'in another order'})"]
    return [
        f"{path} had {old[path]['bytes']} bytes and has {new[path]['bytes']}"
        if old[path]["bytes"] != new[path]["bytes"]
        else f"{path} was written again"
        for path in old
        if old[path] != new[path]
    ][:3]


def _by_path(stamps: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {stamp["path"]: stamp for stamp in stamps}
