"""Downloads a model from the hub into the hub's cache: resumed where it stopped, and verified.

Only what a server reads: configuration, tokenizer and weights in the safetensors format, which
runs no code when it is loaded. The hub says the size and the hash of each file; a file whose
content differs is deleted.

huggingface_hub keeps the layout of its cache, and downloads the small files. It removes a file
whose download was interrupted, so the large ones are downloaded here, with its HTTP client::

    <hub's cache>/models--<owner>--<name>/blobs/<etag>.incomplete    until size and hash are right
    <hub's cache>/.locks/models--<owner>--<name>/<etag>.emberd.lock  held by who downloads it

A mirror of the hub (HF_ENDPOINT) is used in the same way.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from emberd import hub_client, model_files, weight_files
from emberd.errors import HubError
from emberd.system import background, disk_space, file_lock
from emberd.system.disk_space import in_words

_TICK_S: Final = 1.0
_LIST_S: Final = 20.0
_READ_BYTES: Final = 1 << 20
_LEAST_RATE_S: Final = 2.0  # a rate over less time says nothing
_MB: Final = 1_000_000
_LOCK_MODE: Final = 0o664

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a model on the hub.

    Attributes:
        name: Its path in the repository.
        bytes: Its size.
        sha256: The hash of its content; None for a small file, which the hub keeps in git.
        git_hash: The hash that git has for it; None if it is unknown.
    """

    name: str
    bytes: int
    sha256: str | None
    git_hash: str | None

    @property
    def expected(self) -> str | None:
        """The hash that ``digest`` must return."""
        return self.sha256 or self.git_hash

    def digest(self, path: Path) -> str:
        """Return the hash of a file on this machine, of the kind that the hub gives for it."""
        found = hashlib.sha256() if self.sha256 else hashlib.sha1(usedforsecurity=False)
        if not self.sha256:
            found.update(f"blob {path.stat().st_size}\0".encode())
        with model_files.open_regular(path) as file:
            while content := file.read(_READ_BYTES):
                found.update(content)
        return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Listing:
    """What the hub has of a model at one commit, as far as a server reads it.

    Attributes:
        model: Its name on the hub.
        revision: What was asked for: a commit, branch or tag; None for the default.
        commit: The commit.
        files: Its files, the small ones first.
    """

    model: str
    revision: str | None
    commit: str
    files: tuple[HubFile, ...]

    @property
    def bytes(self) -> int:
        """The size of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def snapshot(self) -> Path:
        """Where the files are in the hub's cache; it need not exist."""
        return model_files.hub_folder(self.model) / "snapshots" / self.commit

    @property
    def missing_bytes(self) -> int:
        """The size of the files that are not in the hub's cache, without what is there of them."""
        return sum(file.bytes - self.bytes_here(file) for file in self.files)

    def bytes_here(self, file: HubFile) -> int:
        """Return how much of a file is in the hub's cache; all of it may still be damaged."""
        blob = model_files.hub_folder(self.model) / "blobs" / (file.expected or "")
        for path in (self.snapshot / file.name, blob, _partial(blob)):
            with suppress(FileNotFoundError):  # a download that ends now renames its partial file
                if path.is_file():
                    return min(path.stat().st_size, file.bytes)
        return 0


