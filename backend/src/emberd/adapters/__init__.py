"""Interfaces of other libraries over ``emberd.Embedder`` and ``emberd.Reranker``.

Each module has the name of the library (``emberd.adapters.chroma``), imports it, and is imported by
nothing else, so that no library is needed that is not used. See docs/integrations.md.
"""
