"""The public names."""

from __future__ import annotations

import langchain_emberd


def test_the_public_names_are_these() -> None:
    assert langchain_emberd.__all__ == [
        "EmberdEmbeddings",
        "EmberdReranker",
        "guarded",
        "init_embeddings",
    ]
