"""A LangChain vector store with emberd: index a few passages and query them in another language.

emberd/demo is a small bundled model for a CPU. Omit ``model`` to use Qwen3-Embedding-4B: emberd
then finds a server for it on this machine, or starts one if its engine is installed.
"""

from langchain_core.vectorstores import InMemoryVectorStore

from langchain_emberd import EmberdEmbeddings

PASSAGES = [
    "The Baltic Sea has little salt, because many rivers flow into it and little water leaves.",
    "A lock file without an owner is stale when the process named in it no longer exists.",
    "Sourdough rises slowly: wild yeast needs twelve hours at room temperature.",
    "Marie Curie is the only person with Nobel Prizes in two different sciences.",
]
QUERIES = [
    "Why is the Baltic almost fresh water?",
    "¿Quién ganó el Nobel en dos ciencias?",
    "面团要发酵多久？",
]

store = InMemoryVectorStore(EmberdEmbeddings(model="emberd/demo"))
store.add_texts(PASSAGES)

for query in QUERIES:
    [(found, score)] = store.similarity_search_with_score(query, k=1)
    print(f"{query}\n  {score:.3f}  {found.page_content}")
