"""A LlamaIndex reranker that brings its own server."""

from llama_index.postprocessor.emberd.base import EmberdRerank

__all__ = ["EmberdRerank"]
