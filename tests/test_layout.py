"""The rules of the layout: imports, names, sizes, versions and public names."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Final

import pytest

import source_tree
from source_tree import PACKAGES, ROOT, Module

# Names of files of the backend that several folders have. Add nothing.
SHARED_FILE_NAMES: Final = {"__init__.py", "__main__.py", "engine.py"}

# ---------------------------------------------------------------- imports

_MODEL: Final = {
    *("catalog", "model_card", "model_files", "model_pooling", "model_tokenizer"),
    "weight_files",
}
_SETTINGS: Final = _MODEL | {
    *("durations", "endpoint", "env", "errors", "hub", "hub_client", "prompts", "settings"),
    "system",
}
_BASE: Final = _SETTINGS | {"counters", "probe", "tracing"}
_ENGINES: Final = _BASE | {"engines", "installs", "serving"}
_JOINED: Final = _ENGINES | {"manager", "client", "cache"}

# Package or module directly below emberd -> what it may import of the others.
ALLOWED_IMPORTS: Final[dict[str, set[str]]] = {
    "errors": set(),
    "system": {"errors"},
    "catalog": set(),
    "durations": {"errors"},
    "counters": {"system"},
    "tracing": set(),
    "model_files": {"errors"},
    "model_tokenizer": {"model_files"},
    "model_pooling": {"catalog", "model_files", "model_tokenizer"},
    "model_card": {
        *("errors", "catalog", "model_files", "model_pooling", "model_tokenizer"),
        "rerank_prompts",
    },
    "rerank_prompts": {"catalog", "model_files", "model_pooling", "model_tokenizer", "prompts"},
    "hub": {"errors", "hub_client", "model_card", "model_files", "system"},
    "hub_client": {"model_files", "system"},
    "hub_weights": {"errors", "hub_client", "model_files", "system", "weight_files"},
    "modelscope_weights": {"errors", "model_files", "system", "weight_files"},
    "weight_files": {"model_files", "system"},
    "prompts": {"errors", "catalog"},
    "endpoint": {"catalog", "errors", "system"},
    "env": {"catalog", "durations", "endpoint", "errors", "system"},
    "settings": _SETTINGS - {"settings"},
    "index_identity": {"catalog", "errors", "prompts", "settings"},
    "probe": {"system"},
    "server_load": {"probe", "system"},
    "client": _BASE,
    "cache": _BASE,
    "serving": _BASE,
    "installs": _BASE,
    "engines": _BASE | {"serving", "installs"},
    "manager": _BASE | {"engines", "installs"},
    "verified_manager": _JOINED,
    "server_handle": _JOINED | {"verified_manager"},
    "model_user": _JOINED | {"verified_manager", "server_handle"},
    "embedder": _JOINED | {"verified_manager", "model_user", "index_identity"},
    "reranker": _JOINED | {"verified_manager", "model_user"},
    "benchmark": _BASE | {"client", "embedder"},
    "folder_texts": set(),
    "folder_search": {"embedder", "errors", "folder_texts"},
    "prometheus": _JOINED | {"verified_manager"},
    "fidelity": _BASE | {"installs", "serving"},
    "stores": {"embedder", "env", "errors", "index_identity", "system"},
    "adapters": {"client", "embedder", "errors", "model_card", "model_user", "prompts", "reranker"},
    "bulk": {"errors", "system"},
    "ray": _BASE | {"engines", "client", "verified_manager", "embedder", "bulk"},
    "doctor": _JOINED | {"verified_manager", "modelscope_weights"},
    "gateway": _JOINED | {"verified_manager", "model_user", "embedder", "prometheus", "reranker"},
    "cli": _JOINED
    | {"gateway", "reranker"}
    | {"verified_manager", "benchmark", "embedder", "fidelity", "doctor", "bulk", "ray", "stores"}
    | {"folder_search", "hub_weights", "modelscope_weights", "server_load"},
    "__main__": {"cli"},
    "": _JOINED
    | {"verified_manager", "model_user", "embedder", "prometheus", "reranker", "stores"},
}


def _parts_imported(module: Module) -> set[str]:
    parts = set()
    for source, name in module.imports():
        full = source if name is None else f"{source}.{name}"
        if full.split(".")[0] == "emberd" and full != "emberd.__version__":
            parts.add(full.split(".")[1] if "." in full else "")
    return parts - {module.part}


def test_a_module_imports_only_what_its_part_may() -> None:
    modules = source_tree.modules("emberd")
    unknown = [module.name for module in modules if module.part not in ALLOWED_IMPORTS]
    assert unknown == [], "add their parts to ALLOWED_IMPORTS"
    imported = {
        module.name: _parts_imported(module) - ALLOWED_IMPORTS[module.part] for module in modules
    }
    assert {name: parts for name, parts in imported.items() if parts} == {}


def test_manager_and_client_do_not_import_each_other() -> None:
    assert "client" not in ALLOWED_IMPORTS["manager"]
    assert "manager" not in ALLOWED_IMPORTS["client"]
    assert not {"manager", "client"} & ALLOWED_IMPORTS["engines"]


def test_no_part_imports_another_that_imports_it() -> None:
    """The parts that are listed above have an order; the root imports lazily."""
    graph = {part: allowed for part, allowed in ALLOWED_IMPORTS.items() if part}
    TopologicalSorter(graph).prepare()


def test_there_is_no_import_circle_between_modules() -> None:
    """Imports inside functions and for types count as well."""
    modules = {module.name: module for module in source_tree.modules("emberd")}
    graph: dict[str, set[str]] = {}
    for name, module in modules.items():
        imported = {
            full if (full := f"{source}.{what}") in modules else source
            for source, what in module.imports()
        }
        graph[name] = (imported & modules.keys()) - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_engine_imports_another_engine() -> None:
    engines = ("sglang", "transformers", "demo")
    found = []
    for module in source_tree.modules("emberd"):
        own = next((name for name in engines if _is_in(module.name, name)), None)
        if own is None:
            continue
        others = [name for name in engines if name != own]
        found += [
            f"{module.name} imports {full}"
            for source, what in module.imports()
            for full in (f"{source}.{what}",)
            if any(_is_in(full, other) for other in others)
        ]
    assert found == []


def _is_in(name: str, engine: str) -> bool:
    return f"{name}.".startswith(f"emberd.engines.{engine}.")


def test_the_backend_imports_no_integration() -> None:
    integrations = ("langchain_emberd", "llama_index", "langchain")
    found = [
        f"{module.name} imports {source}"
        for module in source_tree.modules("emberd")
        for source, _ in module.imports()
        if source.startswith(integrations)
    ]
    assert found == []


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "emberd"])
def test_an_integration_imports_only_public_names_of_emberd(package: str) -> None:
    public = set(importlib.import_module("emberd").__all__)
    others = tuple(name for name in PACKAGES if name not in (package, "emberd"))
    modules = source_tree.modules(package)
    assert modules
    for source, name in (pair for module in modules for pair in module.imports()):
        assert not source.startswith(others)
        if source.split(".")[0] == "emberd":
            assert (source, name in public) == ("emberd", True), f"{source}, {name}"


# ---------------------------------------------------------------- who knows what

_SGLANG_FLAGS: Final = re.compile(
    r"--(allow-auto-truncate|attention-backend|base-gpu-id|chunked-prefill-size|context-length"
    r"|cuda-graph|disable-cuda-graph|disable-radix-cache|enable-metrics|enable-torch"
    r"|is-embedding|json-model-override-args|max-running-requests|max-total-tokens"
    r"|mem-fraction-static|prefill-only-disable-kv-cache|trust-remote-code)"
)
_WIRE_PARTS: Final = ("emberd.client", "emberd.serving", "emberd.gateway")
_WIRE: Final = re.compile(r"/v1/embeddings|\bencoding_format\b")


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        pytest.param(_SGLANG_FLAGS, ("emberd.engines.sglang",), id="flags-of-sglang"),
        pytest.param(
            _WIRE,
            ("emberd.client", "emberd.serving", "emberd.gateway"),
            id="embeddings-on-the-wire",
        ),
    ],
)
def test_knowledge_stays_in_its_part(pattern: re.Pattern[str], allowed: tuple[str, ...]) -> None:
    elsewhere = [
        f"{module.where(line)} {text!r}"
        for module in source_tree.all_modules()
        if not f"{module.name}.".startswith(tuple(f"{name}." for name in allowed))
        for line, text in module.words()
        if pattern.search(text)
    ]
    assert not elsewhere


# ---------------------------------------------------------------- nothing heavy, nothing started

# Frameworks come before the watch: what they do at import is theirs.
_WATCH: Final = """
import json, sys, threading
{before}
seen = []
STARTS = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system",
          "socket.__new__", "socket.connect", "socket.getaddrinfo", "subprocess.Popen")
