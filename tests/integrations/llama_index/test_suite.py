"""LlamaIndex's own ways with an embedding, on the demo engine."""

from __future__ import annotations

from typing import Any

import pytest

from managed import MODEL
from suites.llama_index import LlamaIndexSuite


class TestOnTheDemoEngine(LlamaIndexSuite):
    @pytest.fixture
    def embedding_params(self) -> dict[str, Any]:
        return {"model_name": MODEL}