def list_files(model: str, revision: str | None) -> Listing:
    """Return what the hub has of a model; downloads none of it.

    Raises:
        HubError: The hub cannot be asked, or has no weights that can be downloaded.
    """
    if model_files.hub_is_offline():
        raise _error(model, "HF_HUB_OFFLINE disables downloads", "Unset it")
    try:
        api = hub_client.load("HfApi")(endpoint=hub_client.endpoint())
        # In a thread, because the library sets no time limit.
        asking = background.run(
            lambda: api.model_info(model, revision=revision, files_metadata=True), "hub"
        )
        about = asking.result(_LIST_S)
    except concurrent.futures.TimeoutError as error:
        cause = f"the hub did not answer within {_LIST_S:g} s"
        raise _error(model, cause, "Check the network (HTTPS_PROXY, HF_ENDPOINT)") from error
    except ImportError as error:
        cause = f"huggingface_hub cannot be imported ({error})"
        raise _error(model, cause, hub_client.INSTALL) from error
    except Exception as error:
        raise _error(model, *hub_client.explain(error, model, revision)) from error
    found = [
        HubFile(each.rfilename, each.size or 0, _sha256(each.lfs), each.blob_id)
        for each in about.siblings or ()
        if _is_read(each.rfilename)
    ]
    # Weights come last: without them, an interrupted download does not look complete.
    files = sorted(found, key=lambda file: (file.name.endswith(".safetensors"), file.name))
    names = {file.name for file in files}
    if model_files.CONFIG not in names:
        cause = f"the hub has no {model_files.CONFIG} of it, so it is not a model of Transformers"
        raise _error(model, cause, "Correct model=")
    if not any(name.endswith(".safetensors") for name in names):
        others = weight_files.in_other_formats(each.rfilename for each in about.siblings or ())
        cause = f"it has no weights in the safetensors format{weight_files.only(others)}"
        raise _error(model, cause, weight_files.CONVERT)
    return Listing(model, revision, about.sha, tuple(files))


def fetch(listing: Listing, report: Report) -> Path:
    """Download the files that are not in the hub's cache, verify all, and return their folder.

    Args:
        listing: What to download.
        report: Gets a line for display about once a second.

    Raises:
        HubError: The download failed; what is there of it is used the next time. Or a file had
            other content than the hub says, and was deleted.
    """
    _check_disk_space(listing)
    # Of their own, the library's bars and warnings would be mixed with these reports.
    hub_client.quiet(logging.ERROR)
    download = _Download(listing)
    # In a thread, so that it can be interrupted: the library waits for each read.
    future = background.run(download.run, "download")
    while concurrent.futures.wait([future], _TICK_S).not_done:
        report(download.progress())
    try:
        return future.result()
    except HubError:
        raise
    except Exception as error:
        cause, advice = hub_client.explain(error, listing.model, listing.revision)
        again = "what was downloaded is used when you try again"
        raise _error(listing.model, f"{cause}; {again}", advice) from error


