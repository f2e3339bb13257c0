"""What LlamaIndex asks of every integration; the rest is in the tests of the repository."""

from __future__ import annotations

from llama_index.core.base.embeddings.base import BaseEmbedding

from llama_index.embeddings.emberd import EmberdEmbedding


def test_embedding_class() -> None:
    made = EmberdEmbedding(model_name="emberd/demo", dimensions=64, embed_batch_size=5)
    assert BaseEmbedding.__name__ in [kind.__name__ for kind in EmberdEmbedding.__mro__]
    assert (made.model_name, made.dimensions, made.embed_batch_size) == ("emberd/demo", 64, 5)
