from __future__ import annotations

from pathlib import Path

import pytest

from emberd import Manager
from emberd.catalog import EMBED, RERANK
from emberd.errors import NoEngineError, SettingError
from emberd.settings import ServerSpec, StartOptions


def test_what_is_given_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"EMBERD_PORT": "30000", "EMBERD_TP_SIZE": "2", "EMBERD_ENGINE_ARGS": "--a 'b c'"}
    options = StartOptions.resolve(environ, port=31_000)
    assert options == StartOptions(port=31_000, tp_size=2, arguments=("--a", "b c"))
    assert StartOptions.resolve({}) == StartOptions()


def test_an_open_server_cannot_be_asked_for_by_the_environment() -> None:
    assert not StartOptions.resolve({"EMBERD_NO_AUTH": "1"}).no_auth


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"EMBERD_PORT": "many"}, "EMBERD_PORT='many' cannot be read"),
        ({"EMBERD_PORT": "70000"}, "EMBERD_PORT='70000' cannot be read"),
        ({"EMBERD_TP_SIZE": "0"}, "EMBERD_TP_SIZE=0 must be at least 1"),
        ({"EMBERD_ENGINE_ARGS": "--a 'b"}, "EMBERD_ENGINE_ARGS cannot be read"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        StartOptions.resolve(environ)


def test_variable_that_an_argument_overrides_is_not_read() -> None:
    assert StartOptions.resolve({"EMBERD_TP_SIZE": "0"}, tp_size=1).tp_size == 1


def test_copies_on_gpus_of_their_own_are_counted() -> None:
    assert StartOptions(tp_size=2, dp_size=3).gpus == 6


def test_a_port_is_that_of_a_server_of_one_task() -> None:
    environ = {"EMBERD_PORT": "30000", "EMBERD_RERANK_PORT": "30001", "EMBERD_TP_SIZE": "2"}
    embeds, reranks = (StartOptions.resolve(environ, task=task) for task in (EMBED, RERANK))
    assert embeds == StartOptions(port=30_000, tp_size=2)
    assert reranks == StartOptions(port=30_001, tp_size=2)
    del environ["EMBERD_RERANK_PORT"]
    assert StartOptions.resolve(environ, task=RERANK).port is None
    assert StartOptions.resolve(environ, task=RERANK, port=31_000).port == 31_000


@pytest.mark.parametrize("port", ["many", "0", "70000"])
def test_a_port_of_a_reranker_that_cannot_be_used_is_named(port: str) -> None:
    with pytest.raises(SettingError, match=f"EMBERD_RERANK_PORT='{port}'"):
        StartOptions.resolve({"EMBERD_RERANK_PORT": port}, task=RERANK)


def test_a_start_reads_the_port_of_its_own_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    of_embedder, of_reranker = (
        ServerSpec("some/model", engine="demo", task=task) for task in (EMBED, RERANK)
    )
    monkeypatch.setenv("EMBERD_PORT", "many")
    monkeypatch.setenv("EMBERD_RERANK_PORT", "")
    with pytest.raises(SettingError, match="EMBERD_PORT"):
        Manager(tmp_path).ensure(of_embedder)
    with pytest.raises(NoEngineError):
        Manager(tmp_path).ensure(of_reranker)


EMBEDDER, RERANKER = "Qwen/Qwen3-Embedding-4B", "Qwen/Qwen3-Reranker-4B"


@pytest.mark.parametrize(
    ("environ", "shared"),
    [
        ({}, ()),
        ({"EMBERD_SHARE_GPU": "0"}, ()),
        ({"EMBERD_SHARE_GPU": "1"}, (EMBEDDER, RERANKER)),
        ({"EMBERD_SHARE_GPU": "yes", "EMBERD_MODEL": "a/model"}, (RERANKER, "a/model")),
        ({"EMBERD_SHARE_GPU": "1", "EMBERD_RERANK_MODEL": "b/model"}, (EMBEDDER, "b/model")),
        ({"EMBERD_SHARE_GPU": "1", "EMBERD_RERANK_BASE_URL": "http://h:1"}, (EMBEDDER,)),
        ({"EMBERD_SHARE_GPU": "b/model, a/model"}, ("a/model", "b/model")),
        ({"EMBERD_SHARE_GPU": "'/a folder' a/model a/model"}, ("/a folder", "a/model")),
        ({"EMBERD_SHARE_GPU": "'/a, b #1',a/model"}, ("/a, b #1", "a/model")),
    ],
)
def test_models_that_share_a_gpu_are_named_or_those_in_use(
    environ: dict[str, str], shared: tuple[str, ...]
) -> None:
    for task in (EMBED, RERANK):
        options = StartOptions.resolve(environ, task=task)
        assert options.share_gpu == shared


def test_a_folder_that_shares_a_gpu_has_one_name(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to("model")
    assert StartOptions(share_gpu=(f"{tmp_path}/link",)).share_gpu == (f"{tmp_path}/model",)


def test_names_of_models_that_cannot_be_read_are_an_error() -> None:
    with pytest.raises(SettingError, match="EMBERD_SHARE_GPU"):
        StartOptions.resolve({"EMBERD_SHARE_GPU": "'a/model"})
