"""Make a release: ``make release VERSION=1.2.3``. It publishes nothing.

The release is prepared in a separate worktree. The branch and the tag change only if every step
succeeded.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import packages
from packages import ReleaseError, run

_BRANCH: Final = "main"
_UNRELEASED: Final = "## [Unreleased]\n"
# Stands where the address of the project belongs. The packages and the site would contain it.
_PLACEHOLDER: Final = b"https://emberd.invalid"
_MAY_HAVE_IT: Final = ("tests/", "tools/")


def release(checkout: Path, version: str) -> Path:
    """Commit a new version, build its packages and tag it.

    Args:
        checkout: A clean checkout of the repository's main branch.
        version: Three numbers, newer than every released version.

    Returns:
        The folder with the packages, the SBOM and the list of licences.

    Raises:
        ReleaseError: The checkout, the version or a package is not fit. Nothing has changed.
    """
    _refuse(checkout, version)
    with _worktree(checkout) as tree:
        set_version(tree, version)
        _date_changelog(tree, version)
        # Hooks are for changes by hand, and use the environment that only the checkout has.
        run("git", "commit", "--no-verify", "-qam", f"Release {version}", folder=tree)
        commit = run("git", "rev-parse", "HEAD", folder=tree).strip()
        made = packages.make(tree, commit, checkout / "dist")
    tag = f"v{version}"
    run("git", "tag", "-a", tag, "-m", f"emberd {version}", commit, folder=checkout)
    try:
        run("git", "merge", "-q", "--ff-only", commit, folder=checkout)
    except BaseException:
        run("git", "tag", "-d", tag, folder=checkout)
        raise
    return made


def _refuse(checkout: Path, version: str) -> None:
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ReleaseError(f"{version!r} is no version of three numbers, such as 1.2.3.")
    branch = run("git", "branch", "--show-current", folder=checkout).strip()
    if branch != _BRANCH:
        raise ReleaseError(f"The branch is {branch or 'none'}. Releases are made on {_BRANCH}.")
    changed = run("git", "status", "--porcelain", folder=checkout)
    if changed:
        raise ReleaseError(f"The checkout has changes. Commit or remove them:\n{changed}")
    if run("git", "tag", "-l", f"v{version}", folder=checkout):
        raise ReleaseError(f"The tag v{version} exists. Choose a newer version.")
    if named := ", ".join(_with_placeholder(checkout)):
        raise ReleaseError(
            f"These files contain {_PLACEHOLDER.decode()}: {named}. Replace it by the address of "
            f"the project."
        )
    log = (checkout / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", log, re.MULTILINE)
    newest = max(released, key=_numbers, default=None)
    if newest is not None and _numbers(version) <= _numbers(newest):
        raise ReleaseError(f"{version} is not newer than {newest}, which has been released.")
    if "\n- " not in log.partition(_UNRELEASED)[2].partition("\n## ")[0]:
        raise ReleaseError('CHANGELOG.md has no entry under "Unreleased". Add what has changed.')


def _with_placeholder(checkout: Path) -> Iterator[str]:
    for name in run("git", "ls-files", folder=checkout).splitlines():
        file = checkout / name
        is_published = not name.startswith(_MAY_HAVE_IT) and file.is_file()
        if is_published and _PLACEHOLDER in file.read_bytes():
            yield name


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@contextlib.contextmanager
def _worktree(checkout: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch) / "tree"
        run("git", "worktree", "add", "-q", "--detach", tree, folder=checkout)
        try:
            yield tree
        finally:
            run("git", "worktree", "remove", "--force", tree, folder=checkout)


def set_version(source: Path, version: str) -> None:
    """Replace the version of the four distributions wherever a tracked file states it."""
    old = packages.version_of(source)
    places = r'^__version__ = "|^version = "|\bemberd(?:\[[\w,]+\])?==|newTag: '
    stated = re.compile(rf"({places}){re.escape(old)}(?![\w.])", re.MULTILINE)
    for name in run("git", "grep", "-lF", old, folder=source).splitlines():
        file = source / name
        text = file.read_text(encoding="utf-8")
        file.write_text(stated.sub(rf"\g<1>{version}", text), encoding="utf-8")


def _date_changelog(source: Path, version: str) -> None:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    log = source / "CHANGELOG.md"
    text = log.read_text(encoding="utf-8")
    dated = text.replace(_UNRELEASED, f"{_UNRELEASED}\n## [{version}] - {today}\n", 1)
    log.write_text(dated, encoding="utf-8")


if __name__ == "__main__":
    try:
        [wanted] = sys.argv[1:] or [""]
        place = release(packages.ROOT, wanted)
    except ReleaseError as error:
        sys.exit(str(error))
    print(f"{place}\nTo publish: git push --atomic origin {_BRANCH} v{wanted}")
