"""Retrieve 50 passages with vectors, and rerank them to the best five, in LangChain.

A retriever compares vectors of single texts. A reranker reads the query and a passage together,
which is slower and more accurate. The passages are descriptions of functions of Python.

emberd/demo makes the vectors, but no reranker is bundled with emberd. This example needs
Qwen3-Reranker-4B on a GPU (``emberd up Qwen/Qwen3-Reranker-4B`` starts it), a smaller one in
``EMBERD_RERANK_MODEL``, or the address of a server in ``EMBERD_RERANK_BASE_URL``.
``ContextualCompressionRetriever`` is in the package langchain-classic.
"""

from __future__ import annotations

import inspect
import random
import shutil
import statistics
import textwrap

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_emberd import EmberdEmbeddings, EmberdReranker

MODULES = [random, shutil, statistics, textwrap]
QUERY = "How do I shuffle a list without changing the original?"
INSTRUCTION = "Given a question about Python, find the function that answers it"

# name -> the first paragraph of its description
functions = {
    f"{module.__name__}.{name}": text.partition("\n\n")[0]
    for module in MODULES
    for name, function in inspect.getmembers(module, inspect.isroutine)
    if not name.startswith("_") and (text := inspect.getdoc(function))
}
store = InMemoryVectorStore(EmberdEmbeddings(model="emberd/demo"))
store.add_texts([f"{name}: {text}" for name, text in functions.items()], ids=list(functions))

retriever = ContextualCompressionRetriever(
    base_retriever=store.as_retriever(search_kwargs={"k": 50}),
    base_compressor=EmberdReranker(top_n=5, instruction=INSTRUCTION),
)
print(f"{QUERY}  ({len(functions)} passages, 50 retrieved)")
for found in retriever.invoke(QUERY):
    print(f"  {found.metadata['relevance_score']:.3f}  {found.id}")
