"""Indexes in vector stores: the identity that is stored with each, and their re-embedding.

::

    places       where each store keeps the identity of an index
    guard        stores the identity with a new index, and refuses another embedder later
    rows         the rows of a collection, as ``emberd reindex`` reads and writes them
    reindexing   a new collection beside the old one: filled, verified, switched to

The client of a store is imported when it is used. Only public interfaces of the stores are called.
"""
