"""Each distribution in a new, separate environment, with nothing else: ``make test-installs``.

Apart from the other tests because it installs from a package registry, which takes minutes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import leftovers
import packages

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.13")
PIP = ("-m", "pip")
# As in the Makefile. It takes seconds of processor time where pip takes a minute.
UV = os.environ.get("UV") or shutil.which("uv")
MODEL = "emberd/demo"

BACKEND = f"""
import emberd
vector = emberd.Embedder({MODEL!r}).embed_query("hello")
"""
LANGCHAIN = f"""
from langchain_emberd import EmberdEmbeddings, EmberdReranker
assert EmberdReranker(top_n=5).compress_documents([], "hello") == []
vector = EmberdEmbeddings(model={MODEL!r}).embed_query("hello")
"""
LLAMA_INDEX = f"""
from llama_index.embeddings.emberd import EmberdEmbedding
vector = EmberdEmbedding(model_name={MODEL!r}).get_query_embedding("hello")
"""
# There is no small reranker: its class is only constructed.
LLAMA_INDEX_RERANKER = f"""
from llama_index.postprocessor.emberd import EmberdRerank
import emberd
assert EmberdRerank(top_n=5).postprocess_nodes([], query_str="hello") == []
vector = emberd.Embedder({MODEL!r}).embed_query("hello")
"""
CHECK = """
import importlib.util
assert len(vector) == 384, len(vector)
for name in {absent!r}:
    assert importlib.util.find_spec(name) is None, name + " is here too"
print("works")
"""

# Requirements, a program, and what must not be there.
WANTED = {
    "backend": (["emberd[demo]"], BACKEND, ["langchain_core", "llama_index"]),
    "langchain": (["emberd[demo]", "langchain-emberd"], LANGCHAIN, ["llama_index"]),
    "llama-index": (
        ["emberd[demo]", "llama-index-embeddings-emberd"],
        LLAMA_INDEX,
        ["langchain_core", "llama_index.postprocessor"],
    ),
    "llama-index-reranker": (
        ["emberd[demo]", "llama-index-postprocessor-emberd"],
        LLAMA_INDEX_RERANKER,
        ["langchain_core", "llama_index.embeddings"],
    ),
}


def run(*command: object, **more: str) -> str:
    environment = {**os.environ, **more}
    environment.pop("PYTHONPATH", None)
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def install(python: Path, *wanted: str, by_pip: bool) -> None:
    """Install into the environment of ``python``: by uv where it is, unless it has to be pip.

    If uv fails, pip does it, as in the Makefile: uv does not read a registry's name from pip.conf.
    """
    if UV and not by_pip:
        uv = (UV, "pip", "install", "-q", "--link-mode", "copy", "--python", str(python))
        if subprocess.run([*uv, *wanted], cwd=ROOT).returncode == 0:
            return
    # Not compiled: of the files of all packages, few are imported here.
    pip = (sys.executable, *PIP, "--python", python)
    run(*pip, "install", "-qq", "--no-compile", *wanted)


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of all distributions by name: built once, as a release builds them."""
    folder = tmp_path_factory.mktemp("wheels")
    packages.build(ROOT, folder, source_date_epoch=1_700_000_000)
    return {file.name.partition("-")[0].replace("_", "-"): file for file in folder.glob("*.whl")}


