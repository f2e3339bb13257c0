"""The transformers engine for real: its vectors beside plain Transformers', and how it fails."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from emberd import Embedder, StartError, model_files, probe
from emberd.engines import Diagnosis, Launch
from emberd.engines.transformers import ENGINE
from emberd.settings import ServerSpec
from emberd.verified_manager import Manager
from real import fake_hub, traces, verifying
from real.engines import START_S, EngineSide, Reference, Vectors, python_of
from real.texts import TEXTS

_LEAST_COSINE: Final = 0.9999
_BETWEEN_ENGINES: Final = 0.999
_SHARD: Final = "model.safetensors"
_ENDS_S: Final = 120.0
# Enough for what is imported, and too little for the weights of 380 MB besides; and for nothing.
_IMPORTS_BYTES: Final = 1_150_000_000
_NOTHING_BYTES: Final = 600_000_000

Broken = Callable[..., Path]
Fail = Callable[..., Diagnosis]
Refer = Callable[[list[str]], Reference]


@pytest.fixture(scope="module")
def python() -> str:
    """The interpreter that has transformers, and no emberd."""
    return python_of("transformers")


@pytest.fixture(scope="module")
def small(transformers_side: EngineSide, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3-Embedding checkpoint."""
    return transformers_side.make_tiny(tmp_path_factory.mktemp("models") / "small-qwen3")


