"""What the packages contain, and what they require."""

from __future__ import annotations

import email
import filecmp
import re
import shutil
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import Final

import pytest

import packages
import pages
import source_tree
from packages import DISTRIBUTIONS
from source_tree import ROOT

_NOT_FOR_USERS: Final = re.compile(
    r"pytest|mypy|ruff|hatchling|coverage|tests?$|types-|torch|sglang|transformers"
)
_OF_AN_ENGINE: Final = re.compile(r"extra == ['\"](sglang|transformers)['\"]")


def _add_a_test(built: Path) -> None:
    (wheel,) = built.glob("langchain_emberd-*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("langchain_emberd/test_stray.py", "")


def _leave_out_the_type_marker(built: Path) -> None:
    _copy_without(built, "langchain_emberd/py.typed")


def _remove_the_sdist(built: Path) -> None:
    (sdist,) = built.glob("langchain_emberd-*.tar.gz")
    sdist.unlink()


def _copy_without(built: Path, left_out: str) -> None:
    (wheel,) = built.glob("langchain_emberd-*.whl")
    whole = wheel.rename(wheel.with_suffix(".whole"))
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(wheel, "w") as new:
        for name in old.namelist():
            if name != left_out:
                new.writestr(name, old.read(name))
    whole.unlink()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of the working tree."""
    place = tmp_path_factory.mktemp("packages")
    packages.build(ROOT, place, source_date_epoch=1_700_000_000)
    return place


@pytest.fixture(params=DISTRIBUTIONS)
def wheel(request: pytest.FixtureRequest, built: Path) -> zipfile.ZipFile:
    """The wheel of each distribution."""
    (path,) = built.glob(f"{request.param.replace('-', '_')}-*.whl")
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


def test_the_packages_pass_the_checks_of_a_release(built: Path) -> None:
    """twine, check-wheel-contents, pyroma; no file is missing, and no other file is there."""
    assert packages.check(built, ROOT) == []


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_add_a_test, "test_stray.py"),
        (_leave_out_the_type_marker, "py.typed"),
        (_remove_the_sdist, ".gz"),
    ],
)
def test_a_package_with_other_files_is_found(
    damage: Callable[[Path], None], named: str, built: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(built, tmp_path / "packages")
    damage(copy)
    [problem] = packages.wrong_contents(copy, ROOT)
    assert named in problem


def test_metadata_that_lacks_something_is_found(tmp_path: Path) -> None:
    """twine misses a long description, and pyroma the keywords."""
    source = tmp_path / "source"
    for folder, _, _ in DISTRIBUTIONS.values():
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    project = source / "backend/pyproject.toml"
    text = project.read_text(encoding="utf-8")
    project.write_text(re.sub(r"(?m)^(keywords|readme) = .*$", "", text), encoding="utf-8")
    built = tmp_path / "packages"
    packages.build(source, built, source_date_epoch=1_700_000_000)
    by_twine, by_pyroma = packages.check(built, source)
    assert "twine" in by_twine
    assert "description" in by_twine
    assert "keywords" in by_pyroma


def test_equal_sources_give_equal_packages(built: Path, tmp_path: Path) -> None:
    packages.build(ROOT, tmp_path, source_date_epoch=1_700_000_000)
    same, different, odd = filecmp.cmpfiles(
        built, tmp_path, [file.name for file in built.iterdir()], shallow=False
    )
    assert (len(same), different, odd) == (2 * len(DISTRIBUTIONS), [], [])


@pytest.mark.parametrize("kind", ["embeddings", "postprocessor"])
def test_the_folders_that_llama_index_shares_have_no_init_file(kind: str) -> None:
    """With one, an editable install would hide llama_index.core."""
    package = source_tree.PACKAGES[f"llama_index.{kind}.emberd"]
    shared = (package.parent, package.parent.parent)
    assert [folder.name for folder in shared] == [kind, "llama_index"]
    assert [folder for folder in shared if (folder / "__init__.py").exists()] == []


def test_a_wheel_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    _, package, _ = DISTRIBUTIONS[_distribution(wheel)]
    assert f"{package}/py.typed" in wheel.namelist()


def test_no_wheel_asks_for_a_tool_of_ours_or_for_a_model_runtime(wheel: zipfile.ZipFile) -> None:
    wanted = _metadata(wheel).get_all("Requires-Dist") or []
    # The extra of an engine is a model runtime.
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
    folder, _, _ = DISTRIBUTIONS[_distribution(wheel)]
    readme = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert str(metadata.get_payload()).strip() == readme.strip()
    assert re.findall(r"\]\((?!https?://)", readme) == [], "relative links lead nowhere there"
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL") or [])
    assert list(urls) == ["Homepage", "Documentation", "Repository", "Issues", "Changelog"]
    assert len(metadata["Keywords"].split(",")) >= 5


def test_the_description_of_a_wheel_installs_it_and_starts_the_default_model(
    wheel: zipfile.ZipFile,
) -> None:
    page = f"{DISTRIBUTIONS[_distribution(wheel)][0]}/README.md"
    name = _metadata(wheel)["Name"]
    calls = [
        [words for block in pages.blocks(page) for _, words in pages.commands(block, program)]
        for program in ("pip", "emberd")
    ]
    with_hub = [words for words in calls[0] if "emberd[hub]" in words]
    assert any({name, f"{name}[hub]"} & set(words) for words in with_hub)
    assert any(words[0] == "up" for words in calls[1])


@pytest.mark.parametrize("wheel", ["emberd"], indirect=True)
def test_the_description_of_emberd_lists_its_extras(wheel: zipfile.ZipFile) -> None:
    rows = re.findall(r"^\| (`.*?) \|", str(_metadata(wheel).get_payload()), re.MULTILINE)
    listed = re.findall(r"`([a-z]+)`", " ".join(row for row in rows if "emberd " not in row))
    assert sorted(listed) == sorted(_metadata(wheel).get_all("Provides-Extra") or [])


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
