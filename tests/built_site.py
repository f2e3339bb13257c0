"""The documentation site that tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from source_tree import ROOT

# Read before the session's environment is cleaned.
_BUILT: Final = os.environ.get("EMBERD_SITE")


def build(folder: Path) -> Path:
    """Return the folder of the built site.

    It is built in ``folder``, and a warning is an error. If EMBERD_SITE names what ``make docs``
    has built, as in the CI run, that is used.
    """
    if _BUILT:
        return Path(_BUILT)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"),
            *("-d", folder / "doctrees", ROOT / "docs", folder / "html"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"
