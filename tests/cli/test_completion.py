"""The shells' completion of the command, and its other names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from emberd import __version__, catalog

_COMMAND = Path(sys.executable).parent / "emberd"
# What bash offers for "emberd st" and for "emberd up Qwen/".
_ASK = """
eval "$(_EMBERD_COMPLETE=source_bash emberd)"
COMP_WORDS=(emberd st) COMP_CWORD=1; _emberd_completion emberd
printf '%s\\n' "${COMPREPLY[@]}"
COMP_WORDS=(emberd up Qwen/) COMP_CWORD=2; _emberd_completion emberd
printf '%s\\n' "${COMPREPLY[@]}"
"""


def run(*command: str, **variables: str) -> str:
    path = f"{_COMMAND.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_bash_completes_commands_and_models() -> None:
    models = {each.name for each in catalog.MODELS if each.name.startswith("Qwen/")}
    assert set(run("bash", "-c", _ASK).splitlines()) == {"status", "stop", *models}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed(shell: str) -> None:
    script = run(str(_COMMAND), _EMBERD_COMPLETE=f"source_{shell}")
    assert f"_EMBERD_COMPLETE=complete_{shell}" in script


def test_the_module_is_the_command() -> None:
    assert run(sys.executable, "-m", "emberd", "-V") == f"emberd {__version__}\n"
