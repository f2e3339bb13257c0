"""The environment of a server's process: the caller's, without what is the caller's alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from emberd import env
from emberd.env import SERVER_KEY

# Keys of other services, and what would change how an interpreter runs the server:
# PYTHONWARNINGS=error ends it at some library's import, PYTHONINSPECT keeps it from exiting.
_PRIVATE: Final = (
    *(env.API_KEY, SERVER_KEY),
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
