"""Build the packages of the four distributions reproducibly, check them and list their parts.

``make dist`` does this for the last commit and writes everything to ``dist/VERSION``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]

# Distribution -> its folder, and the folder of its package in the wheel and in that folder.
DISTRIBUTIONS: Final = {
    "emberd": ("backend", "emberd", "src/emberd"),
    "langchain-emberd": (
        "integrations/langchain-emberd",
        "langchain_emberd",
        "langchain_emberd",
    ),
    "llama-index-embeddings-emberd": (
        "integrations/llama-index-embeddings-emberd",
        "llama_index/embeddings/emberd",
        "llama_index/embeddings/emberd",
    ),
    "llama-index-postprocessor-emberd": (
        "integrations/llama-index-postprocessor-emberd",
        "llama_index/postprocessor/emberd",
        "llama_index/postprocessor/emberd",
    ),
}

# The SBOM covers the distributions and these extras. Those of engines and of large libraries are
# left out: their users choose them, and they are gigabytes.
_DESCRIBED: Final = (
    "emberd[demo,hub,memcached,metrics,redis,serve]",
    *(name for name in DISTRIBUTIONS if name != "emberd"),
)
_ALLOWED_LICENCES: Final = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CNRI-Python", "ISC", "MIT"),
    *("MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Zlib"),
    "License :: OSI Approved :: Academic Free License (AFL)",
    "License :: OSI Approved :: Apache Software License",
    "License :: OSI Approved :: BSD License",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)",
}
# Packages whose metadata contains the text of a licence instead of its name.
_READ_LICENCES: Final = {"tiktoken": "MIT"}


class ReleaseError(Exception):
    """A release cannot be made."""


def run(*command: object, folder: Path = ROOT, **environment: str) -> str:
    """Run a command and return its output.

    Raises:
        ReleaseError: It failed. The message contains its output.
    """
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode != 0:
        text = " ".join(map(str, command))
        raise ReleaseError(f"{text}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def build(source: Path, into: Path, source_date_epoch: int) -> None:
    """Build a wheel and an sdist of each distribution.

    Args:
        source: The repository's files. They are not modified.
        into: The folder for the packages.
        source_date_epoch: The time of all files in the packages, in Unix seconds. Equal sources
            and times give equal bytes.
    """
    with tempfile.TemporaryDirectory() as scratch:
        for name, (folder, _, _) in DISTRIBUTIONS.items():
            # Outside of the repository, because hatchling would add the .gitignore of its root.
            copy = shutil.copytree(
                source / folder, Path(scratch) / name, ignore=shutil.ignore_patterns("__pycache__")
            )
            command = (sys.executable, "-m", "hatchling", "build", "-d", into.resolve())
            run(*command, folder=copy, SOURCE_DATE_EPOCH=str(source_date_epoch))


def check(packages: Path, source: Path) -> list[str]:
    """Return what is wrong with built packages.

    Args:
        packages: The folder of the packages.
        source: The files that they were built from.
    """
    files = sorted(packages.iterdir())
    wheels = [file for file in files if file.suffix == ".whl"]
    commands: list[tuple[object, ...]] = [
        ("twine", "check", "--strict", *files),
        ("check_wheel_contents", *wheels),
        # The project has no address for mail, so it gets 8 of 10 if pyroma looks for one.
        *(
            ("pyroma", "--min=10", "--skip-tests=AuthorEmail", file)
            for file in files
            if file not in wheels
        ),
    ]
    problems = []
    for command in commands:
        try:
            run(sys.executable, "-m", *command)
        except ReleaseError as error:
            problems.append(str(error))
    return [*problems, *wrong_contents(packages, source)]


def wrong_contents(packages: Path, source: Path) -> Iterator[str]:
    """Yield what is wrong with packages that lack files of their distribution, or have others."""
    files = list(packages.iterdir())
    for name, (folder, package, place) in DISTRIBUTIONS.items():
        own = {
            path.relative_to(source / folder / place).as_posix()
            for path in (source / folder / place).rglob("*")
            if path.is_file() and path.parent.name != "__pycache__"
        }
        stem = name.replace("-", "_")
        wanted = {
            ".whl": {f"{package}/{path}" for path in own},
            ".gz": {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
            | {f"{place}/{path}" for path in own},
        }
        for suffix, expected in wanted.items():
            of_stem = (file for file in files if file.name.partition("-")[0] == stem)
            found = [file for file in of_stem if file.suffix == suffix]
            if len(found) != 1:
                yield f"{name}: there is not one package with {suffix}, but {len(found)}"
                continue
            different = sorted(_contents(found[0]) ^ expected)
            if different:
                yield f"{found[0].name}: missing or not expected: {', '.join(different)}"


def _contents(package: Path) -> set[str]:
    """Return the files of a wheel without its metadata, or those of an sdist without its folder."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            return {name for name in wheel.namelist() if ".dist-info/" not in name}
    with tarfile.open(package) as sdist:
        return {name.partition("/")[2] for name in sdist.getnames()}


