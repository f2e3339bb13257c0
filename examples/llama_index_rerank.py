"""Retrieve 50 passages with vectors, and rerank them to the best five, in LlamaIndex.

A retriever compares vectors of single texts. A reranker reads the query and a passage together,
which is slower and more accurate. The passages are descriptions of functions of Python.

emberd/demo makes the vectors, but no reranker is bundled with emberd. This example needs
Qwen3-Reranker-4B on a GPU (``emberd up Qwen/Qwen3-Reranker-4B`` starts it), a smaller one in
``EMBERD_RERANK_MODEL``, or the address of a server in ``EMBERD_RERANK_BASE_URL``. ``MockLLM``
stands in for your language model.
"""

from __future__ import annotations

import inspect
import random
import shutil
import statistics
import textwrap

from llama_index.core import VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.schema import TextNode

from llama_index.embeddings.emberd import EmberdEmbedding
from llama_index.postprocessor.emberd import EmberdRerank

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
nodes = [TextNode(id_=name, text=f"{name}: {text}") for name, text in functions.items()]
embed_model = EmberdEmbedding(model_name="emberd/demo")
index = VectorStoreIndex(nodes, embed_model=embed_model)

engine = index.as_query_engine(
    llm=MockLLM(),
    similarity_top_k=50,
    node_postprocessors=[EmberdRerank(top_n=5, instruction=INSTRUCTION)],
)
print(f"{QUERY}  ({len(functions)} passages, 50 retrieved)")
for found in engine.query(QUERY).source_nodes:
    print(f"  {found.score:.3f}  {found.node_id}")
