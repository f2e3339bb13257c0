"""The code of every page and README: it runs, or its names are checked.

The blocks of Python of a page are one program, which runs in the order of the page. Models that
need a GPU are served by a stand-in. A new block is found by itself. What cannot run here is in
``ELSEWHERE``, with the reason.
"""

from __future__ import annotations

import ast
import configparser
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer
import yaml

import notebooks
import pages
import snippet_names
from canned_server import MODEL as QWEN
from command import Command, run_program
from emberd import Manager
from emberd.cli.app import app
from emberd.cli.output import ExitCode
from homes import home, manager
from managed import MODEL as DEMO
from managed import environment, stopped_at_the_end
from pages import Block
from source_tree import ROOT
from stand_ins import stand_ins

__all__ = ["home", "manager", "stand_ins", "stopped_at_the_end"]

# A page, or a page and a section -> why its Python does not run here. Its names are checked.
ELSEWHERE: Final = {
    "docs/agents.md": "each framework has a separate environment: tests/agents runs four of "
    "them, the page says which were run by hand",
    "docs/integrations.md#sentence-transformers": "tests/adapters runs it",
    "docs/integrations.md#MTEB": "tests/adapters runs it",
    "docs/integrations.md#Chroma": "tests/adapters runs it",
    "docs/integrations.md#LanceDB": "tests/adapters runs it",
    "docs/integrations.md#Haystack": "tests/adapters runs it",
    "docs/models.md": "it needs sentence-transformers with torch, and a model folder",
    "docs/monitoring/README.md": "it listens on a fixed port; tests/test_metrics.py has the "
    "collector, tests/services a Prometheus that reads it",
    "docs/ray.md": "it needs a cluster: tests/ray runs both functions on one",
    "docs/serve.md": "it needs a gateway at a fixed address: tests/sdks has the same calls",
    "docs/sglang.md": "it needs SGLang on port 30000; tests/sglang sends this request",
    "docs/vector-stores.md": "tests/stores runs it, and tests/search_stores what is about Redis "
    "and Elasticsearch; Pinecone and Weaviate need servers, as the page says",
}
# Pages whose code names no model and prints what a real model finds: they run with emberd/demo.
WITH_DEMO: Final = (
    "docs/start/laptop.md",
    "integrations/langchain-emberd/README.md",
    "integrations/llama-index-embeddings-emberd/README.md",
)
BREAD: Final = "Bread rises because yeast makes gas\\.\n"
KIWIS: Final = r"(?s)(?!.*Paris).*Kiwis cannot fly\..*"
# A page -> what its program prints, unless the page shows it in blocks of the language "text".
PRINTS: Final = {
    "README.md": BREAD * 2,
    "backend/README.md": BREAD,
    "docs/integrations.md": "2560 32768\n",
    "docs/start/laptop.md": "True\n",
    "docs/reranking.md": r"\d 0\.\d+ \S.*\n",
    "integrations/langchain-emberd/README.md": KIWIS,
    "integrations/langchain-emberd/docs/retrievers/emberd_reranker.mdx": (
        r"(0\.\d+ .*\.\n){2}\[(\(\d, 0\.\d+\)(, )?){2}\]\n"
    ),
    "integrations/llama-index-embeddings-emberd/README.md": KIWIS,
    "integrations/llama-index-postprocessor-emberd/README.md": r"\S.*\. 0\.\d+\n",
}
PAGES: Final = [page for page in pages.all_pages() if not pages.is_translation(page)]


def _is_elsewhere(block: Block) -> bool:
    return block.page in ELSEWHERE or f"{block.page}#{block.section}" in ELSEWHERE


def _run_here(page: str) -> list[Block]:
    return [block for block in pages.python(page) if not _is_elsewhere(block)]


def _environment(page: str, stand_ins: dict[str, str]) -> dict[str, str]:
    strings = {
        node.value
        for block in _run_here(page)
        for node in ast.walk(ast.parse(block.text))
        if isinstance(node, ast.Constant)
    }
    chosen = dict(stand_ins)
    if page in WITH_DEMO or DEMO in strings:
        assert QWEN not in strings, f"{page} uses two models: their servers exclude each other"
        del chosen["EMBERD_BASE_URL"]
        if page in WITH_DEMO:
            chosen["EMBERD_MODEL"] = DEMO
    return environment(**chosen)


