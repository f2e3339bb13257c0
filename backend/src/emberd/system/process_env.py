"""Environment variables for child processes: this process's, without what would mislead a child.

Also the interpreter of this process, for children that run Python.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Final

from emberd.system import processes

# Keys for other services, and variables that change how an interpreter runs a server:
# PYTHONWARNINGS=error ends it at some library's import, PYTHONINSPECT keeps it from exiting.
# PROMETHEUS_MULTIPROC_DIR holds the metrics of a web application; a server's would be mixed with
# them, and outlive it.
_NOT_FOR_SERVERS: Final = re.compile(
    r"EMBERD_(API|SERVER)_KEY|EMBERD_CACHE.*|OPENAI_.*|PYTHONINSPECT|PYTHONSTARTUP|PYTHONWARNINGS"
    r"|PROMETHEUS_MULTIPROC_DIR"
)
_LIBRARIES: Final = "LD_LIBRARY_PATH"
_DRIVER: Final = "libcuda.so.1"
# Where this interpreter finds its packages: another one must not use them.
# Without bytecode it would compile thousands of modules at each start.
_NOT_FOR_OTHERS: Final = re.compile(
    rf"{_LIBRARIES}|PYTHONHOME|PYTHONPATH|PYTHONUSERBASE|VIRTUAL_ENV|PYTHONDONTWRITEBYTECODE"
)

# Variables that name another Python or target folder, or change what an installer does. Where
# packages come from (PIP_INDEX_URL, UV_INDEX_URL, constraints, proxies) is the user's choice.
_NOT_FOR_INSTALLERS: Final = re.compile(
    r"PYTHON.*|__PYVENV_LAUNCHER__|VIRTUAL_ENV.*|CONDA_PREFIX"
    r"|PIP_(ABI|DRY_RUN|EDITABLE|IGNORE_INSTALLED|IMPLEMENTATION|LOG|NO_DEPS|PLATFORM|PREFIX"
    r"|PYTHON|PYTHON_VERSION|QUIET|REPORT|REQUIREMENT|REQUIRE_VIRTUALENV|ROOT|TARGET|UPGRADE"
    r"|USER|VERBOSE)"
    r"|UV_(BREAK_SYSTEM_PACKAGES|NO_DEPS|PREFIX|PROJECT.*|PYTHON|SYSTEM_PYTHON|TARGET|VENV_.*"
    r"|WORKING_DIR.*)"
)


_PYTHON: Final = re.compile(r"(python|pypy)[\d.]*[a-z]?(-[\w.-]+)?", re.IGNORECASE)


def interpreter() -> str:
    """Return the path of the interpreter of this process; empty if there is none.

    In a program that embeds Python, such as uWSGI, ``sys.executable`` is that program, or empty.
    Then it is the interpreter of the same version that the packages belong to.
    """
    if _PYTHON.fullmatch(os.path.basename(sys.executable or "")):
        return sys.executable
    name = "python{}.{}".format(*sys.version_info)
    places = (os.path.join(prefix, "bin", name) for prefix in (sys.prefix, sys.base_prefix))
    return next((path for path in places if os.access(path, os.X_OK)), "")


def for_server() -> dict[str, str]:
    """Return the environment for a server that runs in this interpreter."""
    return _without(_NOT_FOR_SERVERS, os.environ)


def for_server_of(python: str) -> dict[str, str]:
    """Return the environment for a server that runs in another interpreter.

    Args:
        python: That interpreter. The programs beside it come first on the ``PATH``: kernels are
            compiled with a ``ninja`` that is called by its bare name.
    """
    path = os.pathsep.join(filter(None, [os.path.dirname(python), os.environ.get("PATH")]))
    # On some clusters the driver's library is only in a folder of LD_LIBRARY_PATH.
    folders = os.environ.get(_LIBRARIES, "").split(os.pathsep)
    drivers = [each for each in folders if each and os.path.exists(os.path.join(each, _DRIVER))]
    return {
        **_without(_NOT_FOR_OTHERS, for_server()),
        "PATH": path,
        # Packages in the user's home would come before those of the environment.
        "PYTHONNOUSERSITE": "1",
        **({_LIBRARIES: os.pathsep.join(drivers)} if drivers else {}),
    }


def for_interpreter(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for another interpreter that runs one of our scripts."""
    return _without(_NOT_FOR_INSTALLERS, environ)


def for_installer(
    folder: str, scratch: str, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the environment for an installer.

    It is marked with the environment's folder, so that ``processes.end_marked`` finds it.

    Args:
        folder: The environment that it fills.
        scratch: Folder for its downloads and temporary files.
        environ: The environment of this process.
    """
    return {
        **for_interpreter(environ),
        processes.MARK: f"{folder}:install",
        "TMPDIR": scratch,
        # A pip.conf may request --user, which pip refuses in an environment.
        "PIP_USER": "0",
    }


def _without(pattern: re.Pattern[str], environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not pattern.fullmatch(name)}
