"""One server for the tests that only ask it things."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from served import Served, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of emberd/demo, with a key."""
    with serving(tmp_path_factory.mktemp("served"), "--weight-version", "stamp") as running:
        yield running
