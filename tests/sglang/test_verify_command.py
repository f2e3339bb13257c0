"""``emberd verify`` against the real SGLang, with vectors by the real transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

from emberd import Embedder
from emberd.verified_manager import Manager
from real import minilm, verifying
from real.traces import all_gone

# Measured: 0.8 and 0.9.
_MOST_OF_FLOOR: Final = 1.5


def test_sglang_has_the_vectors_of_transformers(
    embedder: Embedder, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint = embedder.endpoint()
    assert endpoint.api_key is not None
    url = ("--base-url", endpoint.base_url)
    code, found = verifying.run(tmp_path, str(tiny), *url, EMBERD_API_KEY=endpoint.api_key)
    assert (code, found["pooling"], found["servers"][0]["server"]) == (0, "lasttoken", "sglang")
    assert not any(each["error"] for each in found["servers"][0]["texts"])
    with capsys.disabled():
        error, floor = verifying.report(found)
    assert 0 < error <= _MOST_OF_FLOOR * floor


@pytest.mark.full  # a start of SGLang, and a download of 80 MB
def test_a_bert_that_pools_its_first_token_has_the_vectors_of_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = minilm.fetch(tmp_path)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text('{"word_embedding_dimension": 384, "pooling_mode_cls_token": true}')
    home = tmp_path / "home"
    with all_gone(home):
        code, found = verifying.run(home, str(folder), "--engine", "sglang", "--device", "cpu")
        assert (code, found["pooling"]) == (0, "cls")
        with capsys.disabled():
            error, floor = verifying.report(found)
        assert 0 < error <= _MOST_OF_FLOOR * floor
        # The same server beside the pooling that the model was made for.
        url = found["servers"][0]["url"]
        (server,) = Manager(home).status()
        mean = shutil.copytree(folder, tmp_path / "model")
        (mean / "modules.json").unlink()
        shutil.rmtree(mean / "1_Pooling")
        (folder / "modules.json").unlink()
        shutil.rmtree(folder / "1_Pooling")
        options = ("--base-url", url, "--pooling", "mean")
        code, found = verifying.run(home, str(mean), *options, EMBERD_API_KEY=server.api_key or "")
        Manager(home).stop()
    assert (code, found["servers"][0]["ok"]) == (1, False)
