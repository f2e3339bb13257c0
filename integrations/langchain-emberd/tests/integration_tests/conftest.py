"""A separate home for the server that these tests start, which ends with them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from emberd import Manager


@pytest.fixture(scope="module", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("EMBERD_")]:
            patch.delenv(name)
        patch.setenv("EMBERD_HOME", str(tmp_path_factory.mktemp("home")))
        yield
        Manager().stop()
