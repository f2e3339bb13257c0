"""What everybody writes runs unchanged: port 30000, no key, dimensions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openai

from emberd.manager.discovery import DEFAULT_PORT
from emberd.settings import StartOptions
from emberd.verified_manager import Manager
from real.engines import START_S, embedder_for
from real.traces import all_gone


def test_the_common_quick_start_runs_unchanged(tmp_path: Path, tiny: Path) -> None:
    home = tmp_path / "home"
    with all_gone(home):
        manager = Manager(home)
        spec = embedder_for(tiny, manager).settings.spec
        open_port = StartOptions(port=DEFAULT_PORT, no_auth=True)
        manager.ensure(spec, start_timeout=START_S, options=open_port)
        client = openai.Client(base_url="http://localhost:30000/v1", api_key="EMPTY")
        reply = client.embeddings.create(model="default", input=["some text"], dimensions=64)
        manager.stop()
    vector = np.array(reply.data[0].embedding)
    assert vector.shape == (64,)
    assert abs(np.linalg.norm(vector) - 1) < 1e-2
