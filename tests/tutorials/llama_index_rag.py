"""LlamaIndex's starter tutorial in our words: read a folder, index it, ask it."""

import sys

from llama_index.core import Settings, SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.openai_like import OpenAILikeEmbedding

DATA, URL, KEY = sys.argv[1:]

Settings.embed_model = OpenAILikeEmbedding(model_name="emberd/demo", api_base=URL, api_key=KEY)
Settings.llm = MockLLM()
Settings.node_parser = SentenceSplitter(chunk_size=80, chunk_overlap=0)

documents = SimpleDirectoryReader(DATA).load_data()
index = VectorStoreIndex.from_documents(documents)
engine = index.as_query_engine(similarity_top_k=1)

for question in sys.stdin.read().splitlines():
    [found] = engine.query(question).source_nodes
    print(f"{found.metadata['file_name']}:{found.node_id} an answer")
