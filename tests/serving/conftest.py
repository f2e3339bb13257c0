"""One server for the tests that only ask it things."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from served import Served, serving


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), "--weight-version", "stamp") as running:
        yield running


@pytest.fixture
def server(_shared: Served) -> Served:
    """A server of emberd/demo, with a key, that all tests of the session share."""
    code = _shared.process.poll()
    assert code is None, f"the server ended with {code}: {_shared.log.read_text()[-2000:]}"
    return _shared
