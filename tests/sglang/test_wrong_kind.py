"""Real servers of SGLang that give no embeddings: refused, with what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from emberd import Embedder
from emberd.errors import NoEngineError, ServerMismatchError
from emberd.verified_manager import Manager
from real import by_hand
from real.engines import HERE, run

pytestmark = pytest.mark.full

_SMALL = ("--chunked-prefill-size", "-1", "--mem-fraction-static", "0.3")


def test_a_server_that_generates_text_is_refused(
    sglang_python: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with by_hand.server(sglang_python, tiny, tmp_path, embeds=False) as running:
        with pytest.raises(ServerMismatchError, match=f"generates text with {tiny}"):
            Embedder(tiny, base_url=running.url).ensure()
        monkeypatch.setenv("EMBERD_DISCOVER", running.url)
        with pytest.raises(NoEngineError, match=f"{running.url} .*generates text"):
            Embedder(tiny, manager=Manager(tmp_path / "home")).ensure()
        assert running.is_alive


def test_a_cross_encoder_is_refused(sglang_python: str, tmp_path: Path) -> None:
    model = tmp_path / "reranker"
    run(sglang_python, HERE / "make_cross_encoder.py", str(model))
    with by_hand.server(sglang_python, model, tmp_path, *_SMALL) as running:
        with pytest.raises(ServerMismatchError, match=r"classify .*BertForSequenceClassification"):
            Embedder(model, base_url=running.url).ensure()
        assert running.is_alive