class _Download:
    """One download, in its own thread."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing
        self._doing = "asking the hub"
        self._began_s = time.monotonic()
        self._began_bytes = listing.bytes - listing.missing_bytes

    def run(self) -> Path:
        """Download and verify all files.

        Raises:
            HubError: A file differs from what the hub says.
            Exception: What huggingface_hub raises.
        """
        # First by its revision, which the library notes in the cache. A branch may have moved.
        listing = self._listing
        commit = self._get(model_files.CONFIG, listing.revision).parent.name
        if commit != listing.commit:
            listing = list_files(listing.model, commit)
            self._listing = listing
        for file in listing.files:
            if file.expected is None:
                cause = f"the hub gives no hash of {file.name}"
                raise _error(listing.model, cause, "Set HF_ENDPOINT to another mirror, or unset it")
            here = listing.snapshot / file.name
            if not here.is_file():
                self._doing = f"downloading {file.name}"
                if file.sha256:
                    self._get_large(file)
                self._get(file.name, listing.commit)
            self._doing = f"verifying {file.name}"
            _verify(listing, file, here)
        return listing.snapshot

    def progress(self) -> str:
        """Return what it does, for display."""
        listing = self._listing
        done, seconds = listing.bytes - listing.missing_bytes, time.monotonic() - self._began_s
        parts = [f"{in_words(done)} of {in_words(listing.bytes)}"]
        new = done - self._began_bytes
        if new > 0 and seconds >= _LEAST_RATE_S and done < listing.bytes:
            rate = new / seconds
            left_s = (listing.bytes - done) / rate
            parts.append(f"{rate / _MB:.1f} MB/s, {left_s:.0f} s left")
        return f"{self._doing}: {', '.join(parts)}"

    def _get(self, name: str, revision: str | None) -> Path:
        """Return a file of the cache, which the library downloads if it is not there."""
        return Path(
            hub_client.load("hf_hub_download")(
                self._listing.model,
                name,
                revision=revision,
                cache_dir=model_files.hub_cache(),
                endpoint=hub_client.endpoint(),
            )
        )

    def _get_large(self, file: HubFile) -> None:
        """Put a file where the library finds it, if it is not there, and resume its download."""
        listing, endpoint = self._listing, hub_client.endpoint()
        url = hub_client.load("hf_hub_url")(
            listing.model, file.name, revision=listing.commit, endpoint=endpoint
        )
        etag = hub_client.load("get_hf_file_metadata")(url).etag
        folder = model_files.hub_folder(listing.model)
        blob = folder / "blobs" / etag
        lock = folder.parent / ".locks" / folder.name / f"{etag}.emberd.lock"
        for path in (blob, lock):
            path.parent.mkdir(parents=True, exist_ok=True)
        # With the mode of the library's own locks: several users may share the cache.
        with file_lock.held(lock, math.inf, mode=_LOCK_MODE):
            if not blob.is_file():
                partial = _partial(blob)
                _resume(url, partial, file.bytes)
                self._doing = f"verifying {file.name}"
                _verify(listing, file, partial)
                partial.rename(blob)


def _resume(url: str, path: Path, size_bytes: int) -> None:
    get = hub_client.load("http_get", "huggingface_hub.file_download")
    headers = hub_client.load("build_hf_headers", "huggingface_hub.utils")()
    if path.is_file() and path.stat().st_size > size_bytes:
        path.unlink()
    with path.open("ab") as file:
        # The client follows the hub's redirect, and does not send the token to another host.
        get(url, file, resume_size=file.tell(), headers=headers, expected_size=size_bytes)


def _verify(listing: Listing, file: HubFile, path: Path) -> None:
    """Delete a file with another content than the hub says.

    Raises:
        HubError: It had.
    """
    if (found := file.digest(path)) == file.expected:
        return
    content = path.resolve()  # the cache has links to it
    path.unlink()
    # A link to a file outside the cache, made by a user, is removed, but not that file.
    if content.parent == (model_files.hub_folder(listing.model) / "blobs").resolve():
        content.unlink(missing_ok=True)
    kind = "SHA-256" if file.sha256 else "git's hash"
    raise _error(
        listing.model,
        f"{file.name} was damaged ({kind} {found}; the hub has {file.expected}) and was deleted",
        "Try again. If that does not help, check the mirror (HF_ENDPOINT) or the proxy",
    )


def _partial(blob: Path) -> Path:
    # Not the library's name: it may append to its own file at the same time, under another lock.
    return blob.with_name(f"{blob.name}.emberd.incomplete")


def _sha256(lfs: Any) -> str | None:
    # An object in current releases, a dictionary in those before.
    found = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    return str(found) if found else None


def _is_read(name: str) -> bool:
    """Return whether a server reads a file of this name."""
    path = PurePosixPath(name)
    return any(
        len(path.parts) == len(PurePosixPath(pattern).parts) and path.match(pattern)
        for pattern in (*model_files.DESCRIBING, model_files.SAFETENSORS)
    )


def _check_disk_space(listing: Listing) -> None:
    cache, needed = model_files.hub_cache(), listing.missing_bytes
    free = disk_space.free_bytes(cache)
    if needed > free:
        raise _error(
            listing.model,
            f"{in_words(needed)} are needed on the disk of {cache}, but only {in_words(free)} are "
            f"free",
            "Free some space, or set HF_HOME to a folder on another disk",
        )


def _error(model: str, cause: str, advice: str) -> HubError:
    return HubError(f"{model} cannot be downloaded: {cause}. {advice}.")
