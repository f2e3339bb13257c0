"""Find functions of a few Python modules by what they do; their docstrings are removed.

    python code_search.py
    python code_search.py Qwen/Qwen3-Embedding-4B

The instruction of queries depends on the model. Qwen3-Embedding takes a task in words, and was
trained with one for code: ``query_instruction="code"`` (``emberd.TASKS`` contains all names). E5,
the model of emberd/demo, was trained only with the prefix ``query: ``. An instruction for it would
be an error, so it gets none.
"""

from __future__ import annotations

import ast
import calendar
import inspect
import shlex
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType

from emberd import Embedder

MODEL = sys.argv[1] if len(sys.argv) > 1 else "emberd/demo"
INSTRUCTION = "code" if MODEL.startswith("Qwen/Qwen3-Embedding") else None

MODULES = [calendar, shlex, textwrap]
LONGEST_CHARACTERS = 1000  # E5 takes 512 tokens; longer functions would have to be split
QUESTIONS = [
    "strip the common leading whitespace from lines",
    "is this a leap year",
    "quote an argument so that the shell takes it as one word",
    "Wie kürze ich einen Text auf eine Höchstlänge?",
]


def functions(module: ModuleType) -> Iterator[tuple[str, str]]:
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.FunctionDef):
            if ast.get_docstring(node) is not None:
                del node.body[0]
            yield f"{module.__name__}.py:{node.lineno} {node.name}", ast.unparse(node)


code = {
    place: text
    for module in MODULES
    for place, text in functions(module)
    if len(text) <= LONGEST_CHARACTERS
}
embedder = Embedder(MODEL, query_instruction=INSTRUCTION)
print(f"{len(code)} functions; a query is sent as {embedder.query_template!r}")

places = list(code)
vectors = embedder.embed_documents(code.values())
for question, cosines in zip(QUESTIONS, embedder.embed_queries(QUESTIONS) @ vectors.T, strict=True):
    best = cosines.argmax()
    print(f"{question}\n  {cosines[best]:.3f}  {places[best]}")
