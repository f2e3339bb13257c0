"""The environment of a server's process: the caller's, without what is the caller's alone.

* The environment variables that an installer, or another interpreter, is given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Final

from emberd.serving import KEY_VARIABLE

# Keys of other services, and what would change how an interpreter runs the server:
# PYTHONWARNINGS=error ends it at some library's import, PYTHONINSPECT keeps it from exiting.
_PRIVATE: Final = (
    *("EMBERD_API_KEY", KEY_VARIABLE),
    *("PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONWARNINGS"),
    # A web application's metrics lie there; a server's would mix with them, and outlive it.
    "PROMETHEUS_MULTIPROC_DIR",
)
_PRIVATE_PREFIX: Final = "OPENAI_"
_LIBRARIES: Final = "LD_LIBRARY_PATH"
_DRIVER: Final = "libcuda.so.1"
# Where the application's interpreter finds its packages: another interpreter must not.
_PLACES: Final = (_LIBRARIES, "PYTHONHOME", "PYTHONPATH", "PYTHONUSERBASE", "VIRTUAL_ENV")


def same_interpreter(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a server that our own interpreter runs."""
    return {
        name: value
        for name, value in environ.items()
        if name not in _PRIVATE and not name.startswith(_PRIVATE_PREFIX)
    }


def other_interpreter(python: str, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a server that an engine's own interpreter runs.

    Args:
        python: That interpreter; the programs beside it come first on the path, for kernels are
            compiled by a ``ninja`` that is asked for by its bare name.
        environ: What the application has.
    """
    kept = {k: v for k, v in same_interpreter(environ).items() if k not in _PLACES}
    path = os.pathsep.join(filter(None, [os.path.dirname(python), environ.get("PATH")]))
    # Packages in the user's home belong to no environment and would come before the engine's.
    return kept | {"PATH": path, "PYTHONNOUSERSITE": "1"} | _driver(environ)


def _driver(environ: Mapping[str, str]) -> dict[str, str]:
    # Some clusters have the driver's library nowhere else.
    folders = environ.get(_LIBRARIES, "").split(os.pathsep)
    kept = [each for each in folders if each and os.path.exists(os.path.join(each, _DRIVER))]
    return {_LIBRARIES: os.pathsep.join(kept)} if kept else {}


MARK: Final = "EMBERD_INSTALL"
"""Variable in the environment of all that an installation starts: the folder that it fills."""

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
        MARK: folder,
        "TMPDIR": scratch,
        # A pip.conf may ask for --user, which pip refuses in an environment.
        "PIP_USER": "0",
    }
