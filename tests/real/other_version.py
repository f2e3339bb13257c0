"""Another version of SGLang than the pinned one, installed by emberd's own installer.

``python tests/real/other_version.py VERSION FOLDER`` installs it into FOLDER, unless it is there,
and prints its interpreter, for EMBERD_SGLANG_PYTHON. It takes 10 GB and some minutes.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from emberd.env import Places
from emberd.installs import Installed, install, recipes


def install_version(version: str, folder: str) -> Installed:
    """Install a version of SGLang into ``folder``, unless it is there; return it."""
    requirements = (f"sglang=={version}",)
    recipe = replace(recipes.RECIPES["sglang"], version=version, requirements=requirements)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "RECIPES", {**recipes.RECIPES, "sglang": recipe})
        return install("sglang", Places(folder, folder), lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    print(install_version(*sys.argv[1:]).python)
