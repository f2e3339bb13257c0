"""A LlamaIndex index in a folder, which contains its index identity.

An index accepts vectors that were made with other settings if they have the same length, and
searches then return wrong results without an error. ``identity`` is a short string that describes
how vectors are made; ``check_identity`` rejects an index with a different one. Here it is stored as
the ``summary`` of the index. With a separate vector store, use a file or the collection's metadata.
"""

from __future__ import annotations

import tempfile
from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import TextNode

from emberd import IdentityError
from llama_index.embeddings.emberd import EmberdEmbedding

PASSAGES = [
    "The Baltic Sea has little salt, because many rivers flow into it.",
    "Marie Curie is the only person with Nobel Prizes in two different sciences.",
]


def save(nodes: list[TextNode], folder: str, embed_model: EmberdEmbedding) -> None:
    index = VectorStoreIndex(nodes, embed_model=embed_model)
    index.summary = embed_model.identity
    index.storage_context.persist(folder)


def load(folder: str, embed_model: EmberdEmbedding) -> BaseIndex[Any]:
    storage = StorageContext.from_defaults(persist_dir=folder)
    index = load_index_from_storage(storage, embed_model=embed_model)
    embed_model.check_identity(index.summary)
    return index


with tempfile.TemporaryDirectory() as folder:
    embed_model = EmberdEmbedding(model_name="emberd/demo")
    save([TextNode(text=passage) for passage in PASSAGES], folder, embed_model)
    print("saved  ", embed_model.identity)

    # A later process with the same settings gets the same vectors.
    index = load(folder, EmberdEmbedding(model_name="emberd/demo"))
    [found] = index.as_retriever(similarity_top_k=1).retrieve(
        "¿Quién ganó el Nobel en dos ciencias?"
    )
    print("found  ", found.text)

    # Documents with E5's query prefix: vectors of the same length, but different ones.
    other = EmberdEmbedding(model_name="emberd/demo", text_instruction="query: {text}")
    try:
        load(folder, other)
    except IdentityError as error:
        print("refused", error)
