"""What the tests of SGLang's plans share."""

from __future__ import annotations

import pytest

import emberd.engines
from emberd import installs
from emberd.engines import Launch
from emberd.installs import Interpreter
from emberd.settings import ServerSpec

GPU = ServerSpec()
KEY = "a-made-up-key"
LAUNCH = Launch(
    port=31_000, api_key=KEY, start_id="stamp", folder="/state/of/it", home="/home-of-it"
)


def set_installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """Let SGLang of this version be installed at a place that does not exist; None for none."""
    found = None
    if version is not None:
        found = Interpreter("/engines/python", version, "/engines/packages", "a test says so")
    monkeypatch.setattr(installs, "locate", lambda *_: found)


def words(plan: emberd.engines.Plan) -> dict[str, str]:
    """Return each word of a plan's command with the one after it."""
    command = list(plan.command)
    return dict(zip(command, [*command[1:], ""], strict=True))
