"""Makes the environment of these tests: ``python make_environment.py FOLDER``.

It uses the packages of the transformers engine, torch among them, and installs the others into
FOLDER. Nothing is installed into the engine's environment.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from emberd import installs
from emberd.env import Places

_ROOT: Final = Path(__file__).parents[2]
_PIP: Final = ("-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile")


def main(folder: Path) -> None:
    """Make the environment again."""
    engine = installs.locate("transformers", Places.resolve())
    if engine is None:
        sys.exit("The transformers engine is not installed. Run: make engines")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([engine.python, "-m", "venv", str(folder)], check=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "engine.pth").write_text(engine.packages)
    listed = str(Path(__file__).with_name("requirements.txt"))
    for needed in (
        ["hatchling", "setuptools"],
        ["--no-build-isolation", "-r", listed, "-e", f"{_ROOT}/backend[demo]"],
    ):
        subprocess.run([str(folder / "bin" / "python"), *_PIP, *needed], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
