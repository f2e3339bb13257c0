"""Downloads of models, with the real huggingface_hub, from a hub on loopback that fails at will."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import huggingface_hub.constants
import huggingface_hub.file_download
import huggingface_hub.utils._http
import pytest

from emberd import hub_weights, model_files, weight_files
from emberd.errors import HubError
from real import fake_hub
from real.fake_hub import COMMIT, Hub

MODEL: Final = "owner/model"
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
_RETRIES: Final = 5  # of huggingface_hub, as long as no byte arrives


class _NoPauses:
    def __getattr__(self, name: str) -> Any:
        return (lambda _: None) if name == "sleep" else getattr(time, name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(hub_weights, "_TICK_S", 0.01)
    # What is in its buffer when a connection breaks is lost.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        monkeypatch.setattr(module, "time", _NoPauses())
    made = Hub({MODEL: fake_hub.tiny_model()})
    with fake_hub.serve_models(made) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield made


def fetch(revision: str | None = None, report: Any = lambda _: None) -> Path:
    return hub_weights.fetch(hub_weights.list_files(MODEL, revision), report)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def partials() -> list[Path]:
    return list((model_files.hub_folder(MODEL) / "blobs").glob("*.incomplete"))


def test_a_model_is_in_the_hubs_cache_afterwards(hub: Hub) -> None:
    listing = hub_weights.list_files(MODEL, None)
    assert not model_files.hub_folder(MODEL).exists(), "listing downloads nothing"
    assert listing.missing_bytes == listing.bytes == sum(map(len, hub.models[MODEL].values()))
    folder = hub_weights.fetch(listing, lambda _: None)
    assert files(folder) == hub.models[MODEL]
    assert model_files.hub_snapshot(MODEL, None) == folder
    assert weight_files.missing_files(folder) == []
    assert listing.missing_bytes == 0
    assert partials() == []


def test_only_what_a_server_reads_is_downloaded(hub: Hub) -> None:
    wanted = dict(hub.models[MODEL])
    hub.models[MODEL] |= {
        "pytorch_model.bin": b"a pickle",
        "onnx/model.safetensors": fake_hub.weights(10),
        "code.py": b"",
        "README.md": b"",
    }
    assert files(fetch()) == wanted


def test_what_is_there_is_not_downloaded_again(hub: Hub) -> None:
    fetch()
    transfers = list(hub.transfers)
    fetch()
    assert hub.transfers == transfers == [FIRST, SECOND]


def test_a_download_goes_on_after_its_connection_broke(hub: Hub) -> None:
    hub.cuts[FIRST] = [10_000, 5_000]
    assert files(fetch()) == hub.models[MODEL]
    ranges = [wanted for name, wanted in hub.ranges if name == FIRST]
    assert ranges == [None, "bytes=10000-", "bytes=15000-"]


def test_progress_is_counted_while_a_download_ends(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cuts[SECOND] = [30_000, *([0] * _RETRIES)]
    with pytest.raises(HubError):
        fetch()
    listing = hub_weights.list_files(MODEL, None)
    [partial] = partials()
    is_file = Path.is_file

    def and_is_renamed(path: Path) -> bool:
        was_file = is_file(path)
        if path == partial:
            path.unlink(missing_ok=True)
        return was_file

    monkeypatch.setattr(Path, "is_file", and_is_renamed)
    assert listing.missing_bytes == len(hub.models[MODEL][SECOND])


def test_a_download_that_failed_is_resumed_by_the_next(hub: Hub) -> None:
    hub.cuts[SECOND] = [30_000, *([0] * _RETRIES)]
    with pytest.raises(HubError, match="when you try again"):
        fetch()
    [partial] = partials()
    assert partial.stat().st_size == 30_000
    listing = hub_weights.list_files(MODEL, None)
    assert listing.missing_bytes == len(hub.models[MODEL][SECOND]) - 30_000
    hub.ranges.clear()
    assert files(fetch()) == hub.models[MODEL]
    assert hub.ranges == [(SECOND, "bytes=30000-")]


def test_a_mirror_that_ignores_ranges_sends_the_whole_file_again(hub: Hub) -> None:
    hub.cuts[FIRST], hub.ignores_ranges = [10_000], True
    assert files(fetch()) == hub.models[MODEL]


def test_the_remains_of_another_file_are_not_used(hub: Hub) -> None:
    hub.cuts[FIRST] = [10_000, *([0] * _RETRIES)]
    with pytest.raises(HubError):
        fetch()
    [partial] = partials()
    partial.write_bytes(bytes(90_000))
    assert files(fetch()) == hub.models[MODEL]


@pytest.mark.parametrize("name", [SECOND, "config.json"])
def test_a_file_with_a_wrong_hash_is_deleted(hub: Hub, name: str) -> None:
    content = hub.models[MODEL][name]
    hub.tampered[name] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(HubError, match=f"{name} was damaged") as raised:
        fetch()
    assert "was deleted" in str(raised.value)
    snapshot = model_files.hub_snapshot(MODEL, None)
    assert snapshot is not None
    assert not os.path.lexists(snapshot / name)
    assert all(
        hub.tampered[name] != path.read_bytes()
        for path in snapshot.parents[1].rglob("*/*")
        if path.is_file()
    )
    assert partials() == []
    hub.tampered.clear()
    assert files(fetch()) == hub.models[MODEL]


def test_a_file_that_changed_on_the_disk_is_found_and_deleted(hub: Hub) -> None:
    weights = fetch() / FIRST
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.resolve().write_bytes(content)
    assert weight_files.missing_files(weights.parent) == [], "its header is whole"
    with pytest.raises(HubError, match=FIRST):
        fetch()
    assert not os.path.lexists(weights)
    assert files(fetch()) == hub.models[MODEL]


def test_a_file_elsewhere_that_the_cache_links_to_is_not_deleted(hub: Hub, tmp_path: Path) -> None:
    weights = fetch() / FIRST
    own = tmp_path / "own.safetensors"
    own.write_bytes(b"fine-tuned")
    weights.unlink()
    weights.symlink_to(own)
    with pytest.raises(HubError, match=FIRST):
        fetch()
    assert own.read_bytes() == b"fine-tuned"
    assert files(fetch()) == hub.models[MODEL]


def test_a_hub_that_accepts_and_does_not_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub_weights, "_LIST_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(HubError, match=r"did not answer within 0\.1 s"):
            hub_weights.list_files(MODEL, None)


def test_weights_come_after_all_other_files(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted download without its tokenizer, a large file too, would look complete."""
    monkeypatch.setattr(fake_hub, "_LFS_ENDINGS", (".safetensors", "tokenizer.json"))
    names = [file.name for file in hub_weights.list_files(MODEL, None).files]
    is_weights = [name.endswith(".safetensors") for name in names]
    assert is_weights == sorted(is_weights)
    assert any(is_weights)