@pytest.mark.parametrize("page", [page for page in PAGES if _run_here(page)])
def test_the_code_of_a_page_runs(page: str, stand_ins: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "page.py"
    file.write_text(pages.program(_run_here(page)), encoding="utf-8")
    done = run_program(str(file), environment=_environment(page, stand_ins))
    assert (done.code, done.err) == (0, ""), f"{page}:\n{done.err}"
    if shown := [block.text for block in pages.blocks(page) if block.language == "text"]:
        assert notebooks.same("".join(shown), done.out), f"{page} prints {done.out!r}"
    else:
        assert re.fullmatch(PRINTS.get(page, ""), done.out), f"{page} prints {done.out!r}"


@pytest.mark.parametrize("page", sorted({name.partition("#")[0] for name in ELSEWHERE}))
def test_the_names_in_code_that_runs_elsewhere_exist(page: str) -> None:
    assert snippet_names.faults(pages.program(pages.python(page)), page) == []


def test_each_page_that_runs_elsewhere_has_code_and_a_reason() -> None:
    there = {name for page in PAGES for block in pages.python(page) for name in _names(block)}
    assert set(ELSEWHERE) <= there
    assert set(PRINTS) | set(WITH_DEMO) <= {page for page in PAGES if _run_here(page)}
    for reason in ELSEWHERE.values():
        for path in re.findall(r"\btests/[\w/.]+", reason):
            assert (ROOT / path.rstrip(".")).exists(), path


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import emberd.nowhere", "there is no module emberd.nowhere"),
        ("from emberd import Embeder", "emberd has no attribute Embeder"),
        ("from emberd import Embedder\nEmbedder(modle='')", "Embedder has no argument modle"),
        ("import emberd\ne = emberd.Embedder()\ne.embed('')", "Embedder has no attribute embed"),
        (
            "from langchain_emberd import EmberdEmbeddings as E\nE(dimension=1)",
            "EmberdEmbeddings has no argument dimension",
        ),
        (
            "from llama_index.embeddings.emberd import EmberdEmbedding as E\nE(model='')",
            "EmberdEmbedding has no argument model",
        ),
    ],
)
def test_a_wrong_name_in_code_that_does_not_run_is_found(code: str, fault: str) -> None:
    assert [text.split(": ", 1)[1] for text in snippet_names.faults(code, "page")] == [fault]


def _names(block: Block) -> tuple[str, str]:
    return block.page, f"{block.page}#{block.section}"


# ---------------------------------------------------------------- commands

_PARSER: Final[Any] = typer.main.get_command(app)
_UsageError: Final[Any] = typer.BadParameter.__mro__[1]  # of the click that typer uses
# What is run: it starts no server but that of emberd/demo, and installs nothing.
HARMLESS: Final = re.compile(
    "doctor( [a-z-]+)*|engine list|history|status|up --dry-run|(up|env|embed --model) emberd/demo"
)
# A page -> a command in it that does not exist, and why it is there.
NO_COMMANDS: Final = {
    "docs/architecture.md": ("embed notes.txt --format arrow", "how a format would be added"),
    "docs/doctor.md": ("can serve ... : emberd up", "the beginning of a line of output"),
    "docs/reference/command.md": ("SUBCOMMAND --help", "a placeholder"),
}


def _parsed(words: list[str]) -> str:
    """Parse a command as the program does, and return its name.

    Raises:
        typer.Exit: It prints a text such as that of ``--help``.
        click.UsageError: It has an unknown name or option, or lacks an argument.
    """
    name, command, context, rest = "", _PARSER, None, list(words)
    while hasattr(command, "resolve_command") and rest and not rest[0].startswith("-"):
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
        part, command, rest = command.resolve_command(context, rest)
        if command is None:
            raise typer.BadParameter(f"there is no subcommand {words[0]!r}")
        name = f"{name} {part}".strip()
    command.make_context(name, rest, parent=context)
    return name


def _fault(words: list[str], is_part: bool = False) -> str:
    if words == ["--install-completion"]:
        return ""  # parsing it installs it
    try:
        _parsed(words)
    except typer.Exit:
        return ""
    except _UsageError as error:
        lacks = type(error).__name__ in {"MissingParameter", "NoArgsIsHelpError"}
        return "" if lacks and is_part else f"emberd {' '.join(words)}: {error}"
    return ""


def test_the_commands_in_blocks_are_understood() -> None:
    shown = list(_called("emberd"))
    assert len(shown) > 60
    assert [f"{place}: {fault}" for place, words in shown if (fault := _fault(words))] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_the_commands_in_sentences_are_understood(page: str) -> None:
    """The changelog is left out: it names commands of earlier versions."""
    named = list(pages.inline_commands(page))
    wrong = [words for words in named if _fault(words, is_part=True)]
    expected, _ = NO_COMMANDS.get(page, ("", ""))
    assert [" ".join(words) for words in wrong] == ([expected] if expected else [])


def _called(program: str) -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in pages.blocks(page):
            for line, words in pages.commands(block, program):
                yield f"{page}:{line}", words


