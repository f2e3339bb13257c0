"""A model with a meaning: the MiniLM that a package ships, through SGLang on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from emberd.errors import NoEngineError
from emberd.verified_manager import Manager
from real import minilm
from real.engines import embedder_for
from real.traces import all_gone

_ANSWERS: Final = {
    "How hot is the surface of the sun?": "The outermost layer of our star has 5,500 degrees.",
    "Who wrote Hamlet?": "Shakespeare's tragedy tells of a prince of Denmark and a ghost.",
    "How do I bake bread?": "Mix flour, water, salt and yeast; let the dough rise; then bake it.",
    "What is the capital of Japan?": "Tokyo has been the seat of government since 1868.",
    "How do vaccines work?": "They train the immune system to recognise a virus beforehand.",
    "Why is the sky blue?": "Air scatters short wavelengths of light more than long ones.",
    "How do I mend a flat bicycle tyre?": "Lever the rubber off the rim and replace the tube.",
    "What does a central bank do?": "It sets interest rates and keeps the currency stable.",
    "How fast can a cheetah run?": "The big cat reaches a hundred kilometres an hour.",
    "What is a hash table?": "A data structure that maps keys to buckets to find values quickly.",
}
# The model has no prompts.
_BARE: Final[dict[str, Any]] = {"query_instruction": "", "document_instruction": ""}


@pytest.fixture
def mean_pooled(tmp_path: Path) -> Path:
    """The model as its package has it: made for the mean of its tokens."""
    return minilm.fetch(tmp_path)


def test_a_model_made_for_the_mean_of_its_tokens_is_refused(
    mean_pooled: Path, tmp_path: Path
) -> None:
    embedder = embedder_for(mean_pooled, Manager(tmp_path / "home"), **_BARE)
    with pytest.raises(NoEngineError, match="pools by mean"):
        embedder.ensure()


def test_ten_questions_find_their_passages(mean_pooled: Path, tmp_path: Path) -> None:
    """Real weights through SGLang, by a pooling that they were not made for.

    SGLang takes the first token, which ranks these texts all the same. The file that names the
    pooling is changed, or the model would be refused.
    """
    pooling = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True}
    (mean_pooled / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    home = tmp_path / "home"
    with all_gone(home):
        embedder = embedder_for(mean_pooled, Manager(home), **_BARE)
        with pytest.warns(UserWarning, match=r"not verified .* takes the first token"):
            passages = embedder.embed_documents(_ANSWERS.values())
        questions = embedder.embed_queries(list(_ANSWERS))
        Manager(home).stop()
    nearest = np.argmax(questions @ passages.T, axis=1)
    assert nearest.tolist() == list(range(len(_ANSWERS)))
