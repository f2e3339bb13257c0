"""Retrieval as a tool of an agent, with an explicit agent loop.

This example needs no language model: ``StandIn`` calls the tool once for each part of the question
and repeats its results. Replace it with your chat model; the loop does not change.
"""

from __future__ import annotations

from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_emberd import EmberdEmbeddings

HANDBOOK = [
    "Who is ill tells the office before ten; a doctor's note is wanted from the third day on.",
    "Broken equipment goes to room 2.14 and is replaced on the same day.",
    "Trains are booked in second class; flights need a word from the head of the department.",
    "The canteen serves from half past eleven to two; a meal costs four euros.",
]
QUESTION = "What do I do with a laptop that fell down? When can I have lunch?"

retriever = InMemoryVectorStore.from_texts(
    HANDBOOK, EmberdEmbeddings(model="emberd/demo")
).as_retriever(search_kwargs={"k": 1})


@tool
def search_handbook(query: str) -> str:
    """Look up one thing in the staff handbook. Any language will do."""
    return "\n".join(found.page_content for found in retriever.invoke(query))


class StandIn(BaseChatModel):
    @property
    def _llm_type(self) -> str:
        return "stand-in"

    def bind_tools(self, *_: Any, **__: Any) -> Runnable[LanguageModelInput, AIMessage]:
        return self  # a real model receives the available tools here

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        told = [message.text for message in messages if isinstance(message, ToolMessage)]
        parts = messages[0].text.removesuffix("?").split("? ")
        calls = [
            ToolCall(name="search_handbook", args={"query": f"{part}?"}, id=f"call-{number}")
            for number, part in enumerate(parts)
        ]
        said = AIMessage(" ".join(told)) if told else AIMessage("", tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=said)])


model = StandIn().bind_tools([search_handbook])
messages: list[BaseMessage] = [HumanMessage(QUESTION)]
while True:
    said = model.invoke(messages)
    messages.append(said)
    if not said.tool_calls:
        break
    for call in said.tool_calls:
        print(f"tool    {call['args']['query']}")
        messages.append(search_handbook.invoke(call))
print(f"answer  {messages[-1].text}")