def test_what_the_pages_install_exists() -> None:
    """The folders of this repository, and the extras of its distributions."""
    folders = [ROOT / "backend", *(ROOT / "integrations").iterdir()]
    read = [tomllib.loads((folder / "pyproject.toml").read_text()) for folder in folders]
    extras = {
        project["name"]: set(project.get("optional-dependencies", ()))
        for project in (each["project"] for each in read)
    }
    by_folder = {
        f"./{path.relative_to(ROOT)}": one["project"]["name"]
        for path, one in zip(folders, read, strict=True)
    }
    wanted = [
        (place, word)
        for program in ("pip", "uv")
        for place, words in _called(program)
        for word in words[1:]
        if word.startswith(("./", "emberd", "langchain-emberd", "llama-index-embeddings-emberd"))
    ]
    assert len(wanted) > 20
    for place, word in wanted:
        name, _, given = word.rstrip("]").partition("[")
        name = by_folder.get(name, name)
        assert name in extras, f"{place}: {word}"
        assert set(filter(None, given.split(","))) <= extras[name], f"{place}: {word}"


# The pages that a package index and the frameworks show. Their readers have no checkout.
PUBLISHED: Final = re.compile(r"backend/README\.md|integrations/")
_INSTALLED: Final = re.compile(r"(?:pip install|uv add) ([^`#\n]+)|--(?:from|spec) (\S+)")
_OURS: Final = re.compile(r"\./\S+|(?:emberd|langchain-emberd|llama-index-\w+-emberd)(?:\[.*)?")


def _installations() -> Iterator[tuple[str, list[str]]]:
    programs = [f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")]
    programs += [f"examples/demo/{path.name}" for path in (ROOT / "examples/demo").glob("*.py")]
    for page in sorted({*pages.all_pages(), *programs} - {"CHANGELOG.md"}):
        for several, one in _INSTALLED.findall(pages.text_of(page).replace("\\\n", " ")):
            words = re.findall(r"[^\s'\"]+", several or one)
            if ours := [word for word in words if _OURS.fullmatch(word)]:
                yield page, ours


def test_pages_install_from_the_checkout_until_a_release() -> None:
    """Nothing is published yet, except where the page itself is published with the package."""
    found = list(_installations())
    assert len(found) > 30
    for page, words in found:
        are_paths = {word.startswith("./") for word in words}
        assert are_paths == {PUBLISHED.match(page) is None}, f"{page} installs {words}"
        # The integrations require a backend of the same version, which no index has.
        if any(word.startswith("./integrations/") for word in words):
            assert any(word.startswith("./backend") for word in words), f"{page}: {words}"


def test_the_targets_of_make_that_the_pages_name_exist() -> None:
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = [(place, word) for place, words in _called("make") for word in words[:1]]
    assert len(named) > 15
    for place, target in named:
        assert re.search(rf"^(?:\.PHONY:.*)?{target}\b.*:", rules, re.MULTILINE), (
            f"{place}: {target}"
        )


@pytest.mark.parametrize("page", PAGES)
def test_data_in_a_page_can_be_read(page: str) -> None:
    readers: dict[str, Any] = {
        "json": json.loads,
        "yaml": yaml.safe_load,
        "ini": configparser.ConfigParser(strict=False).read_string,
    }
    for block in pages.blocks(page):
        if block.language in readers:
            readers[block.language](block.text)


@pytest.mark.parametrize("page", PAGES)
def test_python_is_marked_as_such(page: str) -> None:
    """A block without a language is not run."""
    assert [block.place for block in pages.blocks(page) if _is_python(block)] == []


def _is_python(block: Block) -> bool:
    if block.language:
        return False
    try:
        nodes = [*ast.walk(ast.parse(block.text))]
    except SyntaxError:
        return False
    return any(isinstance(node, ast.Call | ast.Import | ast.ImportFrom) for node in nodes)


def test_a_wrong_command_is_found() -> None:
    assert _fault(["up", "--dry-runs"])
    assert _fault(["upp"])
    assert _fault(["engine", "instal", "sglang"])
    assert _fault(["reindex"])
    assert not _fault(["reindex"], is_part=True)


def test_harmless_commands_of_the_pages_run(home: Path, manager: Manager) -> None:
    run = Command(home, {"EMBERD_MODEL": DEMO})
    lines = {" ".join(words): words for _, words in _called("emberd")}
    chosen = [words for line, words in lines.items() if HARMLESS.fullmatch(line)]
    assert len(chosen) >= 9
    for words in chosen:
        done = run(*words, stdin="some text")
        may_fail = words[0] == "doctor" or "--dry-run" in words  # this machine has no GPU
        failures = {ExitCode.ERROR, ExitCode.NO_ENGINE} if may_fail else set()
        assert done.code in {ExitCode.OK, *failures}, (words, done)
        assert "Traceback" not in done.err, (words, done)
