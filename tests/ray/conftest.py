"""One cluster of two nodes, with demo engines, that all tests share."""

from __future__ import annotations

import pytest

from managed import stopped_at_the_end
from ray_cluster import FILTERS, ray_nodes

__all__ = ["ray_nodes", "stopped_at_the_end"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let Ray warn of what is its own."""
    for item in items:
        for text in FILTERS:
            item.add_marker(pytest.mark.filterwarnings(text))
