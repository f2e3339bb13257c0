"""Distributions made by hand, so that real installers run without a registry."""

from __future__ import annotations

import io
import tarfile
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path

_WHEEL = "Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

# Its build waits for a signal to go on: in a process that pip has started.
_SLOW_BACKEND = """
import os, pathlib, time, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    signs = pathlib.Path(os.environ["SIGNS"])
    (signs / "building").write_text(str(os.getpid()))
    while not (signs / "go").exists():
        time.sleep(0.02)
    if (signs / "full").exists():
        raise OSError(28, "No space left on device")
    name = "{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in {files!r}.items():
            wheel.writestr(path, text)
    return name
"""


def wheel(folder: Path, name: str, version: str, modules: Mapping[str, str] | None = None) -> Path:
    """Write a wheel with one module of the distribution's name, or with these: path -> source."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for inside, text in _files(name, version, modules).items():
            file.writestr(inside, text)
    return path


def slow_source(folder: Path, name: str, version: str) -> Path:
    """Write a source distribution whose build waits for ``$SIGNS/go``."""
    backend = _SLOW_BACKEND.format(name=name, version=version, files=_files(name, version))
    project = """
        [build-system]
        requires = []
        build-backend = "backend"
        backend-path = ["."]
        """
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "backend.py": backend,
        "pyproject.toml": textwrap.dedent(project),
    }
    path = folder / f"{name}-{version}.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for inside, text in files.items():
            member = tarfile.TarInfo(f"{name}-{version}/{inside}")
            member.size = len(text.encode())
            file.addfile(member, io.BytesIO(text.encode()))
    return path


def unpacked(packages: Path, name: str, version: str) -> None:
    """Write a distribution as an installer would leave it in ``packages``."""
    for inside, text in _files(name, version).items():
        path = packages / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def _files(name: str, version: str, modules: Mapping[str, str] | None = None) -> dict[str, str]:
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    inside = {
        **(modules or {f"{name}.py": ""}),
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": _WHEEL,
    }
    record = "".join(f"{path},,\n" for path in (*inside, f"{info}/RECORD"))
    return {**inside, f"{info}/RECORD": record}
