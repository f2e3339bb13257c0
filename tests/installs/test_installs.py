"""Each distribution in a new environment of its own, with nothing else: ``make test-installs``.

Apart from the other tests because it installs from a package registry, which takes minutes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import leftovers

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.13")
MODEL = "emberd/demo"

BACKEND = f"""
import emberd
vector = emberd.Embedder({MODEL!r}).embed_query("hello")
"""
LANGCHAIN = f"""
from langchain_emberd import EmberdEmbeddings, EmberdReranker
assert EmberdReranker(top_n=5).compress_documents([], "hello") == []
vector = EmberdEmbeddings(model={MODEL!r}).embed_query("hello")
"""
LLAMA_INDEX = f"""
from llama_index.embeddings.emberd import EmberdEmbedding
vector = EmberdEmbedding(model_name={MODEL!r}).get_query_embedding("hello")
"""
# There is no small reranker: its class is only constructed.
LLAMA_INDEX_RERANKER = f"""
from llama_index.postprocessor.emberd import EmberdRerank
import emberd
assert EmberdRerank(top_n=5).postprocess_nodes([], query_str="hello") == []
vector = emberd.Embedder({MODEL!r}).embed_query("hello")
"""
CHECK = """
import importlib.util
assert len(vector) == 384, len(vector)
for name in {absent!r}:
    assert importlib.util.find_spec(name) is None, name + " is here too"
print("works")
"""

WANTED = {
    "backend": (["./backend[demo]"], BACKEND, ["langchain_core", "llama_index"]),
    "langchain": (
        ["./backend[demo]", "./integrations/langchain-emberd"],
        LANGCHAIN,
        ["llama_index"],
    ),
    "llama-index": (
        ["./backend[demo]", "./integrations/llama-index-embeddings-emberd"],
        LLAMA_INDEX,
        ["langchain_core", "llama_index.postprocessor"],
    ),
    "llama-index-reranker": (
        ["./backend[demo]", "./integrations/llama-index-postprocessor-emberd"],
        LLAMA_INDEX_RERANKER,
        ["langchain_core", "llama_index.embeddings"],
    ),
    "llama-index-both": (
        [
            "./backend[demo]",
            "./integrations/llama-index-embeddings-emberd",
            "./integrations/llama-index-postprocessor-emberd",
        ],
        LLAMA_INDEX_RERANKER + LLAMA_INDEX,
        ["langchain_core"],
    ),
}


def interpreter(version: str) -> str:
    """Return a Python of this version that runs, or skip: not every machine has both."""
    name = f"python{version}"
    known = [
        shutil.which(name),
        *map(str, Path.home().glob(f".pyenv/versions/{version}*/bin/{name}")),
    ]
    for found in filter(None, known):
        if (
            subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True).returncode
            == 0
        ):
            return found
    pytest.skip(f"no Python {version} on this machine")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", PYTHONS)
@pytest.mark.parametrize("wanted", WANTED)
def test_a_distribution_works_alone_in_a_new_environment(
    version: str, wanted: str, tmp_path: Path
) -> None:
    projects, program, absent = WANTED[wanted]
    environment = {**os.environ, "EMBERD_HOME": str(tmp_path / "home")}
    environment.pop("PYTHONPATH", None)

    def run(*command: object) -> str:
        ended = subprocess.run(
            [str(part) for part in command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    run(interpreter(version), "-m", "venv", tmp_path / "venv")
    bin_folder = tmp_path / "venv" / "bin"
    # Not compiled: of the files of all packages, few are imported here.
    run(bin_folder / "pip", "install", "-qq", "--no-compile", "-c", "constraints.txt", *projects)
    try:
        code = program + CHECK.format(absent=absent)
        assert run(bin_folder / "python", "-W", "error", "-c", code) == "works\n"
        assert MODEL in run(bin_folder / "emberd", "status")
    finally:
        run(bin_folder / "emberd", "stop")
    assert leftovers.end_all([str(tmp_path / "home")]) == []
