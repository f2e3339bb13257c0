"""The table of environment variables: complete, documented, and the only reader."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Final

import pytest

import source_tree
from emberd import env
from emberd.catalog import EMBED, RERANK
from emberd.errors import SettingError, StartError
from emberd.installs import RECIPES
from emberd.settings import Settings, StartOptions
from source_tree import ROOT, Module

PAGE: Final = ROOT / "docs" / "environment-variables.md"
HEAD: Final = """\
# Environment variables

Arguments and options take precedence over the environment. A variable that is empty counts as not
set, except for the two instructions. Variables of the Hugging Face hub (`HF_HOME`, `HF_HUB_CACHE`,
`HF_TOKEN`, ...) keep their meaning.

| variable | what it sets | form |
| --- | --- | --- |
"""


def _page() -> str:
    rows = (f"| `{v.name}` | {v.description} | {v.form.expected} |" for v in env.VARIABLES.values())
    return HEAD + "\n".join(rows) + "\n"


def test_the_page_of_the_documentation_is_made_of_the_table() -> None:
    """To write it again: PYTHONPATH=tests python -c 'import test_env as t; t.write()'."""
    assert PAGE.read_text(encoding="utf-8") == _page()


def write() -> None:
    """Write the page of the documentation."""
    PAGE.write_text(_page(), encoding="utf-8")


def test_every_field_of_the_settings_has_a_variable() -> None:
    names = {variable.sets for variable in env.VARIABLES.values()}
    start = {field.name for field in fields(StartOptions)} - {"no_auth"}
    assert names - {""} == {field.name for field in fields(Settings)} | start
    assert {recipe.variable for recipe in RECIPES.values()} <= set(env.VARIABLES)


def test_every_variable_that_the_sources_name_is_in_the_table() -> None:
    texts = [module.text for module in source_tree.all_modules()]
    named = {name for text in texts for name in re.findall(r"EMBERD_[A-Z_]*[A-Z]", text)}
    assert named <= {*env.VARIABLES, *env.INTERNAL}


def test_no_other_module_reads_a_variable_of_emberd() -> None:
    found = [
        module.where(line)
        for module in source_tree.all_modules()
        if module.name != "emberd.env"
        for line in _reads(module)
    ]
    assert found == []


def _reads(module: Module) -> Iterator[int]:
    """Yield the lines that read a variable by its name, or keep its name to read it."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Subscript(value=source, slice=ast.Constant(value=str(name))):
                pass
            case ast.Compare(comparators=[source], left=ast.Constant(value=str(name))):
                pass
            case ast.Call(
                func=ast.Attribute(value=source, attr="get" | "getenv" | "pop" | "setdefault"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                pass
            case ast.AnnAssign(value=ast.Constant(value=str(name)) as source):
                if module.name == "emberd.system.processes":
                    continue  # the mark of a supervisor; env imports it
            case _:
                continue
        if re.fullmatch("EMBERD_[A-Z_]+", name):
            yield source.lineno


@pytest.mark.parametrize(
    "code",
    [
        'os.environ.get("EMBERD_HOME")',
        'os.environ["EMBERD_HOME"]',
        'os.getenv("EMBERD_HOME")',
        '"EMBERD_HOME" in os.environ',
        'HOME: Final = "EMBERD_HOME"',
    ],
)
def test_a_read_is_seen(code: str) -> None:
    module = source_tree.modules("emberd")[0]
    module = Module(module.package, module.path)
    module.__dict__["tree"] = ast.parse(code)
    assert list(_reads(module)) == [1]


def test_a_value_is_parsed_and_an_empty_one_is_not_set() -> None:
    environ = {"EMBERD_AUTO_INSTALL": "yes", "EMBERD_PORT": "", "EMBERD_QUERY_INSTRUCTION": ""}
    assert env.value("EMBERD_AUTO_INSTALL", environ) is True
    assert env.value("EMBERD_PORT", environ) is None
    assert env.setting_values(environ) == {"query_instruction": ""}
    with pytest.raises(SettingError, match="EMBERD_AUTO_INSTALL='maybe'"):
        env.value("EMBERD_AUTO_INSTALL", {"EMBERD_AUTO_INSTALL": "maybe"})
    with pytest.raises(KeyError):
        env.value("EMBERD_MODLE", {"EMBERD_MODLE": "1"})


def test_a_text_names_the_variables_of_its_task() -> None:
    text = "EMBERD_MODEL, EMBERD_PORT=1, EMBERD_BASE_URL EMBERD_DEVICE EMBERD_MODELS"
    assert env.named_for(EMBED, text) == text
    named = env.named_for(RERANK, text)
    assert named == (
        "EMBERD_RERANK_MODEL, EMBERD_RERANK_PORT=1, EMBERD_RERANK_BASE_URL EMBERD_DEVICE "
        "EMBERD_MODELS"
    )
    assert env.named_for(RERANK, named) == named


def test_an_error_names_the_variables_of_its_task_in_all_its_texts() -> None:
    with pytest.raises(StartError) as raised, env.errors_for(RERANK):
        raise StartError("EMBERD_PORT is taken", advice="Change EMBERD_PORT.")
    error = raised.value
    assert (error.cause, error.advice) == (
        "EMBERD_RERANK_PORT is taken",
        "Change EMBERD_RERANK_PORT.",
    )
    assert "EMBERD_PORT" not in str(error)
