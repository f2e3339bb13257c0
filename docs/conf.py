"""Settings of Sphinx, which builds the documentation site: ``make docs``."""

import json
import os
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myst_parser.parsers.sphinx_ import MystParser

import emberd

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "emberd"
author = "emberd contributors"
copyright = "2026, emberd contributors"
release = version = emberd.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
highlight_language = "none"  # blocks without a language are commands and output
smartquotes = False  # it makes one dash of the two before an option

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
# The adapters' packages. Their environments differ, and only their names are needed here.
autodoc_mock_imports = ["chromadb", "haystack", "lancedb", "mteb"]

html_theme = "furo"
html_title = f"emberd {release}"
html_show_sourcelink = False
html_copy_source = False
html_extra_path = ["llms.txt"]
html_static_path = ["_static", "images/session.svg", "images/session-still.svg"]
html_css_files = ["site.css"]

_DOCS = Path(__file__).resolve().parent
_PROJECT = tomllib.loads((_DOCS.parent / "backend/pyproject.toml").read_text(encoding="utf-8"))
_REPOSITORY: str = _PROJECT["project"]["urls"]["Repository"]


def _link_to_the_repository(_: "Sphinx", page: str, source: list[str]) -> None:
    """Point links to files outside ``docs`` at the repository, because the site lacks them."""
    folder = (_DOCS / page).parent

    def target(match: re.Match[str]) -> str:
        path, hash_sign, anchor = match[1].partition("#")
        file = Path(os.path.normpath(folder / path))
        if file.is_relative_to(_DOCS) or not file.exists():
            return match[0]
        kind = "tree" if file.is_dir() else "blob"
        where = file.relative_to(_DOCS.parent).as_posix()
        return f"]({_REPOSITORY}/{kind}/main/{where}{hash_sign}{anchor})"

    source[0] = re.sub(r"\]\((\.\./[^)\s]*)\)", target, source[0])


def _describe_fields(
    _: "Sphinx", _kind: str, _name: str, described: Any, _options: Any, lines: list[str]
) -> None:
    """Add the descriptions of the fields of a pydantic model to its docstring."""
    fields = getattr(described, "model_fields", {}) if isinstance(described, type) else {}
    texts = {name: field.description for name, field in fields.items() if field.description}
    if texts:
        lines += ["", "Args:", *(f"    {name}: {text}" for name, text in texts.items()), ""]


class _NotebookParser(MystParser):
    """Reads a notebook with its stored outputs as MyST Markdown."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: Any) -> None:
        """Add the content of a notebook to a document."""
        parts = []
        for cell in json.loads(inputstring)["cells"]:
            text = "".join(cell["source"])
            is_code = cell["cell_type"] == "code"
            parts.append(f"````python\n{text}\n````" if is_code else text)
            shown = "".join(map(_output, cell.get("outputs", []))).rstrip()
            if shown:
                parts.append(f"````{{code-block}} none\n:class: output\n\n{shown}\n````")
        file = Path(document["source"]).name
        parts.append(f"This page is a notebook: {{download}}`{file}`.")
        super().parse("\n\n".join(parts), document)


def _output(output: dict[str, Any]) -> str:
    """Return an output of a cell as text."""
    return "".join(output["text"] if "text" in output else output["data"]["text/plain"])


def setup(app: "Sphinx") -> dict[str, bool]:
    """Register notebooks and the rewriting of links with Sphinx."""
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(_NotebookParser)
    app.connect("source-read", _link_to_the_repository)
    app.connect("autodoc-process-docstring", _describe_fields, priority=400)  # before napoleon
    return {"parallel_read_safe": True}
