"""The snippets of ``docs/vector-stores.md`` about Redis and Elasticsearch."""

from __future__ import annotations

from typing import Any, Final

import pytest

import pages
from fake_server import QWEN, FakeServer

_BLOCKS: Final = [block.text for block in pages.python("docs/vector-stores.md")]


def run(package: str, patch: pytest.MonkeyPatch, server: FakeServer, **names: Any) -> Any:
    """Run the snippet that imports ``package``, and return its names."""
    (block,) = [each for each in _BLOCKS if f"from {package} import" in each]
    patch.setenv("EMBERD_BASE_URL", server.url)
    exec(_BLOCKS[0], names)
    exec(block, names)
    return names


def server() -> FakeServer:
    """Return a server of the model that the page uses."""
    return FakeServer(model=QWEN.replace("0.6B", "4B"), dimensions=2560)
