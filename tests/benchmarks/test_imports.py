"""What importing each integration takes on top of what its framework takes.

``make bench`` prints the figures. Nothing here asserts a time.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

from managed import environment

PROCESSES = 20

LANGCHAIN = """
from langchain_core.documents import BaseDocumentCompressor
from langchain_core.embeddings import Embeddings
from pydantic import BaseModel
class Model(BaseModel, Embeddings):
    x: int = 0
    def embed_documents(self, texts): return []
    def embed_query(self, text): return []
"""
LLAMA_INDEX_RERANK = "from llama_index.core.postprocessor.types import BaseNodePostprocessor\n"
LLAMA_INDEX = "from llama_index.core.base.embeddings.base import BaseEmbedding\n"


TIMED = """
import time
began = time.perf_counter()
import {package}
print((time.perf_counter() - began) * 1000)
"""


def _ms(program: str) -> float:
    ended = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        env=environment(),
    )
    return float(ended.stdout)


@pytest.mark.parametrize(
    ("framework", "package"),
    [
        pytest.param(LANGCHAIN, "langchain_emberd", id="LangChain"),
        pytest.param(LLAMA_INDEX, "llama_index.embeddings.emberd", id="LlamaIndex"),
        pytest.param(LLAMA_INDEX_RERANK, "llama_index.postprocessor.emberd", id="reranker"),
    ],
)
def test_what_the_import_takes_once_its_framework_is_there(framework: str, package: str) -> None:
    program = framework + TIMED.format(package=package)
    timing = [_ms(program) for _ in range(PROCESSES + 1)][1:]
    low, median, high = min(timing), statistics.median(timing), max(timing)
    print(
        f"\nimport {package}: median {median:.1f} ms, {low:.1f} to {high:.1f}, "
        f"over what its framework takes ({PROCESSES} fresh processes)"
    )
