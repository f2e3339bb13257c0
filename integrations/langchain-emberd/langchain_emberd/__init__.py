"""LangChain embeddings that bring their own server."""

from emberd import guarded
from langchain_emberd.embeddings import EmberdEmbeddings

__all__ = ["EmberdEmbeddings", "guarded"]