@pytest.fixture(scope="module")
def served(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    """An embedder of ``small``, and at the end nothing left of its server."""
    home = tmp_path_factory.mktemp("transformers-home")
    manager = Manager(home)
    with traces.all_gone(home):
        made = Embedder(
            small, engine="transformers", device="cpu", start_timeout=START_S, manager=manager
        )
        made.ensure()
        yield made
        made.close()
        manager.stop()


@pytest.fixture(scope="module")
def plain(transformers_side: EngineSide, small: Path, served: Embedder) -> Refer:
    """Texts to what Transformers makes of them one at a time, in the server's own precision."""
    endpoint = served.endpoint()
    reply = probe.get(endpoint.url, "/server_info", endpoint.api_key)
    assert reply is not None
    dtype = reply.json()["dtype"]

    def ask(texts: list[str]) -> Reference:
        return transformers_side.reference(small, texts, dtype)

    return ask


@pytest.fixture(scope="module")
def vectors(served: Embedder) -> Vectors:
    return served.embed_documents(TEXTS)


# ---------------------------------------------------------------- vectors


def test_each_of_fifty_texts_has_the_vector_of_plain_transformers(
    vectors: Vectors, plain: Refer, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = plain(TEXTS)
    cosines = np.sum(vectors * reference.vectors, axis=1)
    with capsys.disabled():
        print(
            f"\ncosine to plain Transformers, 50 texts: least {cosines.min():.6f} "
            f"({TEXTS[int(cosines.argmin())][:30]!r}), median {np.median(cosines):.6f}"
        )
    assert len(TEXTS) == 50
    assert cosines.min() >= _LEAST_COSINE


def test_emberd_verify_finds_its_vectors_right(
    served: Embedder, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = served.endpoint().api_key
    url = ("--base-url", served.endpoint().url)
    code, found = verifying.run(tmp_path, str(small), *url, EMBERD_API_KEY=key or "")
    assert (code, found["servers"][0]["server"]) == (0, "emberd")
    with capsys.disabled():
        verifying.report(found)


def test_a_deterministic_server_gives_the_same_bits_alone_and_in_any_batch(
    small: Path, tmp_path: Path
) -> None:
    manager = Manager(tmp_path)
    with traces.all_gone(tmp_path):
        made = Embedder(
            small,
            engine="transformers",
            device="cpu",
            deterministic=True,
            start_timeout=START_S,
            manager=manager,
        )
        alone = np.stack([made.embed_documents([text])[0] for text in TEXTS])
        for size in (2, 7, len(TEXTS)):
            for shift in (0, 1):
                order = np.roll(np.arange(len(TEXTS)), shift)[:: -1 if shift else 1]
                for chosen in (order[i : i + size] for i in range(0, len(TEXTS), size)):
                    batch = made.embed_documents([TEXTS[i] for i in chosen])
                    np.testing.assert_array_equal(batch, alone[chosen])
        made.close()
        manager.stop()


def test_sglang_gives_the_same_vectors(
    vectors: Vectors,
    small: Path,
    tiny: Path,
    embedder: Embedder,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert model_files.content_hash(str(small)) == model_files.content_hash(str(tiny))
    cosines = np.sum(vectors * embedder.embed_documents(TEXTS), axis=1)
    with capsys.disabled():
        print(f"\ncosine between the engines, 50 texts: least {cosines.min():.6f}")
    assert cosines.min() >= _BETWEEN_ENGINES


def test_norms_are_one_before_the_client_touches_them(served: Embedder, small: Path) -> None:
    rows = np.array(_raw(served, input=TEXTS[:10]), dtype=np.float64)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-6


def test_a_text_has_one_vector_whatever_travels_with_it(served: Embedder, vectors: Vectors) -> None:
    alone = np.array([served.embed_documents([text])[0] for text in TEXTS[:12]])
    backwards = served.embed_documents(TEXTS[::-1])[::-1]
    assert np.sum(alone * vectors[:12], axis=1).min() > 0.99999
    assert np.sum(backwards * vectors, axis=1).min() > 0.99999


@pytest.mark.parametrize("dimensions", [32, 64, 128])
def test_dimensions_are_the_head_of_the_native_vector(
    served: Embedder, vectors: Vectors, dimensions: int
) -> None:
    cut = np.array(_raw(served, input=TEXTS[:10], dimensions=dimensions))
    head = vectors[:10, :dimensions]
    assert np.abs(cut - head / np.linalg.norm(head, axis=1, keepdims=True)).max() < 1e-4


def test_token_ids_give_the_vector_of_their_text_and_others_a_refusal(
    served: Embedder, vectors: Vectors, plain: Refer
) -> None:
    ids = plain(TEXTS[:3]).ids
    assert np.sum(np.array(_raw(served, input=ids)) * vectors[:3], axis=1).min() > 0.99999
    with pytest.raises(AssertionError, match="Token ID 999999 is not in the vocabulary"):
        _raw(served, input=[[999_999]])


def _raw(served: Embedder, **body: Any) -> list[list[float]]:
    import httpx

    endpoint = served.endpoint()
    reply = httpx.post(
        f"{endpoint.base_url}/embeddings",
        json=body,
        headers={"Authorization": f"Bearer {endpoint.api_key}"},
        timeout=60,
        trust_env=False,
    )
    assert reply.status_code == 200, reply.text
    return [item["embedding"] for item in reply.json()["data"]]


# ---------------------------------------------------------------- failures


@pytest.fixture
def broken(small: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the checkpoint, change what its configuration says, and return the copy."""

    def copy(**changes: object) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(small, folder)
        config = folder / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
        return folder

    return copy


@pytest.fixture
def fail(tmp_path: Path, python: str) -> Callable[..., Diagnosis]:
    """Run the planned command until its end, and return what is said of it."""

    def start(
        model: Path | str,
        *arguments: str,
        port: int = 0,
        data_bytes: int | None = None,
        spec: dict[str, Any] | None = None,
        **environment: str,
    ) -> Diagnosis:
        wanted = ServerSpec(str(model), engine="transformers", device="cpu", **(spec or {}))
        launch = Launch(port, "made-up-key", "stamp", str(tmp_path), home="/home-of-it")
        plan = ENGINE.plan(wanted, launch)
        done = subprocess.run(
            [*plan.command, *arguments],
            env={**plan.environment, "HF_HOME": str(tmp_path / "hub"), **environment},
            capture_output=True,
            text=True,
            timeout=_ENDS_S,
            preexec_fn=lambda: _limit(data_bytes),
        )
        print(done.stderr)
        assert "made-up-key" not in done.stderr
        return ENGINE.diagnose(done.returncode, done.stderr)

    return start


def _limit(data_bytes: int | None) -> None:
    if data_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))


def test_weights_that_are_cut_off(fail: Fail, broken: Broken) -> None:
    folder = broken()
    os.truncate(folder / _SHARD, (folder / _SHARD).stat().st_size // 2)
    told = fail(folder)
    assert told.cause.startswith(f"the weights in {folder / _SHARD} are incomplete: ")
    assert "copy it again" in told.advice


@pytest.mark.full
def test_weights_without_a_header(fail: Fail, broken: Broken) -> None:
    folder = broken()
    (folder / _SHARD).write_bytes(b"\xff" * 4096)
    assert "are damaged: they have no readable header" in fail(folder).cause


def test_weights_of_another_size_than_the_configuration_says(fail: Fail, broken: Broken) -> None:
    told = fail(broken(hidden_size=96))
    assert "do not match its config.json" in told.cause or "cannot be read" in told.cause
    assert "copy it again" in told.advice


def test_weights_of_fewer_layers_than_the_configuration_says(fail: Fail, broken: Broken) -> None:
    """Transformers fills the layers with random numbers, and goes on."""
    folder = broken(num_hidden_layers=3, layer_types=["full_attention"] * 3)
    told = fail(folder)
    assert told.cause.startswith(f"the weights in {folder} do not match its config.json: ")
    assert "missing keys" in told.cause


@pytest.mark.full
def test_a_folder_without_weights(fail: Fail, broken: Broken) -> None:
    folder = broken()
    (folder / _SHARD).unlink()
    assert fail(folder).cause == f"{folder} has no weights (*.safetensors)"


def test_a_tokenizer_that_appends_no_end_of_text_token(fail: Fail, broken: Broken) -> None:
    folder = broken()
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    told = fail(folder)
    assert told.cause.startswith(f"the tokenizer in {folder} is out of date")
    assert told.advice.startswith("Download tokenizer.json")


@pytest.mark.full
def test_no_tokenizer(fail: Fail, broken: Broken) -> None:
    folder = broken()
    for file in folder.glob("tokenizer*"):
        file.unlink()
    told = fail(folder)
    assert f"the tokenizer in {folder} " in told.cause
    assert told.advice


@pytest.mark.full
def test_another_pooling(fail: Fail, broken: Broken) -> None:
    folder = broken()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    told = fail(folder)
    assert "pools by mean" in told.cause
    assert "Qwen/Qwen3-Embedding-0.6B" in told.advice


def test_no_cuda_where_it_was_asked_for(fail: Fail, small: Path) -> None:
    told = fail(small, "--device", "cuda")
    assert told.cause == "the device cuda was requested, but torch finds no CUDA GPU here"
    assert "nvidia-smi" in told.advice


def test_an_option_that_it_does_not_know(fail: Fail, small: Path) -> None:
    told = fail(small, "--no-such-option", "7")
    assert told.cause == "the server does not know the option --no-such-option"
    assert "EMBERD_ENGINE_ARGS" in told.advice


@pytest.mark.full
def test_a_longer_context_than_the_model_has(fail: Fail, small: Path) -> None:
    told = fail(small, "--context-tokens", "100000")
    assert told.cause.startswith("texts of 100000 tokens were requested")


def test_a_port_that_somebody_else_has(fail: Fail, small: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert fail(small, port=taken.getsockname()[1]).port_taken


def test_memory_that_runs_out_while_the_weights_are_loaded(
    fail: Fail, transformers_side: EngineSide, tmp_path: Path
) -> None:
    folder = transformers_side.make_tiny(tmp_path / "larger", layers=4, hidden=2048)
    told = fail(folder, data_bytes=_IMPORTS_BYTES)
    assert told.cause.startswith("out of memory on the cpu while the weights of ")
    assert "smaller model" in told.advice


@pytest.mark.full
def test_memory_that_does_not_suffice_for_torch(fail: Fail, small: Path) -> None:
    told = fail(small, data_bytes=_NOTHING_BYTES)
    assert told.cause == "out of memory while torch was loaded"
    assert told.advice.startswith("Free some memory")


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        (fake_hub.GATED, "is gated"),
        (fake_hub.NO_REVISION, "has no revision main"),
        (fake_hub.GONE, "is neither a folder here nor a model on the hub"),
    ],
)
def test_what_the_hub_refuses(fail: Fail, model: str, cause: str) -> None:
    with fake_hub.serve_hub() as url:
        told = fail(model, spec={"revision": "main"}, HF_ENDPOINT=url)
    assert told.cause.startswith(f"{model} {cause}")
    assert told.advice


@pytest.mark.full
def test_a_hub_that_cannot_be_reached(fail: Fail) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        told = fail(fake_hub.GONE, HF_ENDPOINT=f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert told.cause.startswith("the hub could not be reached")
    assert "HTTPS_PROXY" in told.advice


def test_a_model_that_is_not_in_the_cache_of_a_machine_without_a_network(fail: Fail) -> None:
    told = fail(fake_hub.GONE, HF_HUB_OFFLINE="1")
    assert "is not in the hub's cache on this machine" in told.cause
    assert told.advice.startswith("Unset HF_HUB_OFFLINE")


def test_whoever_wanted_the_server_is_told(broken: Broken, tmp_path: Path) -> None:
    folder = broken()
    (folder / _SHARD).unlink()
    home = tmp_path / "home"
    embedder = Embedder(folder, engine="transformers", device="cpu", manager=Manager(home))
    with traces.all_gone(home), pytest.raises(StartError, match="has no weights") as raised:
        embedder.ensure()
    assert raised.value.log_path is not None
    assert "copy it again" in raised.value.advice
    Manager(home).stop()