def describe(packages: Path, into: Path, version: str, source_date_epoch: int) -> None:
    """Write ``sbom.cdx.json`` and ``licences.md`` for the packages and what they install.

    Args:
        packages: The folder of the packages.
        into: The folder for the two files.
        version: The version of the packages.
        source_date_epoch: The time that the SBOM states.

    Raises:
        ReleaseError: A licence is unknown or not allowed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        # In a separate environment, because the SBOM must not list the program that makes it.
        tool = _environment(Path(scratch) / "tool", "cyclonedx-bom")
        described = _environment(Path(scratch) / "described", *_DESCRIBED, find_links=packages)
        bom = into / "sbom.cdx.json"
        # The tool reads the version from this file, but cannot compute one.
        project = (ROOT / "backend/pyproject.toml").read_text(encoding="utf-8")
        static = Path(scratch) / "pyproject.toml"
        static.write_text(
            project.replace('dynamic = ["version"]', f'version = "{version}"'), encoding="utf-8"
        )
        made_by = (tool, "-m", "cyclonedx_py", "environment", described, "--output-reproducible")
        component = ("--pyproject", static, "--mc-type", "library")
        run(*made_by, *component, "-o", bom, SOURCE_DATE_EPOCH=str(source_date_epoch))
    parts = json.loads(bom.read_text(encoding="utf-8"))["components"]
    rows = [f"| {part['name']} | {part['version']} | {licence_of(part)} |" for part in parts]
    head = ["| package | version | licence |", "| --- | --- | --- |"]
    (into / "licences.md").write_text("\n".join([*head, *rows, ""]), encoding="utf-8")
    refused = [f"{part['name']} ({licence_of(part)})" for part in parts if not is_allowed(part)]
    if refused:
        raise ReleaseError(
            f"Licences that are unknown or not allowed: {', '.join(refused)}. Read each licence. "
            "If it fits, add it to _ALLOWED_LICENCES or _READ_LICENCES in tools/packages.py."
        )


def _environment(folder: Path, *requirements: str, find_links: Path | None = None) -> str:
    """Return the interpreter of a new environment with these packages and no pip."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = str(folder / "bin/python")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-compile")
    links = () if find_links is None else ("--find-links", find_links)
    run(*pip, *links, "-c", ROOT / "constraints.txt", *requirements)
    return python


def licence_of(part: dict[str, Any]) -> str:
    """Return the licence of a component of an SBOM as its metadata states it; else ``unknown``."""
    stated = [
        entry.get("expression") or entry["license"].get("id") or entry["license"]["name"]
        for entry in part.get("licenses", [])
    ]
    return "; ".join(stated) or _READ_LICENCES.get(part["name"], "unknown")


def is_allowed(part: dict[str, Any]) -> bool:
    """Return whether each licence that a component names may be distributed with emberd."""
    named = re.split(r"; | AND | OR ", licence_of(part))
    # Only an expression has brackets around more than one word.
    names = [name if name.startswith("License ::") else name.strip("()") for name in named]
    return _ALLOWED_LICENCES.issuperset(names)


def version_of(source: Path) -> str:
    """Return emberd's version in these sources."""
    text = (source / "backend/src/emberd/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    if found is None:
        raise ReleaseError(f"No __version__ in {source / 'backend/src/emberd/__init__.py'}.")
    return found[1]


def make(repository: Path, commit: str, into: Path) -> Path:
    """Build, check and describe the packages of a commit.

    Args:
        repository: The repository that has the commit.
        commit: What ``git`` understands as one.
        into: The folder in which a folder with the version as its name is made.

    Returns:
        That folder. The packages are in its folder ``packages``, which can be uploaded as it is.
    """
    epoch = int(run("git", "log", "-1", "--format=%ct", commit, folder=repository))
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        archive = Path(scratch) / "source.tar"
        run("git", "archive", "-o", archive, commit, folder=repository)
        with tarfile.open(archive) as tar:
            tar.extractall(source, filter="data")
        version = version_of(source)
        made = Path(scratch) / version
        packages = made / "packages"
        packages.mkdir(parents=True)
        build(source, packages, epoch)
        problems = check(packages, source)
        if problems:
            raise ReleaseError("\n".join(problems))
        describe(packages, made, version, epoch)
        # Only now, so that nothing is there that has not passed.
        into.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(into / version, ignore_errors=True)
        return Path(shutil.move(made, into / version))


if __name__ == "__main__":
    try:
        print(make(ROOT, "HEAD", ROOT / "dist"))
    except ReleaseError as error:
        sys.exit(str(error))
