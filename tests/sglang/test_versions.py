"""Other versions of SGLang than the pinned one, for real: started with a key, compared, diagnosed.

Each takes about 10 GB of disk and 6 min to install, and 5 min for its tests on two cores.
``TEST_SGLANG_VERSIONS`` names the versions, separated by commas (the oldest supported one by
default); ``TEST_SGLANG_ENGINES`` names a folder in which they are kept, otherwise each is removed
after its tests. What each version answers on its routes is recorded in
``tests/sglang_routes``, which the ordinary tests run against.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from emberd import Embedder, probe
from emberd.engines.base import Launch
from emberd.engines.sglang import ENGINE, command
from emberd.engines.sglang.support import VERSIONS
from emberd.errors import StartError
from emberd.installs import Installed
from emberd.settings import ServerSpec, StartOptions
from emberd.verified_manager import Manager
from real import by_hand
from real.engines import HERE, embedder_for, run
from real.other_version import install_version
from real.record_facts import installed_options
from real.traces import all_gone

_VERSIONS: Final = os.environ.get("TEST_SGLANG_VERSIONS", "0.5.17").split(",")
_KEPT: Final = os.environ.get("TEST_SGLANG_ENGINES", "")
_INSTALL_S: Final = 2400
_KEY: Final = "a-key-of-the-users-own"
_TEXTS: Final = [
    "one text",
    "another text, a little longer, with def f(x): return x",
    "向量检索把文本变成数字",
    "",
    "word " * 600,
]

pytestmark = pytest.mark.full
with_install = pytest.mark.timeout(_INSTALL_S)  # the first test of a version waits for it


@pytest.fixture(scope="module", params=_VERSIONS)
def installed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installed]:
    """A version, installed by emberd's own installer."""
    folder = _KEPT or os.fspath(tmp_path_factory.mktemp("engines"))
    try:
        made = install_version(request.param, folder)
        with pytest.MonkeyPatch.context() as patch:
            # Found by the tests as a user's own interpreter is.
            patch.setenv("EMBERD_SGLANG_PYTHON", made.python)
            yield made
    finally:
        if not _KEPT:
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def model(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, written by the version's own transformers."""
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen3"
    run(installed.python, HERE / "make_tiny.py", str(folder))
    return folder


def check(embedder: Embedder, installed: Installed, model: Path) -> None:
    """Compare vectors with those of transformers on the same weights."""
    said = run(installed.python, HERE / "reference.py", str(model), stdin=json.dumps(_TEXTS))
    reference = np.array(json.loads(said)["vectors"], np.float32)
    vectors = embedder.embed_documents(_TEXTS)
    assert np.sum(vectors * reference, axis=1).min() > 0.9999


@with_install
def test_a_managed_server_with_a_key_serves_the_models_vectors_and_leaves_nothing(
    installed: Installed, model: Path, tmp_path: Path
) -> None:
    with all_gone(tmp_path):
        manager = Manager(tmp_path)
        embedder = embedder_for(model, manager)
        server = embedder.ensure()
        url, key = server.endpoint.url, server.endpoint.api_key
        assert server.started
        refused, told = probe.get(url, "/v1/models"), probe.get(url, "/server_info", key)
        assert refused is not None
        assert refused.status == 401
        assert told is not None
        assert told.json()["version"] == installed.version
        check(embedder, installed, model)
        counted = probe.activity(url, key)
        assert counted is not None
        assert counted.requests > 0
        manager.stop()


@with_install
def test_a_server_started_by_hand_with_a_key_is_found_and_left_alive(
    installed: Installed, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ("--api-key", _KEY)
    with by_hand.server(installed.python, model, tmp_path, *key, forked=False) as running:
        monkeypatch.setenv("EMBERD_DISCOVER", running.url)
        manager = Manager(tmp_path / "home")
        embedder = embedder_for(model, manager, api_key=_KEY)
        assert embedder.ensure().origin == "found"
        check(embedder, installed, model)
        manager.stop()
        assert running.is_alive


@with_install
def test_a_failed_start_is_diagnosed_and_leaves_nothing(
    installed: Installed, model: Path, tmp_path: Path
) -> None:
    """Weights that are shorter than their header: SGLang fails after it has prepared the device."""
    damaged = Path(shutil.copytree(model, tmp_path / "damaged"))
    weights = next(damaged.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with all_gone(tmp_path), pytest.raises(StartError, match="weight file") as failed:
        embedder_for(damaged, Manager(tmp_path / "home")).ensure()
    assert failed.value.log_path
    assert VERSIONS[installed.version].prepares in Path(failed.value.log_path).read_text()


@with_install
def test_it_knows_every_option_that_emberd_gives(
    installed: Installed, model: Path, tmp_path: Path
) -> None:
    known = installed_options(installed.packages)
    spec = ServerSpec(model=os.fspath(model), device="cpu")
    launch = Launch(31_234, "key", "stamp", os.fspath(tmp_path), home="/home-of-it")
    words = ENGINE.plan(spec, launch).command
    two = replace(launch, options=StartOptions(tp_size=2, dp_size=2))
    on_gpu = command.flags(replace(spec, device=None), two, None, "config")
    ours = {word for word in words if word.startswith("--")}
    assert ours | {flag.words[0] for flag in on_gpu} <= known
