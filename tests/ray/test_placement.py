"""An actor finds the server of the GPUs that it has, or of its node."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest

from emberd.errors import SettingError, TextError
from emberd.ray import EmbedBatches, placement
from fake_nvml import Card, Nvml
from managed import MODEL

FOUR = [Card(f"GPU-{letter * 4}") for letter in "abcd"]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    made = Nvml(FOUR)
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


def home_with(visible: str | None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the part of the home that is this actor's."""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    return Path(placement.home()).relative_to(os.environ["EMBERD_HOME"])


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        pytest.param(None, ".", id="an-actor-that-sees-all"),
        pytest.param("0,1,2,3", ".", id="an-actor-that-has-all"),
        pytest.param("", ".", id="an-actor-that-has-none"),
        pytest.param("2", "gpus/GPU-cccc", id="by-number"),
        pytest.param("GPU-dddd", "gpus/GPU-dddd", id="by-uuid"),
    ],
)
def test_a_gpu_of_several_has_a_home_of_its_own(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch, visible: str | None, expected: str
) -> None:
    assert home_with(visible, monkeypatch) == Path(expected)


def test_the_only_gpu_of_a_node_is_served_from_the_nodes_home(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.cards = FOUR[:1]
    assert home_with("0", monkeypatch) == Path()


def test_some_gpus_together_have_one_home_whatever_their_order(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = home_with("1,2", monkeypatch)
    assert one == home_with("2,1", monkeypatch)
    assert one not in (home_with("1,3", monkeypatch), Path())


def test_an_instance_whose_name_is_a_path_has_one_folder(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card("GPU-e", instances=[Card("MIG-GPU-e/1/0"), Card("MIG-GPU-e/2/0")])
    nvml.cards = [card]
    assert home_with("MIG-GPU-e/2/0", monkeypatch) == Path("gpus/MIG-GPU-e_2_0")


def test_a_server_does_not_inherit_the_threads_that_ray_allows_an_actor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started_with = tmp_path / "environ"
    monkeypatch.setattr(placement, "_ENVIRONMENT_AT_START", started_with)
    for variables, kept in ((b"A=1\0", None), (b"A=1\0OMP_NUM_THREADS=3\0", "3")):
        started_with.write_bytes(variables)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        placement.free_threads()
        assert os.environ.get("OMP_NUM_THREADS") == kept


# ---------------------------------------------------------------- the class, without a cluster


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"api_key": "secret"}, "EMBERD_API_KEY"),
        ({"role": "title"}, "'document' or 'query'"),
        ({"bad_rows": "drop"}, "'set-aside' or 'fail'"),
        ({"modle": "a"}, "modle"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        EmbedBatches(**wrong)


def test_the_former_name_of_fail_is_accepted() -> None:
    batch = pyarrow.table({"text": pyarrow.array([None], pyarrow.string())})
    for name in ("fail", "raise"):
        with pytest.raises(TextError, match="is null"):
            EmbedBatches(model=MODEL, bad_rows=name)(batch)


def test_a_pickle_carries_no_key_and_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBERD_API_KEY", "a-very-secret-key")
    one = EmbedBatches(model=MODEL, base_url="http://127.0.0.1:1")
    assert one.embedder.settings.api_key == "a-very-secret-key"
    assert b"a-very-secret-key" not in pickle.dumps(one)


def test_a_batch_without_the_column_or_of_another_kind_is_refused() -> None:
    embed = EmbedBatches(model=MODEL)
    with pytest.raises(SettingError, match="no column 'text'. The columns are: 'body'"):
        embed(pyarrow.table({"body": ["bread"]}))
    with pytest.raises(SettingError, match="batch_format='pyarrow'"):
        embed(["bread"])
    with pytest.raises(SettingError, match="batch_format='pyarrow'"):
        EmbedBatches(model=MODEL, bad_rows="set-aside")({"text": np.array(["bread"])})


def test_a_column_that_is_there_already_is_replaced_and_none_is_lost() -> None:
    table = pyarrow.table({"embedding": [1], "id": [7], "text": ["bread"]})
    found = EmbedBatches(model=MODEL)(table)
    assert found.column_names == ["id", "text", "embedding"]
    assert found.schema.field("embedding").type == pyarrow.list_(pyarrow.float32(), 384)
    empty = EmbedBatches(model=MODEL)(table.slice(0, 0))
    assert empty.schema == found.schema
