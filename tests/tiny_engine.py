"""An engine of nothing: its recipe, and processes that install or remove it.

Run as a program, it does one of them: ``python -m tiny_engine install|remove|stand ENGINES``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any, Final

import tiny_wheels
from command import Child
from emberd.env import Places
from emberd.installs import Installed, environments, install, installer, recipes, remove
from emberd.installs.recipes import Recipe

VERSION: Final = "1.5"
PYTHONS: Final = (sys.version_info[:2],)
SYSTEM_PATH: Final = "/usr/bin:/bin"
_FOREVER_S: Final = 60.0

# Real environments and a real pip, but none that is installed into each environment first.
QUICK_UV: Final = f"""#!{sys.executable}
import os, sys
if sys.argv[1] == "venv":
    command = ["-m", "venv", "--without-pip", sys.argv[-1]]
else:
    wanted = sys.argv[sys.argv.index("--compile-bytecode") + 1:]
    python = sys.argv[sys.argv.index("--python") + 1]
    command = ["-m", "pip", "--python", python, "install", *wanted]
os.execv(sys.executable, [sys.executable, *command])
"""


def recipe(**changes: Any) -> Recipe:
    """Return the recipe."""
    fields = {
        "name": "tiny",
        "distribution": "tinydist",
        "version": VERSION,
        "requirements": (f"tinydist=={VERSION}",),
        "bytes": 20_000_000,
        "modules": ("tinydist",),
        "script": "tinyprogram",
        "pythons": PYTHONS,
        **changes,
    }
    return Recipe(**fields)


def places(engines: Path) -> Places:
    """Return places with this folder of environments."""
    return Places(home=str(engines.parent), engines=str(engines))


def path_with_uv(folder: Path, program: str) -> str:
    """Make a program called uv, and return a PATH on which it is."""
    folder.mkdir()
    file = folder / "uv"
    file.write_text(program)
    file.chmod(0o755)
    return f"{folder}{os.pathsep}{SYSTEM_PATH}"


def make(engines: Path) -> Installed:
    """Make the engine's environment in no time, by hand."""
    place = environments.site(recipe(), places(engines))
    venv.create(place.folder, symlinks=True)
    packages = next(place.folder.glob("lib/python*/site-packages"))
    tiny_wheels.unpacked(packages, "tinydist", VERSION)
    return place.finish(recipe(), str(packages), 1_000_000)


def begin(verb: str, engines: Path, environment: dict[str, str]) -> Child:
    """Start a process that installs or removes the engine."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return Child(
        [sys.executable, "-m", "tiny_engine", verb, str(engines)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _stand(*_: object, **__: object) -> Any:
    print("standing", flush=True)
    time.sleep(_FOREVER_S)


def _main(verb: str, engines: Path) -> None:
    setattr(recipes, "RECIPES", {"tiny": recipe()})  # noqa: B010 - it is Final
    if verb == "stand-before-the-mark":
        installer._Builder._checked = _stand  # type: ignore[method-assign]
    if verb == "stand-while-removing":
        shutil.rmtree = _stand  # type: ignore[assignment]
    if verb == "stand-while-removing":
        remove("tiny", places(engines))
    else:
        install("tiny", places(engines), lambda text: print(text, flush=True))
    print("done", flush=True)


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]))
