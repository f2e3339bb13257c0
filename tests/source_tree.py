"""The repository as tests read it: packages, modules, imports, functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]

# Name of a package that we publish -> the folder that holds its modules.
PACKAGES: Final = {
    "emberd": ROOT / "backend/src/emberd",
    "langchain_emberd": ROOT / "integrations/langchain-emberd/langchain_emberd",
    "llama_index.embeddings.emberd": (
        ROOT / "integrations/llama-index-embeddings-emberd/llama_index/embeddings/emberd"
    ),
    "llama_index.postprocessor.emberd": (
        ROOT / "integrations/llama-index-postprocessor-emberd/llama_index/postprocessor/emberd"
    ),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


@dataclass(frozen=True)
class Module:
    """One source file."""

    package: str
    path: Path

    @property
    def name(self) -> str:
        """Its dotted name."""
        parts = [self.package, *self.path.relative_to(PACKAGES[self.package]).with_suffix("").parts]
        return ".".join(part for part in parts if part != "__init__")

    @property
    def part(self) -> str:
        """The first name below the package; empty for the package itself."""
        return self.name.removeprefix(self.package).lstrip(".").partition(".")[0]

    @cached_property
    def text(self) -> str:
        """Its source."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, filename=str(self.path))

    def imports(self) -> Iterator[tuple[str, str | None]]:
        """Yield (module, name) of each import, those inside functions too.

        ``import a.b`` gives ("a.b", None); ``from a import b`` gives ("a", "b").
        """
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((self._absolute(node), alias.name) for alias in node.names)

    def words(self) -> Iterator[tuple[int, str]]:
        """Yield line and text of what the program can say: strings less docstrings, keywords."""
        prose = {id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.keyword) and node.arg:
                yield node.value.lineno, node.arg
            elif isinstance(node, ast.Constant) and id(node) not in prose:
                yield from ((node.lineno, text) for text in _texts(node.value))

    def definitions(self) -> Iterator[Definition]:
        """Yield every function and class, nested ones too."""
        for node in ast.walk(self.tree):
            if isinstance(node, Definition):
                yield node

    def public(self) -> Iterator[Definition]:
        """Yield what a reader of the documentation meets: no nested functions, no overloads."""
        return _public(self.tree)

    def where(self, line: int) -> str:
        """Return a place in the form that editors jump to."""
        return f"{self.path.relative_to(ROOT)}:{line}"

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        above = self.name.split(".")
        above = above[: len(above) - node.level + (self.path.name == "__init__.py")]
        return ".".join([*above, *([node.module] if node.module else [])])


@cache  # each file is read and parsed once
def modules(package: str) -> tuple[Module, ...]:
    """Return the modules of one of ``PACKAGES``."""
    paths = sorted(PACKAGES[package].rglob("*.py"))
    return tuple(Module(package, path) for path in paths if "__pycache__" not in path.parts)


def all_modules() -> list[Module]:
    """Return the modules of all packages."""
    return [module for package in PACKAGES for module in modules(package)]


def _public(body: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    for node in body.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            if not _is_overload(node):
                yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def _is_overload(node: Definition) -> bool:
    # The second half of a property says nothing that the first did not.
    names = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return bool(names & {"overload", "setter", "deleter"})


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("latin-1")