def test_a_file_that_the_library_is_downloading_is_not_used(hub: Hub) -> None:
    """It may append to its own partial file under another lock."""
    whole = hub.models[MODEL][FIRST]
    etag = next(f for f in hub_weights.list_files(MODEL, None).files if f.name == FIRST).expected
    theirs = model_files.hub_folder(MODEL) / "blobs" / f"{etag}.incomplete"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(whole[:1000])
    assert files(fetch()) == hub.models[MODEL]
    assert theirs.read_bytes() == whole[:1000]


def test_a_mirror_without_hashes_is_refused(hub: Hub) -> None:
    hub.has_hashes = False
    with pytest.raises(HubError, match="no hash"):
        fetch()
    assert hub.transfers == []


@pytest.mark.parametrize("revision", [COMMIT, "main", None])
def test_a_revision_is_found_again_by_its_name(hub: Hub, revision: str | None) -> None:
    assert model_files.hub_snapshot(MODEL, revision) is None
    folder = fetch(revision)
    assert model_files.hub_snapshot(MODEL, revision) == folder


def test_a_branch_that_moves_is_downloaded_at_one_commit(hub: Hub) -> None:
    listing = hub_weights.list_files(MODEL, None)
    hub.commit = "f" * 40
    hub.models[MODEL][FIRST] = fake_hub.weights(40_000, seed=9)
    folder = hub_weights.fetch(listing, lambda _: None)
    assert folder.name == "f" * 40
    assert files(folder) == hub.models[MODEL]


def test_the_users_token_is_sent_to_the_hub_only(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_made_up")
    fetch()
    assert hub.tokens == {None}
    assert hub.own_tokens == {"Bearer hf_made_up"}


def test_two_downloads_share_one_transfer(hub: Hub) -> None:
    hub.hold = FIRST
    found: list[Path] = []
    both = [threading.Thread(target=lambda: found.append(fetch())) for _ in range(2)]
    both[0].start()
    assert hub.halfway.wait(30)
    both[1].start()
    hub.held.set()
    for each in both:
        each.join(30)
    assert len(set(found)) == 1 == len(found) - 1
    assert hub.transfers == [FIRST, SECOND]


def test_users_who_share_a_cache_can_lock_it(hub: Hub) -> None:
    before = os.umask(0o002)
    try:
        fetch()
    finally:
        os.umask(before)
    found = list((model_files.hub_cache() / ".locks").rglob("*.emberd.lock"))
    assert len(found) == 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in found} == {0o664}


def test_a_model_without_safetensors_is_refused_with_what_it_has(hub: Hub) -> None:
    for name in (FIRST, SECOND):
        del hub.models[MODEL][name]
    hub.models[MODEL] |= {"pytorch_model.bin": b"a pickle", "onnx/model.onnx": b"a graph"}
    with pytest.raises(HubError, match=r"only onnx/model\.onnx, pytorch_model\.bin"):
        hub_weights.list_files(MODEL, None)
    assert hub.transfers == []


def test_progress_counts_what_was_there_before(hub: Hub) -> None:
    hub.cuts[SECOND] = [30_000, *([0] * _RETRIES)]
    with pytest.raises(HubError):
        fetch()
    hub.hold, reports = SECOND, list[str]()

    def report(line: str) -> None:
        reports.append(line)
        if hub.halfway.is_set():
            hub.held.set()

    fetch(report=report)
    assert any(SECOND in line and " of 0 MB" in line for line in reports)


@pytest.mark.parametrize(
    ("lost", "says"), [("config.json", "config.json"), (FIRST, ""), (SECOND, "")]
)
def test_a_repository_without_a_configuration_or_weights_is_refused(
    hub: Hub, lost: str, says: str
) -> None:
    for name in [lost] if says else [FIRST, SECOND]:
        del hub.models[MODEL][name]
    hub.models[MODEL]["pytorch_model.bin"] = b"a pickle"
    with pytest.raises(HubError, match=says or "safetensors"):
        hub_weights.list_files(MODEL, None)


def test_a_model_that_the_hub_does_not_have_is_an_error(hub: Hub) -> None:
    with pytest.raises(HubError, match="owner/name"):
        hub_weights.list_files("owner/other", None)


def test_offline_nothing_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        hub_weights.list_files(MODEL, None)
    assert hub.requests == []


def test_without_huggingface_hub_the_error_says_what_to_install(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(HubError, match="pip install huggingface_hub"):
        hub_weights.list_files(MODEL, None)


def test_a_disk_that_is_too_small_is_an_error_before_the_download(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(HubError, match="HF_HOME"):
        fetch()
    assert hub.transfers == []
