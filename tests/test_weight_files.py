"""A model's folder: whole, or what it lacks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import checkpoints_made
from emberd import weight_files
from emberd.system import capacity


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that is whole: its weights are as long as their header says."""
    made = tmp_path / "model"
    checkpoints_made.write(made)
    (made / "tokenizer.json").write_text("{}")
    write(made / "model.safetensors", 96)
    return made


def write(file: Path, size: int, there: int | None = None) -> None:
    """Write a file of weights of ``size`` bytes, of which ``there`` are there."""
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [size // 4], "data_offsets": [0, size // 2]},
        "b": {"dtype": "BF16", "shape": [size // 4], "data_offsets": [size // 2, size]},
    }
    text = json.dumps(header).encode()
    file.write_bytes(
        len(text).to_bytes(8, "little") + text + bytes(size if there is None else there)
    )


def test_a_whole_model_lacks_nothing(folder: Path) -> None:
    assert weight_files.missing_files(folder) == []
    assert weight_files.size_bytes(folder) == (folder / "model.safetensors").stat().st_size


def test_an_empty_folder_lacks_everything(tmp_path: Path) -> None:
    assert weight_files.missing_files(tmp_path) == [
        "no config.json",
        "no tokenizer.json",
        "no weights (*.safetensors)",
    ]


def test_a_file_that_was_cut_short_is_seen(folder: Path) -> None:
    write(folder / "model.safetensors", 2048, there=1000)
    [trouble] = weight_files.missing_files(folder)
    assert trouble.startswith("model.safetensors has 1,")
    assert trouble.endswith("its download was interrupted")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>404</html>",
        (10**12).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
        (10_000).to_bytes(8, "little") + b"[" * 10_000,
        (28).to_bytes(8, "little") + b'{"a": {"data_offsets": [1]}}',
    ],
)
def test_what_is_no_safetensors_file_is_seen(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    [trouble] = weight_files.missing_files(folder)
    assert trouble.startswith("model.safetensors cannot be read as safetensors")


def test_a_part_that_the_index_names_and_that_is_not_there_is_seen(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weight_files.missing_files(folder) == [
        "model-00002-of-00002.safetensors is missing (model.safetensors.index.json lists it)"
    ]


@pytest.mark.parametrize("named", [[1], {"a": None}, {"a": ["b"]}])
def test_a_damaged_index_names_nothing(folder: Path, named: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
    assert weight_files.missing_files(folder) == []


def ahead(monkeypatch: pytest.MonkeyPatch, folder: Path, free: int | None = 1 << 30) -> list[bytes]:
    """Read ahead; return what the kernel was asked to read of each file."""
    told: dict[str, list[tuple[int, int]]] = {}

    def advise(descriptor: int, begin: int, count: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        told.setdefault(os.readlink(f"/proc/self/fd/{descriptor}"), []).append((begin, count))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(capacity, "free_memory", lambda: free)
    weight_files.read_ahead(str(folder), None)
    return [
        b"".join(Path(name).read_bytes()[begin : begin + count] for begin, count in pieces)
        for name, pieces in told.items()
        if all(count <= 128 * 1024 for _, count in pieces)  # the kernel ignores the rest of more
    ]


def test_all_weights_are_read_ahead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "model.safetensors", 500_000)
    write(folder / "other.safetensors", 96)
    files = sorted(folder.glob("*.safetensors"))
    assert ahead(monkeypatch, folder) == [file.read_bytes() for file in files]


@pytest.mark.parametrize("free", [50, None])
def test_weights_larger_than_the_free_memory_are_not_read_ahead(
    folder: Path, monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    assert ahead(monkeypatch, folder, free) == []


def test_reading_ahead_of_a_model_that_is_not_here_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ahead(monkeypatch, Path("no/such-model")) == []


def test_older_forms_of_weights_count(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert weight_files.missing_files(folder) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen/Qwen3-Embedding-4B", 8_000_000_000),
        ("Qwen/Qwen3-Embedding-0.6B", 1_200_000_000),
        ("somebody/bert-110M", 220_000_000),
        ("intfloat/multilingual-e5-small", 0),
    ],
)
def test_a_models_size_is_guessed_by_its_name(name: str, expected: int) -> None:
    assert weight_files.estimated_bytes(name) == expected


def test_a_part_that_only_the_names_of_the_others_tell_is_seen(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00002-of-00003.safetensors")
    assert weight_files.missing_files(folder) == [
        f"model-0000{number}-of-00003.safetensors is missing (the names of the others count it)"
        for number in (1, 3)
    ]
    for number in (1, 3):
        write(folder / f"model-0000{number}-of-00003.safetensors", 96)
    assert weight_files.missing_files(folder) == []


def test_a_part_of_an_older_form_is_missed_too(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model-00001-of-00002.bin")
    [missing] = weight_files.missing_files(folder)
    assert missing.startswith("pytorch_model-00002-of-00002.bin")


@pytest.mark.parametrize(
    "stray", ["pytorch_model-00001-of-00002.bin", "model-00001-of-00002.safetensors"]
)
def test_a_part_beside_whole_weights_counts_for_nothing(folder: Path, stray: str) -> None:
    write(folder / stray, 96)
    assert weight_files.missing_files(folder) == []


def test_a_part_that_the_index_names_too_is_reported_once(folder: Path) -> None:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / "model.safetensors").rename(folder / names[0])
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    [missing] = weight_files.missing_files(folder)
    assert missing.startswith(names[1])


@pytest.mark.parametrize("name", ["a-00001-of-00000.safetensors", "a-00001-of-99999.safetensors"])
def test_a_name_that_counts_nonsense_is_no_error(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert len(weight_files.missing_files(folder)) < 2000
