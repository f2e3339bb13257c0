"""``make release`` on a copy of the repository."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import packages
import release
from packages import ReleaseError, run
from source_tree import ROOT


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the files of the working tree, on its main branch; it has an address."""
    place = tmp_path_factory.mktemp("repository")
    names = run("git", "ls-files", "-co", "--exclude-standard", folder=ROOT).splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), names):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / name)
        if not name.startswith(("tests/", "tools/")):
            _name_the_project(place / name)
    run("git", "init", "-qb", "main", folder=place)
    _commit(place)
    return place


def _name_the_project(file: Path) -> None:
    content = file.read_bytes()
    if (named := content.replace(b"emberd.invalid", b"emberd.test")) != content:
        file.write_bytes(named)


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A clone of it."""
    place = tmp_path / "checkout"
    run("git", "clone", "-q", repository, place)
    return place


@pytest.fixture(scope="module", autouse=True)
def _author() -> Iterator[None]:
    """Commits need one, and a machine of CI has none."""
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "a maintainer")
            patch.setenv(f"GIT_{role}_EMAIL", "maintainer@localhost")
        yield


def _commit(place: Path) -> None:
    run("git", "add", "-A", folder=place)
    run("git", "commit", "-qm", "All files", folder=place)


@pytest.fixture
def only_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/test_packaging.py checks packages; tests/installs describes them from a registry."""
    monkeypatch.setattr(packages, "check", lambda *_: [])
    monkeypatch.setattr(packages, "describe", lambda *_: None)


@pytest.mark.usefixtures("only_built")
def test_a_release_is_a_tagged_commit_with_packages_of_its_version(checkout: Path) -> None:
    _refuse_every_commit(checkout)
    before = run("git", "rev-parse", "HEAD", folder=checkout)
    made = release.release(checkout, "1.2.3")
    assert run("git", "rev-parse", "HEAD~1", folder=checkout) == before
    tagged = run("git", "rev-parse", "v1.2.3^{commit}", folder=checkout)
    assert tagged == run("git", "rev-parse", "HEAD", folder=checkout)
    assert run("git", "status", "--porcelain", folder=checkout) == ""
    assert len(run("git", "worktree", "list", folder=checkout).splitlines()) == 1

    log = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"## \[Unreleased\]\n\n## \[1\.2\.3\] - \d{4}-\d\d-\d\d\n\n###", log)
    assert made == checkout / "dist/1.2.3"
    names = sorted(file.name for file in (made / "packages").iterdir())
    stems = sorted(name.replace("-", "_") for name in packages.DISTRIBUTIONS)
    assert names == [
        f"{stem}-1.2.3{end}" for stem in stems for end in ("-py3-none-any.whl", ".tar.gz")
    ]
    # From the tag, another machine makes the same files.
    again = packages.make(checkout, "v1.2.3", checkout.parent)
    for name in names:
        assert (again / "packages" / name).read_bytes() == (made / "packages" / name).read_bytes()


def _refuse_every_commit(checkout: Path) -> None:
    """Make a hook as pre-commit does, whose program is not in the worktree of a release."""
    hook = checkout / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n.venv/bin/ruff check\n", encoding="utf-8")
    hook.chmod(0o755)


def test_a_version_is_replaced_wherever_it_is_stated(checkout: Path) -> None:
    old = packages.version_of(checkout)
    release.set_version(checkout, "7.8.9")
    assert packages.version_of(checkout) == "7.8.9"
    changed = run("git", "diff", "--name-only", folder=checkout).split()
    for folder, _, _ in packages.DISTRIBUTIONS.values():
        assert f"{folder}/pyproject.toml" in changed or folder == "backend"
    assert {"deploy/docker/Dockerfile", "docs/deployment.md"} <= set(changed)
    left = re.compile(rf"emberd(\[[^]]*\])?==\s*{re.escape(old)}\b")
    assert [name for name in changed if left.search((checkout / name).read_text())] == []
    # Other packages may have the same version.
    assert "tests/stores/requirements.txt" not in changed


def _change_a_file(checkout: Path) -> None:
    (checkout / "README.md").write_text("changed", encoding="utf-8")


def _leave_the_branch(checkout: Path) -> None:
    run("git", "switch", "-qc", "feature", folder=checkout)


