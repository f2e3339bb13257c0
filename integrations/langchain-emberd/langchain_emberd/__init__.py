"""LangChain embeddings that bring their own server."""

from langchain_emberd.embeddings import EmberdEmbeddings

__all__ = ["EmberdEmbeddings"]
