"""SGLang with a reranker that was started by hand, with a chat template and without."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pytest

from emberd import Reranker
from real import by_hand
from real.engines import EngineSide
from real.rerank_pairs import PER_QUERY, SPECIAL, pairs, prompt

_APART: Final = 0.05  # of scores in bfloat16
_QUERY: Final = "vector or {text}"

# As the one of SGLang's repository, with which its own /v1/rerank puts pairs into a prompt.
_TEMPLATE: Final = """<|im_start|>system
Judge whether the Document meets the requirements.<|im_end|>
<|im_start|>user
<Query>: {{ query }}
<Document>: {{ document }}<|im_end|>
<|im_start|>assistant
"""

pytestmark = pytest.mark.filterwarnings("ignore:.*scores may mean nothing")


@pytest.mark.parametrize(
    "template",
    [
        # The server that test_reranker.py has emberd start is given no template either.
        pytest.param(None, id="no template", marks=pytest.mark.full),
        pytest.param(_TEMPLATE, id="template"),
    ],
)
def test_its_scores_are_those_of_the_prompt(
    template: str | None, sglang_python: str, sglang_side: EngineSide, tmp_path: Path
) -> None:
    folder = sglang_side.make_tiny_reranker(tmp_path / "Qwen3-Reranker-0.6B")
    arguments: tuple[str, ...] = ()
    if template is not None:
        (tmp_path / "template.jinja").write_text(template)
        arguments = ("--chat-template", str(tmp_path / "template.jinja"))
    documents = [*SPECIAL, *(document for _, document in pairs(PER_QUERY))]
    reference = sglang_side.scores(folder, [prompt(_QUERY, d) for d in documents], "bfloat16")
    with by_hand.server(sglang_python, folder, tmp_path, *arguments, embeds=False) as server:
        reranker = Reranker("Qwen/Qwen3-Reranker-0.6B", base_url=server.url)
        scores = reranker.scores(_QUERY, documents)
        assert server.is_alive  # emberd must not stop it
    assert np.abs(scores - reference.vectors).max() < _APART
    assert np.ptp(reference.vectors) > 2 * _APART
