"""The phases of a start of the real SGLang, and what forking its processes saves of them."""

from __future__ import annotations

import json
from pathlib import Path

import leftovers
from emberd import Embedder
from emberd.verified_manager import Manager


def test_sglang_is_imported_once_on_the_cpu(embedder: Embedder, shared_home: Path) -> None:
    embedder.embed_query("so that it runs")
    (phases,) = [own.phases for own in Manager(shared_home).status() if own.state == "ready"]
    print(json.dumps(dict(phases)))
    assert list(phases)[:2] == ["planning", "importing SGLang"]
    assert list(phases)[-1] == "verifying"
    # A phase between two looks at the log is not recorded: allocating a small KV cache is one.
    # New interpreters would import it in this phase, which takes longer than the first import.
    assert phases["starting the scheduler"] < phases["importing SGLang"] / 2
    names = [process.name() for process in leftovers.find([str(shared_home)])]
    assert len([name for name in names if name.startswith("sglang::")]) == 2