def watch(event, args):
    if event in STARTS or event == "import" and args[0].split(".")[0] in {watched!r}:
        seen.append(f"{{event}} {{args[0] if event == 'import' else ''}}".strip())
sys.addaudithook(watch)
# Python 3.11 raises no audit event for a thread.
threading.Thread.start = lambda thread: seen.append("Thread.start")
def done():
    steps.append([[*seen], sorted({heavy!r} & {{*sys.modules}})])
    seen.clear()
steps = []
{code}
print(json.dumps(steps))
"""
_HEAVY: Final = {"openai", "sglang", "torch", "transformers"}
_LATE: Final = {
    *("filelock", "httpx", "httpx2", "numpy", "prometheus_client", "psutil", "pydantic", "rich"),
    *("starlette", "typer", "uvicorn"),
}


def _steps(code: str, before: str = "") -> list[tuple[list[str], list[str]]]:
    """Run code that calls ``done()`` after each step.

    Returns:
        For each step, what the watch saw, and which of ``_HEAVY`` have been imported so far.
    """
    program = _WATCH.format(before=before, code=code, heavy=_HEAVY, watched=_HEAVY | _LATE)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [(seen, imported) for seen, imported in json.loads(done.stdout)]


@pytest.mark.parametrize(
    ("package", "before", "construct"),
    [
        ("emberd", "", "emberd.Embedder(model='emberd/demo')"),
        (
            "langchain_emberd",
            "import pydantic; from langchain_core.embeddings import Embeddings",
            "langchain_emberd.EmberdEmbeddings(model='emberd/demo')\nlangchain_emberd.EmberdReranker()",
        ),
        (
            "llama_index.embeddings.emberd",
            "import llama_index.core.base.embeddings.base, llama_index.core.callbacks",
            "llama_index.embeddings.emberd.EmberdEmbedding(model_name='emberd/demo')",
        ),
        (
            "llama_index.postprocessor.emberd",
            "import llama_index.core.postprocessor.types, llama_index.core.callbacks",
            "llama_index.postprocessor.emberd.EmberdRerank()",
        ),
    ],
    ids=PACKAGES,
)
def test_importing_and_constructing_start_nothing_and_import_nothing_heavy(
    package: str, before: str, construct: str
) -> None:
    """What is imported so far holds for what the frameworks import as well."""
    (seen, imported), (then_seen, then_imported) = _steps(
        f"import {package}\ndone()\n{construct}\ndone()", before
    )
    # The frameworks need some of what emberd imports late, and so does constructing.
    assert seen == [] or (package != "emberd" and not any(map(_concerns_what_is_heavy, seen)))
    assert not any(map(_concerns_what_is_heavy, then_seen))
    assert (imported, then_imported) == ([], [])


def _concerns_what_is_heavy(seen: str) -> bool:
    return not seen.startswith("import ") or seen.split()[1].split(".", maxsplit=1)[0] in _HEAVY


@pytest.mark.parametrize(
    ("code", "event"),
    [
        (
            "import contextlib\nwith contextlib.suppress(ImportError): import sglang",
            "import sglang",
        ),
        ("import socket; socket.socket().close()", "socket.__new__"),
        ("import threading; threading.Thread(target=int).start()", "Thread.start"),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import os; os.fork() or os._exit(0)", "os.fork"),
    ],
)
def test_the_watch_sees_what_it_is_for(code: str, event: str) -> None:
    [(seen, _)] = _steps(f"{code}\ndone()")
    assert event in seen


# ---------------------------------------------------------------- sizes, names and docstrings

_MAX_MODULE_LINES: Final = 600


def test_no_module_is_longer_than_600_lines() -> None:
    lines = {module.where(1): len(module.text.splitlines()) for module in source_tree.all_modules()}
    assert {where: count for where, count in lines.items() if count > _MAX_MODULE_LINES} == {}


def test_no_two_files_have_one_name() -> None:
    """Otherwise a name in a traceback or an editor does not say which."""
    names = Counter(module.path.name for module in source_tree.modules("emberd"))
    assert {name for name, count in names.items() if count > 1} == SHARED_FILE_NAMES


def test_no_two_classes_have_one_name() -> None:
    names = Counter(
        node.name
        for module in source_tree.modules("emberd")
        for node in module.tree.body
        if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_every_public_function_and_class_has_a_docstring() -> None:
    bare = [
        f"{module.where(node.lineno)} {node.name}"
        for module in source_tree.all_modules()
        for node in module.public()
        if ast.get_docstring(node) is None
    ]
    assert bare == []


# ---------------------------------------------------------------- versions and public names


def _toml(path: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / path).read_text(encoding="utf-8"))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_changelog_and_version_agree() -> None:
    """The version is the newest that the log has, or a later one with entries to release."""
    version = importlib.import_module("emberd").__version__
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", log, flags=re.MULTILINE)[1:]
    assert sections[0].startswith("[Unreleased]")
    released = [re.match(r"\[(\d+(?:\.\d+)+)\] - \d{4}-\d\d-\d\d\n", text) for text in sections[1:]]
    versions = [match.group(1) for match in released if match]
    assert len(versions) == len(sections) - 1, "a heading is not: ## [1.2.3] - 2026-01-31"
    assert versions == sorted(versions, key=_numbers, reverse=True)
    if version not in versions[:1]:
        assert not versions or _numbers(version) > _numbers(versions[0])
        assert "\n- " in sections[0]


@pytest.mark.parametrize(
    "folder", sorted(f"integrations/{path.name}" for path in ROOT.glob("integrations/*"))
)
def test_an_integration_has_emberds_version_and_asks_for_it(folder: str) -> None:
    version = importlib.import_module("emberd").__version__
    project = _toml(f"{folder}/pyproject.toml")["project"]
    assert project["version"] == version
    assert f"emberd=={version}" in project["dependencies"]


def test_the_root_builds_nothing() -> None:
    root = _toml("pyproject.toml")
    assert set(root) == {"tool"}
    assert sorted(root["tool"]["uv"]["workspace"]["members"]) == [
        str(path.parent.relative_to(ROOT))
        for path in sorted((*ROOT.glob("backend/*.toml"), *ROOT.glob("integrations/*/*.toml")))
    ]


def test_what_has_a_target_of_make_is_not_collected_by_make_test() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"-m pytest\b[^\n]* (tests/\w+)", makefile))
    settings = _toml("pyproject.toml")["tool"]["pytest"]["ini_options"]
    assert len(named) > 8
    # A part of the campaign of faults runs in both.
    assert named - {"tests/faults"} <= set(settings["norecursedirs"])


def _isort_key(name: str) -> tuple[int, str]:
    # Constants, classes, the rest: the order that ruff's RUF022 keeps.
    kind = 0 if name.isupper() else 1 if name[:1].isupper() else 2
    return kind, name


def _packages_with_all() -> list[str]:
    inits = [module for module in source_tree.all_modules() if module.path.name == "__init__.py"]
    return [module.name for module in inits if re.search("^__all__", module.text, re.MULTILINE)]


@pytest.mark.parametrize("package", sorted({*PACKAGES, *_packages_with_all()}))
def test_public_names_are_sorted_and_importable(package: str) -> None:
    module = importlib.import_module(package)
    names = list(module.__all__)
    assert names == sorted(set(names), key=_isort_key)
    assert [name for name in names if not hasattr(module, name)] == []
    assert set(names) <= set(dir(module))


def test_no_test_file_is_out_of_reach() -> None:
    """A file that pytest does not collect is a test that cannot fail."""
    collected = re.compile(r"(test_\w+|conftest)\.py")
    hidden = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("*.py")
        if re.search(r"^(async )?def test_", path.read_text(encoding="utf-8"), re.MULTILINE)
        and not collected.fullmatch(path.name)
    ]
    assert hidden == []


def test_the_repository_is_where_it_is_looked_for() -> None:
    assert all(Path(folder).is_dir() for folder in PACKAGES.values())
