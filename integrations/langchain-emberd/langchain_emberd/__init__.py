"""LangChain embeddings and a reranker that bring their own server."""

from emberd import guarded
from langchain_emberd.embeddings import EmberdEmbeddings
from langchain_emberd.factory import init_embeddings
from langchain_emberd.reranker import EmberdReranker

__all__ = ["EmberdEmbeddings", "EmberdReranker", "guarded", "init_embeddings"]