def _empty_the_log(checkout: Path) -> None:
    (checkout / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n", encoding="utf-8")
    _commit(checkout)


def _release_a_newer_one(checkout: Path) -> None:
    log = checkout / "CHANGELOG.md"
    log.write_text(log.read_text(encoding="utf-8") + "\n## [2.0.0] - 2026-01-31\n", "utf-8")
    _commit(checkout)


def _leave_a_placeholder(checkout: Path) -> None:
    for name in ("SECURITY.md", "backend/pyproject.toml"):
        text = (checkout / name).read_text(encoding="utf-8")
        text = text.replace("emberd.test", "emberd.invalid")
        (checkout / name).write_text(text, encoding="utf-8")
    _commit(checkout)


def _tag_it(checkout: Path) -> None:
    run("git", "tag", "v1.2.3", folder=checkout)


def _nothing(checkout: Path) -> None:
    pass


@pytest.mark.usefixtures("only_built")
@pytest.mark.parametrize(
    ("given", "version", "named"),
    [
        (_change_a_file, "1.2.3", "README.md"),
        (_leave_the_branch, "1.2.3", "feature"),
        (_empty_the_log, "1.2.3", "CHANGELOG.md"),
        (_release_a_newer_one, "1.2.3", "2.0.0"),
        (_tag_it, "1.2.3", "v1.2.3"),
        (_leave_a_placeholder, "1.2.3", "SECURITY.md, backend/pyproject.toml"),
        (_nothing, "1.2", "1.2"),
        (_nothing, "", "''"),
    ],
)
def test_a_release_is_refused_with_the_reason(
    given: Callable[[Path], None], version: str, named: str, checkout: Path
) -> None:
    given(checkout)
    before = run("git", "rev-parse", "HEAD", folder=checkout)
    with pytest.raises(ReleaseError, match=re.escape(named)):
        release.release(checkout, version)
    assert run("git", "rev-parse", "HEAD", folder=checkout) == before


@pytest.mark.usefixtures("only_built")
@pytest.mark.parametrize(
    ("step", "fault"),
    [
        ("check", ReleaseError("a fault")),
        ("describe", ReleaseError("a fault")),
        ("describe", KeyboardInterrupt("a fault")),
        ("git tag -a", ReleaseError("a fault")),
        ("git merge", ReleaseError("a fault")),
        ("git merge", KeyboardInterrupt("a fault")),
    ],
)
def test_a_release_that_fails_late_changes_nothing(
    step: str, fault: BaseException, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise fault

    def failing_run(*command: object, **options: Any) -> str:
        if " ".join(map(str, command)).startswith(step):
            raise fault
        return run(*command, **options)

    monkeypatch.setattr(packages, "build", lambda *_: None)
    if step.startswith("git"):
        monkeypatch.setattr(release, "run", failing_run)
    else:
        monkeypatch.setattr(packages, step, failing)
    before = run("git", "rev-parse", "HEAD", folder=checkout)
    with pytest.raises(type(fault), match="a fault"):
        release.release(checkout, "1.2.3")
    assert run("git", "rev-parse", "HEAD", folder=checkout) == before
    assert run("git", "tag", folder=checkout) == ""
    assert run("git", "status", "--porcelain", folder=checkout) == ""
    assert len(run("git", "worktree", "list", folder=checkout).splitlines()) == 1


@pytest.mark.usefixtures("only_built")
def test_packages_that_do_not_pass_are_not_in_the_folder_of_releases(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "build", lambda *_: None)
    monkeypatch.setattr(packages, "check", lambda *_: ["a fault"])
    with pytest.raises(ReleaseError, match="a fault"):
        release.release(checkout, "1.2.3")
    assert not (checkout / "dist").exists()


@pytest.mark.parametrize(
    ("licences", "allowed"),
    [
        ([{"license": {"id": "MIT"}}], True),
        ([{"expression": "MPL-2.0 AND (Apache-2.0 OR MIT)"}], True),
        ([{"license": {"name": "License :: OSI Approved :: BSD License"}}], True),
        ([{"license": {"id": "MIT"}}, {"license": {"id": "AGPL-3.0-only"}}], False),
        ([{"expression": "MIT AND GPL-3.0-or-later"}], False),
        ([{"license": {"name": "Proprietary"}}], False),
        ([], False),
    ],
)
def test_a_licence_must_be_known_and_allowed(licences: list[dict[str, Any]], allowed: bool) -> None:
    assert packages.is_allowed({"name": "some-package", "licenses": licences}) is allowed
