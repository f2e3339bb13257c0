"""A LangChain store in a folder, with its index identity in a file next to it.

A store accepts vectors that were made with other settings if they have the same length, and
searches then return wrong results without an error. ``identity`` is a short string that describes
how vectors are made; ``check_identity`` rejects an index with a different one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from langchain_core.vectorstores import InMemoryVectorStore

from emberd import IdentityError
from langchain_emberd import EmberdEmbeddings

PASSAGES = [
    "The Baltic Sea has little salt, because many rivers flow into it.",
    "Marie Curie is the only person with Nobel Prizes in two different sciences.",
]


def save(store: InMemoryVectorStore, folder: Path, embeddings: EmberdEmbeddings) -> None:
    store.dump(str(folder / "store.json"))
    (folder / "identity.txt").write_text(embeddings.identity, encoding="utf-8")


def load(folder: Path, embeddings: EmberdEmbeddings) -> InMemoryVectorStore:
    embeddings.check_identity((folder / "identity.txt").read_text(encoding="utf-8"))
    return InMemoryVectorStore.load(str(folder / "store.json"), embeddings)


with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    embeddings = EmberdEmbeddings(model="emberd/demo")
    save(InMemoryVectorStore.from_texts(PASSAGES, embeddings), folder, embeddings)
    print("saved  ", embeddings.identity)

    # A later process with the same settings gets the same vectors.
    [found] = load(folder, EmberdEmbeddings(model="emberd/demo")).similarity_search(
        "¿Quién ganó el Nobel en dos ciencias?", k=1
    )
    print("found  ", found.page_content)

    # Documents with E5's query prefix: vectors of the same length, but different ones.
    other = EmberdEmbeddings(model="emberd/demo", document_instruction="query: {text}")
    try:
        load(folder, other)
    except IdentityError as error:
        print("refused", error)
