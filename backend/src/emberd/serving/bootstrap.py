"""Runs the server in an interpreter that has no emberd, such as that of an engine's environment.

Run as a file::

    PYTHONSAFEPATH=1 /path/to/engine/bin/python bootstrap.py --encoder transformers --port 30000 ...

Only the package that contains this file is made importable. A path entry would make every package
of the application importable, in other versions than the engine needs.
"""

import importlib.util
import os
import sys

_PACKAGE = "emberd"
_OLDEST = (3, 11)


def main() -> int:
    """Serve until a signal arrives; return the exit code."""
    if sys.version_info < _OLDEST:
        version = sys.version.split()[0]
        sys.exit(f"cannot serve: {sys.executable} is Python {version}. emberd needs 3.11 or newer.")
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    start = os.path.join(folder, "__init__.py")
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, start, submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        sys.exit(f"cannot serve: emberd cannot be loaded from {folder}. Reinstall it.")
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
    from emberd.serving.__main__ import main as serve

    return serve()


if __name__ == "__main__":
    sys.exit(main())
