"""LangChain's RAG tutorial in our words: load, split, embed, store, retrieve, answer."""

import sys
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_openai import OpenAIEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter
from pydantic import SecretStr

DATA, URL, KEY = sys.argv[1:]

embeddings = OpenAIEmbeddings(
    model="emberd/demo", base_url=URL, api_key=SecretStr(KEY), check_embedding_ctx_length=False
)

documents = [
    Document(path.read_text(), metadata={"source": path.name})
    for path in sorted(Path(DATA).glob("*.txt"))
]
splitter = RecursiveCharacterTextSplitter(chunk_size=240, chunk_overlap=0, add_start_index=True)
chunks = splitter.split_documents(documents)

store = InMemoryVectorStore(embeddings)
store.add_documents(chunks)
retriever = store.as_retriever(search_kwargs={"k": 1})

prompt = ChatPromptTemplate.from_template("Answer from the context: {context}\n\n{question}")
chain = prompt | FakeListChatModel(responses=["an answer"]) | StrOutputParser()

for question in sys.stdin.read().splitlines():
    [found] = retriever.invoke(question)
    answer = chain.invoke({"context": found.page_content, "question": question})
    print(f"{found.metadata['source']}:{found.metadata['start_index']} {answer}")