def interpreter(version: str) -> str:
    """Return a Python of this version that runs, or skip: not every machine has both."""
    name = f"python{version}"
    known = [
        shutil.which(name),
        *map(str, Path.home().glob(f".pyenv/versions/{version}*/bin/{name}")),
    ]
    for found in filter(None, known):
        if (
            subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True).returncode
            == 0
        ):
            return found
    pytest.skip(f"no Python {version} on this machine")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("wanted", "version"),
    [
        # Each version has two, which differ the most in what they install.
        pytest.param(wanted, version, marks=[] if place % 2 == one else [pytest.mark.full])
        for place, wanted in enumerate(WANTED)
        for one, version in enumerate(PYTHONS)
    ],
)
def test_a_distribution_works_by_itself_in_a_new_environment(
    version: str, wanted: str, tmp_path: Path, wheels: dict[str, Path]
) -> None:
    required, program, absent = WANTED[wanted]
    home = str(tmp_path / "home")
    # Without its own pip: installing that takes as long as a third of the packages.
    run(interpreter(version), "-m", "venv", "--without-pip", tmp_path / "venv")
    bin_folder = tmp_path / "venv" / "bin"
    given = [f"{each} @ {wheels[each.partition('[')[0]].as_uri()}" for each in required]
    install(bin_folder / "python", "-c", "constraints.txt", *given, by_pip=wanted == "backend")
    try:
        code = program + CHECK.format(absent=absent)
        done = run(bin_folder / "python", "-W", "error", "-c", code, EMBERD_HOME=home)
        assert done == "works\n"
        assert MODEL in run(bin_folder / "emberd", "status", EMBERD_HOME=home)
    finally:
        run(bin_folder / "emberd", "stop", EMBERD_HOME=home)
    assert leftovers.end_all([home]) == []


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_release_names_the_parts_and_licences_of_what_it_installs(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    version = packages.version_of(ROOT)
    packages.describe(wheels["emberd"].parent, tmp_path, version, 1_700_000_000)
    bom = json.loads((tmp_path / "sbom.cdx.json").read_text(encoding="utf-8"))
    described = bom["metadata"]["component"]
    assert (described["name"], described["version"]) == ("emberd", version)
    parts = {part["name"]: part for part in bom["components"]}
    assert parts.keys() >= {"numpy", "openai", *packages.DISTRIBUTIONS} - {"emberd"}
    assert "cyclonedx-bom" not in parts
    rows = (tmp_path / "licences.md").read_text(encoding="utf-8").splitlines()[2:]
    assert len(rows) == len(bom["components"])
    assert "unknown" not in "".join(rows)


# A requirement, and the command that is run with it.
_PRINTED = r"(?<!\S)`?{program} (?:--from|run --spec) '([^']+)' (emberd [^`\n]+)"


def _printed(program: str) -> set[str]:
    """Return the commands that the pages run in an environment of ``program``'s making."""
    found: set[str] = set()
    for page in ("docs/start/laptop.md", "docs/zh/laptop.md", "backend/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        commands = re.findall(_PRINTED.format(program=program), text)
        assert [wanted for wanted, _ in commands if wanted.endswith("[demo]")], page
        assert {wanted for wanted, _ in commands} <= {"./backend[demo]", "emberd[demo]"}, page
        found.update(command for _, command in commands)
    return found


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("program", "options"),
    [
        pytest.param("uvx", ["--from"], id="uvx"),
        # By pip, which takes twice as long.
        pytest.param("pipx", ["run", "--spec"], id="pipx", marks=pytest.mark.full),
    ],
)
def test_the_printed_command_starts_a_server_without_an_installation(
    program: str, options: list[str], wheels: dict[str, Path], tmp_path: Path
) -> None:
    run(sys.executable, "-m", "venv", tmp_path / "tool")
    tool = tmp_path / "tool/bin"
    package = "uv" if program == "uvx" else program
    install(tool / "python", package, by_pip=False)
    home = str(tmp_path / "home")
    own = {"UV_CACHE_DIR": str(tmp_path / "uv"), "PIPX_HOME": str(tmp_path / "pipx")}
    wanted = f"emberd[demo] @ {wheels['emberd'].as_uri()}"

    def typed(command: str) -> str:
        return run(tool / program, *options, wanted, *command.split(), EMBERD_HOME=home, **own)

    try:
        for command in _printed(program):
            assert typed(command) != ""
        assert MODEL in typed("emberd status")
    finally:
        stopped = typed("emberd stop")
    assert MODEL in stopped
    assert leftovers.end_all([home]) == []
