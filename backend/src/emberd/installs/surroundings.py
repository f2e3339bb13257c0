"""The environment variables that an installer, or another interpreter, is given."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from emberd import env

# What names another Python or another place, or turns an installation into something else. Where
# packages come from (PIP_INDEX_URL, UV_INDEX_URL, constraints, proxies) is the user's to say.
_UNWANTED: Final = re.compile(
    r"PYTHON.*|__PYVENV_LAUNCHER__|VIRTUAL_ENV.*|CONDA_PREFIX"
    r"|PIP_(ABI|DRY_RUN|EDITABLE|IGNORE_INSTALLED|IMPLEMENTATION|LOG|NO_DEPS|PLATFORM|PREFIX"
    r"|PYTHON|PYTHON_VERSION|QUIET|REPORT|REQUIREMENT|REQUIRE_VIRTUALENV|ROOT|TARGET|UPGRADE"
    r"|USER|VERBOSE)"
    r"|UV_(BREAK_SYSTEM_PACKAGES|NO_DEPS|PREFIX|PROJECT.*|PYTHON|SYSTEM_PYTHON|TARGET|VENV_.*"
    r"|WORKING_DIR.*)"
)


def clean(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return ``environ`` without what would lead another interpreter astray."""
    return {name: text for name, text in environ.items() if not _UNWANTED.fullmatch(name)}


def of_installer(
    folder: str, scratch: str, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment of an installer.

    Args:
        folder: The environment that it fills.
        scratch: Where it may put what it downloads and unpacks.
        environ: The environment of this process.
    """
    return {
        **clean(environ),
        env.INSTALL_MARK: folder,
        "TMPDIR": scratch,
        # A pip.conf may ask for --user, which pip refuses in an environment.
        "PIP_USER": "0",
    }
