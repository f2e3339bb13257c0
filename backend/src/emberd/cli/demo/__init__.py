"""``emberd demo``: the main job on real input, told as it happens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from emberd.cli import options

_PASSAGES: Final = 160  # with two frameworks and two cores, a run stays under half a minute

Docs = Annotated[
    Path | None,
    typer.Option(
        "--docs",
        metavar="FOLDER",
        help="Index its .txt, .md, .rst and .py files instead of Python's documentation.",
    ),
]
Queries = Annotated[
    list[str] | None,
    typer.Option("--query", "-q", metavar="TEXT", help="Ask this; may be given more than once."),
]
Passages = Annotated[
    int, typer.Option("--passages", min=1, metavar="N", help="Index at most so many of them.")
]


def demo(
    docs: Docs = None,
    query: Queries = None,
    passages: Passages = _PASSAGES,
    model: options.Model = None,
    engine: options.Engine = None,
) -> None:
    """Do the main job on real text, and measure it.

    Indexes passages in a LangChain vector store and in a LlamaIndex index, through one server
    that is found or started; asks both in several languages; lets eight more processes ask for
    a server at once; and ends with recall on a small multilingual set.

    The passages are the first paragraphs of the docstrings of this Python's standard library.
    Where the default model cannot be served and no model was named, emberd/demo is used, whose
    vectors are not Qwen3's.
    """
    # Imported late: it takes NumPy and both frameworks with it.
    from emberd.cli.demo.story import Wishes, tell

    tell(Wishes(docs=docs, queries=tuple(query or ()), limit=passages, model=model, engine=engine))
