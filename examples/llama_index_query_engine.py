"""A LlamaIndex query engine: retrieves passages, creates the prompt, and returns its sources.

This example needs no language model: ``StandIn`` answers with the first passage in the prompt, so
the output is what was retrieved. Replace it with your language model.
"""

from __future__ import annotations

from typing import Any

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.llms import CompletionResponse, CompletionResponseGen, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback

from llama_index.embeddings.emberd import EmberdEmbedding

NOTES = [
    ("kitchen.md", "Sourdough needs twelve hours at room temperature, because wild yeast is slow."),
    ("kitchen.md", "Coffee tastes bitter when the beans were ground too fine."),
    ("garden.md", "Tomatoes are watered at the root, in the morning; wet leaves catch blight."),
    ("garage.md", "A bicycle chain squeaks when it is dry: a drop of oil for each link is enough."),
]
QUESTIONS = [
    "Why is my espresso unpleasant?",
    "When is the best time to water the vegetables?",
    "Warum quietscht mein Rad?",
]


class StandIn(CustomLLM):
    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(model_name="stand-in")

    @llm_completion_callback()
    def complete(self, prompt: str, *_: Any, **__: Any) -> CompletionResponse:
        passages = prompt.split("---------------------\n")[1]  # the format of the engine's prompt
        body = passages.strip().split("\n\n")[1]  # the first block is the file's name
        return CompletionResponse(text=body)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, *_: Any, **__: Any) -> CompletionResponseGen:
        yield self.complete(prompt)


documents = [Document(text=text, metadata={"file": file}) for file, text in NOTES]
index = VectorStoreIndex.from_documents(
    documents, embed_model=EmberdEmbedding(model_name="emberd/demo")
)
engine = index.as_query_engine(llm=StandIn(), similarity_top_k=2)

for question in QUESTIONS:
    answer = engine.query(question)
    source = answer.source_nodes[0]
    print(f"{question}\n  {answer} ({source.metadata['file']}, {source.score:.3f})")
