"""What the wheels hold, and what they ask for."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from pathlib import Path
from typing import Final

import pytest

import source_tree
from source_tree import ROOT

# Distribution -> its folder, and the folder of its package inside the wheel.
DISTRIBUTIONS: Final = {
    "emberd": ("backend", "emberd"),
    "langchain-emberd": ("integrations/langchain-emberd", "langchain_emberd"),
    "llama-index-embeddings-emberd": (
        "integrations/llama-index-embeddings-emberd",
        "llama_index/embeddings/emberd",
    ),
    "llama-index-postprocessor-emberd": (
        "integrations/llama-index-postprocessor-emberd",
        "llama_index/postprocessor/emberd",
    ),
}
_NOT_FOR_USERS: Final = re.compile(
    r"pytest|mypy|ruff|hatchling|coverage|tests?$|types-|torch|sglang|transformers"
)
_OF_AN_ENGINE: Final = re.compile(r"extra == ['\"](sglang|transformers)['\"]")


@pytest.fixture(scope="module", params=DISTRIBUTIONS)
def wheel(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> zipfile.ZipFile:
    """Each distribution's wheel, built from a copy: the checkout stays as it is."""
    folder, _ = DISTRIBUTIONS[request.param]
    place = tmp_path_factory.mktemp("wheel")
    copy = shutil.copytree(
        ROOT / folder, place / "source", ignore=shutil.ignore_patterns("__pycache__")
    )
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = place.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive


def _distribution(wheel: zipfile.ZipFile) -> str:
    return Path(wheel.filename or "").name.split("-")[0].replace("_", "-")


def _metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(str(wheel.filename)) as archive:
        return email.message_from_bytes(archive.read(name))


def _package_files(wheel: zipfile.ZipFile) -> set[str]:
    return {name for name in wheel.namelist() if ".dist-info/" not in name}


def test_a_wheel_holds_its_package_whole_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """No tests, and no __init__.py in a folder that other distributions share."""
    _, package = DISTRIBUTIONS[_distribution(wheel)]
    source = source_tree.PACKAGES[package.replace("/", ".")]
    wanted = {
        f"{package}/{path.relative_to(source)}"
        for path in source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert _package_files(wheel) == wanted


@pytest.mark.parametrize("kind", ["embeddings", "postprocessor"])
def test_the_folders_that_llama_index_shares_have_no_init_file(kind: str) -> None:
    """With one, an editable install would hide llama_index.core."""
    package = source_tree.PACKAGES[f"llama_index.{kind}.emberd"]
    shared = (package.parent, package.parent.parent)
    assert [folder.name for folder in shared] == [kind, "llama_index"]
    assert [folder for folder in shared if (folder / "__init__.py").exists()] == []


def test_a_wheel_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    _, package = DISTRIBUTIONS[_distribution(wheel)]
    assert f"{package}/py.typed" in wheel.namelist()


def test_no_wheel_asks_for_a_tool_of_ours_or_for_a_model_runtime(wheel: zipfile.ZipFile) -> None:
    wanted = _metadata(wheel).get_all("Requires-Dist") or []
    # Whoever asks for an engine's extra asks for a model runtime.
    plain = [line for line in wanted if not _OF_AN_ENGINE.search(line)]
    names = [re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0] for line in plain]
    assert names
    assert [name for name in names if _NOT_FOR_USERS.search(name)] == []


def test_a_wheel_states_licence_and_python(wheel: zipfile.ZipFile) -> None:
    metadata = _metadata(wheel)
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("MIT", ">=3.11")
    (name,) = (name for name in wheel.namelist() if name.endswith("licenses/LICENSE"))
    with zipfile.ZipFile(str(wheel.filename)) as archive:
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_a_wheel_has_what_a_package_index_shows(wheel: zipfile.ZipFile) -> None:
    metadata = _metadata(wheel)
    folder, _ = DISTRIBUTIONS[_distribution(wheel)]
    readme = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == readme.strip()
    assert re.findall(r"\]\((?!https?://)", readme) == [], "relative links lead nowhere there"
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL") or [])
    assert list(urls) == ["Homepage", "Documentation", "Repository", "Issues", "Changelog"]
    assert len(metadata["Keywords"].split(",")) >= 5


def test_classifiers_name_the_python_versions_that_are_tested(wheel: zipfile.ZipFile) -> None:
    named = re.findall(r"Python :: (3\.\d+)$", "\n".join(_classifiers(wheel)), re.MULTILINE)
    first_line = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()[0]
    lowest, highest = re.findall(r"3\.(\d+)", first_line)
    assert named == [f"3.{minor}" for minor in range(int(lowest), int(highest) + 1)]


def _classifiers(wheel: zipfile.ZipFile) -> list[str]:
    return _metadata(wheel).get_all("Classifier") or []


@pytest.mark.parametrize("wheel", ["emberd"], indirect=True)
def test_the_command_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    with zipfile.ZipFile(str(wheel.filename)) as archive:
        assert "emberd = emberd.cli:main" in archive.read(name).decode()


def test_constraints_are_exact_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    odd = [rule for rule in rules if not re.fullmatch(r"[A-Za-z0-9._-]+==[\w.+]+(; .+)?", rule)]
    assert (odd, [rule for rule in rules if rule.startswith(("torch==", "sglang=="))]) == ([], [])
    assert rules
