"""Names of models, content hashes and safetensors headers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoints_made
from emberd import model_files
from emberd.errors import SettingError
from emberd.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder whose weights are longer than what is hashed whole."""
    made = tmp_path / "fine-tuned"
    checkpoints_made.write(made)
    checkpoints_made.write_json(made / "tokenizer.json", {"model": {}})
    prompts = {"prompts": {"query": "", "document": ""}}
    checkpoints_made.write_json(made / "config_sentence_transformers.json", prompts)
    (made / "model.safetensors").write_bytes(bytes(1 << 20))
    return made


def test_a_name_on_the_hub_has_no_content_and_no_key_of_its_own() -> None:
    assert model_files.content_hash("Qwen/Qwen3-Embedding-4B") is None
    assert "content" not in Settings.resolve().spec.identity


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "1_Pooling/config.json"])
def test_another_configuration_is_another_model(folder: Path, name: str) -> None:
    before = Settings.resolve(model=str(folder)).spec
    checkpoints_made.write_json(folder / name, {"changed": True})
    after = Settings.resolve(model=str(folder)).spec
    assert before.key != after.key
    assert before.content != after.content


def test_other_weights_of_the_same_size_are_another_model(folder: Path) -> None:
    before = model_files.content_hash(str(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(bytes(range(256)) * 4096)
    assert weights.stat().st_size == 1 << 20
    assert model_files.content_hash(str(folder)) != before


def test_a_copy_elsewhere_has_the_same_content(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "named-otherwise"
    for path in folder.iterdir():
        copy.mkdir(parents=True, exist_ok=True)
        (copy / path.name).write_bytes(path.read_bytes())
    assert model_files.content_hash(str(copy)) == model_files.content_hash(str(folder))


def test_a_folder_has_one_name_from_everywhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["fine-tuned", "./fine-tuned/", "link", "~/fine-tuned", str(folder)]
    assert {Settings.resolve(model=name).model for name in names} == {str(folder)}


def test_a_hub_name_stays_as_it_is_where_no_such_folder_is(tmp_path: Path) -> None:
    assert model_files.absolute("Qwen/Qwen3-Embedding-4B") == "Qwen/Qwen3-Embedding-4B"
    assert model_files.absolute("/nowhere/../model") == "/model"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_an_error_that_names_it(folder: Path) -> None:
    (folder / "model.safetensors").chmod(0)
    with pytest.raises(SettingError, match="fine-tuned.* cannot be read"):
        model_files.content_hash(str(folder))


def test_a_header_gives_the_elements_and_the_size_that_the_file_must_have(tmp_path: Path) -> None:
    folder = checkpoints_made.write(tmp_path / "m", tensors={"a": [3, 4], "b": [5]})
    path = Path(folder, "model.safetensors")
    header = model_files.read_safetensors_header(path)
    assert header.elements == {"a": 12, "b": 5}
    assert header.file_bytes == path.stat().st_size + 2 * (12 + 5)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>404</html>",
        (10**12).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
        (14).to_bytes(8, "little") + b'{"a": {"x":1}}',
    ],
)
def test_a_file_without_a_valid_header_is_a_value_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r".*"):
        model_files.read_safetensors_header(path)


def test_engines_interpreters_can_import_the_module_without_dependencies() -> None:
    source = Path(model_files.__file__).parents[1]
    program = (
        f"import sys; sys.path.insert(0, {str(source)!r}); "
        "from emberd import model_card, model_files; "
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in "
        "('numpy', 'psutil', 'filelock', 'pydantic')))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
