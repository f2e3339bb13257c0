"""LlamaIndex embeddings that bring their own server."""

from emberd import guarded
from llama_index.embeddings.emberd.base import EmberdEmbedding

__all__ = ["EmberdEmbedding", "guarded"]
