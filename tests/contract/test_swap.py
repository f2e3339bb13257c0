"""A tutorial of each framework runs with an OpenAI-compatible class and with emberd's class.

Only the import and the constructor differ.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import emberd
import managed
from command import run_program
from managed import MODEL
from source_tree import ROOT

_TUTORIALS = ROOT / "tests" / "tutorials"
_QUESTIONS = {
    "How does a boat get to a higher level?": "canals.txt",
    "Wie lange braucht Sauerteig?": "bread.txt",
    "¿Dónde hay una esclusa muy antigua?": "canals.txt",
}

langchain_and_llama_index = pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        (
            "langchain_rag.py",
            (
                "from langchain_openai import OpenAIEmbeddings",
                r"OpenAIEmbeddings\((?:[^()]|\(KEY\))*\)",
            ),
            (
                "from langchain_emberd import EmberdEmbeddings",
                f"EmberdEmbeddings(model={MODEL!r})",
            ),
        ),
        (
            "llama_index_rag.py",
            (
                "from llama_index.embeddings.openai_like import OpenAILikeEmbedding",
                r"OpenAILikeEmbedding\([^()]*\)",
            ),
            (
                "from llama_index.embeddings.emberd import EmberdEmbedding",
                f"EmberdEmbedding(model_name={MODEL!r})",
            ),
        ),
    ],
    ids=["LangChain", "LlamaIndex"],
)


def _arguments(program: str) -> list[str]:
    server = emberd.Manager().ensure(emberd.ServerSpec(model=MODEL)).endpoint
    return ["-c", program, str(_TUTORIALS / "data"), server.base_url, server.api_key or ""]


def _theirs(program: str) -> list[str]:
    """Return what the program prints in a fork of a process that imported the framework."""
    strict = f"import warnings; warnings.simplefilter('error')\n{program}"
    done = run_program(
        *_arguments(strict), stdin="\n".join(_QUESTIONS), environment=managed.environment()
    )
    assert done.code == 0, done.err
    return done.out.splitlines()


def _ours(program: str) -> list[str]:
    """Return the same from a new interpreter, in which no import may warn either."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *_arguments(program)],
        input="\n".join(_QUESTIONS),
        capture_output=True,
        text=True,
        env=managed.environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _swapped(program: str, theirs: tuple[str, str], ours: tuple[str, str]) -> str:
    swapped, imports = re.subn(f"^{theirs[0]}$", ours[0], program, flags=re.MULTILINE)
    swapped, constructors = re.subn(theirs[1], ours[1], swapped)
    assert (imports, constructors) == (1, 1)
    return swapped


@langchain_and_llama_index
def test_a_tutorial_runs_with_either_class_and_finds_the_right_file(
    name: str, theirs: tuple[str, str], ours: tuple[str, str]
) -> None:
    program = Path(_TUTORIALS / name).read_text(encoding="utf-8")
    swapped = _swapped(program, theirs, ours)
    for answers in (_theirs(program), _ours(swapped)):
        assert [line.partition(":")[0] for line in answers] == list(_QUESTIONS.values())
        assert all(line.endswith(" an answer") for line in answers)
