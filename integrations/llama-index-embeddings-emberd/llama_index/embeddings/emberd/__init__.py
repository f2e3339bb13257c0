"""LlamaIndex embeddings that bring their own server."""

from llama_index.embeddings.emberd.base import EmberdEmbedding

__all__ = ["EmberdEmbedding"]
