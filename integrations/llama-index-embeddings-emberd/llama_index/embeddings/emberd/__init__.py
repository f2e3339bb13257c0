"""LlamaIndex embeddings that bring their own server."""

from emberd import guarded
from llama_index.embeddings.emberd.base import EmberdEmbedding
from llama_index.embeddings.emberd.factory import load_embed_model, resolve_embed_model

__all__ = ["EmberdEmbedding", "guarded", "load_embed_model", "resolve_embed_model"]
