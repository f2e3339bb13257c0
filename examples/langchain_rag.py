"""A LangChain chain that retrieves passages and answers from them.

This example needs no language model: ``stand_in`` answers with the first passage in the prompt, so
the output is what was retrieved. Replace it with your chat model.
"""

from __future__ import annotations

from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_emberd import EmberdEmbeddings

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


def as_text(documents: list[Document]) -> str:
    return "\n".join(f"{found.page_content} ({found.metadata['file']})" for found in documents)


def stand_in(prompt: PromptValue) -> AIMessage:
    passages = prompt.to_messages()[0].text.splitlines()[1:]
    return AIMessage(passages[0])


store = InMemoryVectorStore(EmberdEmbeddings(model="emberd/demo"))
store.add_documents([Document(text, metadata={"file": file}) for file, text in NOTES])
retriever = store.as_retriever(search_kwargs={"k": 2})

prompt = ChatPromptTemplate(
    [
        ("system", "Answer only from these passages, and say which file it was:\n{passages}"),
        ("human", "{question}"),
    ]
)
chain = (
    {"passages": retriever | as_text, "question": RunnablePassthrough()}
    | prompt
    | RunnableLambda(stand_in)
    | StrOutputParser()
)
for question in QUESTIONS:
    print(f"{question}\n  {chain.invoke(question)}")
