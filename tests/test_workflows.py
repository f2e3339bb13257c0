"""The workflows, forms and hooks of the repository: valid, safe, and in step with ``.ci/run``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from source_tree import ROOT

_GITHUB: Final = ROOT / ".github"
_SCHEMAS: Final = {
    "workflows/ci.yml": "github-workflows",
    "workflows/docs.yml": "github-workflows",
    "workflows/release.yml": "github-workflows",
    "workflows/weekly.yml": "github-workflows",
    "ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    "ISSUE_TEMPLATE/feature.yml": "github-issue-forms",
    "ISSUE_TEMPLATE/config.yml": "github-issue-config",
    "dependabot.yml": "dependabot",
}


# Targets that no workflow runs, and why.
_BY_HAND: Final = {
    "test-gpu": "needs a GPU",
    "test-sglang-full": "installs a second SGLang, which takes 10 GB more than a runner has",
}


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def _program(name: str) -> Path:
    return Path(sys.executable).parent / name


def test_each_file_for_github_has_its_schema() -> None:
    files = {path.relative_to(_GITHUB).as_posix() for path in _GITHUB.rglob("*.yml")}
    assert files == _SCHEMAS.keys()


@pytest.mark.parametrize("schema", sorted(set(_SCHEMAS.values())))
def test_files_for_github_are_valid(schema: str, tmp_path: Path) -> None:
    files = [_GITHUB / name for name, its in _SCHEMAS.items() if its == schema]
    odd = tmp_path / "odd.yml"
    odd.write_text("no_such_key: 1\n", encoding="utf-8")
    options = ("--builtin-schema", f"vendor.{schema}", "-o", "json")
    done = _run(_program("check-jsonschema"), *options, *files, odd)
    told = json.loads(done.stdout)
    assert {error["filename"] for error in told["errors"]} == {str(odd)}, done.stdout
    assert told["parse_errors"] == []


def test_workflows_have_no_fault_that_zizmor_knows(tmp_path: Path) -> None:
    """Permissions, unpinned actions, credentials that stay, text that becomes a command."""
    zizmor = (_program("zizmor"), "--offline", "--no-progress")
    done = _run(*zizmor, _GITHUB)
    assert done.returncode == 0, done.stdout
    text = (_GITHUB / "workflows/release.yml").read_text(encoding="utf-8")
    unpinned = tmp_path / "release.yml"
    unpinned.write_text(re.sub(r"checkout@\w+", "checkout@main", text), encoding="utf-8")
    assert "unpinned-uses" in _run(*zizmor, unpinned).stdout


def test_workflows_run_every_target_of_the_script_of_ci() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    lines = re.findall(r"^run (.+)$", script, re.MULTILINE)
    words = [word for line in lines for word in line.split()]
    targets = {word for word in words if re.fullmatch(r"check|lint|test[\w-]*", word)}
    assert len(targets) > 5
    assert _targets_of_ci() >= targets


def _targets_of_ci() -> set[str]:
    matrix = _yaml(_GITHUB / "workflows/ci.yml")["jobs"]["others"]["strategy"]["matrix"]
    others = [*matrix["target"], *(each["target"] for each in matrix["include"])]
    return {"test", "lint", *others}  # make check includes make lint


def _test_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(test[\w-]*):", makefile, re.MULTILINE))
    assert len(targets) > 10
    return targets


def test_each_target_of_the_makefile_that_tests_runs_in_a_workflow_or_says_why_not() -> None:
    targets = _test_targets()
    weekly = _yaml(_GITHUB / "workflows/weekly.yml")["jobs"]["test"]["strategy"]["matrix"]["target"]
    run_by_workflows = {*_targets_of_ci(), *weekly}
    assert targets - run_by_workflows == _BY_HAND.keys()
    assert set(weekly) <= targets


def test_the_guide_for_contributors_lists_each_target_that_tests() -> None:
    targets = _test_targets()
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^make (test[\w-]*)", guide, re.MULTILINE)) == targets
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    said = set(re.findall(r"^make (test[\w-]*) .*not in \.ci/run", guide, re.MULTILINE))
    assert said == {target for target in targets if not re.search(rf"\b{target}(?!-)\b", script)}


def test_workflows_test_the_python_versions_that_the_packages_name() -> None:
    project = tomllib.loads((ROOT / "backend/pyproject.toml").read_text(encoding="utf-8"))
    classifiers = "\n".join(project["project"]["classifiers"])
    named = re.findall(r"Python :: (3\.\d+)$", classifiers, re.MULTILINE)
    jobs = _yaml(_GITHUB / "workflows/ci.yml")["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"] == named


def test_links_of_the_forms_lead_to_the_repository() -> None:
    project = tomllib.loads((ROOT / "backend/pyproject.toml").read_text(encoding="utf-8"))
    repository = project["project"]["urls"]["Repository"]
    links = [link["url"] for link in _yaml(_GITHUB / "ISSUE_TEMPLATE/config.yml")["contact_links"]]
    links += re.findall(r"https?://[^\s)]+", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert f"{repository}/security/advisories/new" in links
    assert [link for link in links if not link.startswith(f"{repository}/")] == []


def test_hooks_are_the_tools_of_the_environment() -> None:
    """They download nothing, and have the versions that ``make check`` has."""
    [repository] = _yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        program = hook["entry"].split()[0].removeprefix(".venv/bin/")
        assert f"$(BIN)/{program}" in makefile
