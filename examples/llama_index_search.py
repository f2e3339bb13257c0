"""A LlamaIndex index with emberd: index a few passages and query them in another language.

emberd/demo is a small bundled model for a CPU. Omit ``model_name`` to use Qwen3-Embedding-4B:
emberd then finds a server for it on this machine, or starts one if its engine is installed.
"""

from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from llama_index.embeddings.emberd import EmberdEmbedding

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

nodes = [TextNode(text=passage) for passage in PASSAGES]
index = VectorStoreIndex(nodes, embed_model=EmberdEmbedding(model_name="emberd/demo"))
retriever = index.as_retriever(similarity_top_k=1)

for query in QUERIES:
    [found] = retriever.retrieve(query)
    print(f"{query}\n  {found.score:.3f}  {found.text}")
