"""The reference pages that are generated: errors, exit codes and the command's options.

To write them again: PYTHONPATH=tests python -c 'import test_reference_pages as t; t.write()'.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
import typer

from emberd import errors
from emberd.cli.app import app
from emberd.cli.output import MEANINGS
from emberd.errors import EmberdError
from source_tree import ROOT

FOLDER: Final = ROOT / "docs" / "reference"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


# --- errors -------------------------------------------------------------------------------------

ERRORS_HEAD: Final = """\
# Errors

Every error of emberd is an `emberd.EmberdError`, or of a derived class. Many are also of a
built-in class, so that code that catches `ValueError`, `TimeoutError` or `ConnectionError` works
without emberd's names. The text of an error states what happened, the values, and what to do next.
The causes of a failed start of SGLang are listed in [failures](../failures.md), the exit codes of
the command in [exit codes](exit-codes.md).

| class | also a | when | what to do |
| --- | --- | --- | --- |
"""

ADVICE: Final[dict[type[EmberdError], str]] = {
    errors.EmberdError: "Catch it to handle everything below.",
    errors.SettingError: "Correct the argument or variable that the text names: "
    "[environment variables](../environment-variables.md).",
    errors.InstructionError: "Use the form that the text shows: [roles](../roles.md).",
    errors.IdentityError: "Use the settings of the index (`kept`), or embed the documents again: "
    "[change the model of an index](../vector-stores.md#change-the-model-of-an-index).",
    errors.MissingKeyError: "Set the key in the process that unpickles the object, for example by "
    "`EMBERD_API_KEY`: [threat model](../security.md).",
    errors.CollectionRowError: "Correct or remove the row in the store, then run "
    "`emberd reindex` again.",
    errors.HubError: "Check the name of the model, the network and `HF_TOKEN`, or give a folder: "
    "[downloading weights](../installing-engines.md#downloading-weights).",
    errors.VerifyError: "Follow the text: it says whether memory, the engine or files "
    "are missing: [compare a server](../other-servers.md#compare-a-server-with-transformers).",
    errors.ServerError: "Catch it to handle all errors about servers.",
    errors.NoEngineError: "Read the reason of each engine in the text, and run `emberd doctor`.",
    errors.DownloadNeededError: "Run `emberd up --yes`, or set `EMBERD_AUTO_INSTALL`: "
    "[installing engines](../installing-engines.md).",
    errors.InstallError: "Follow `advice`, and read the installer's output at `log_path`: "
    "[installing engines](../installing-engines.md).",
    errors.StartError: "Follow `advice`, and read the server's log at `log_path`: "
    "[known failures](../failures.md#known-failures).",
    errors.StartTimeoutError: "Call again, which joins the same start, or raise `start_timeout`.",
    errors.LockTimeoutError: "Wait for the process that the text names, or end it if it hangs: "
    "[the life of a server](../lifecycle.md).",
    errors.ServerStoppedError: "Call again if the server shall start again.",
    errors.ServerMismatchError: "Give the URL of a server of this model, or the model that it "
    "serves: [what is verified](../other-servers.md#what-is-verified).",
    errors.StateFolderError: "Set `EMBERD_HOME` to a folder of your own on a local disk: "
    "[the state folder](../lifecycle.md#the-state-folder).",
    errors.RequestError: "Catch it to handle all errors of requests.",
    errors.TextError: "Correct or leave out the text at `index`.",
    errors.TextTooLongError: "Split the text, or cut it with `truncate=True`.",
    errors.PoisonTextError: "Leave out the text at `index`, and report it with the server's log.",
    errors.QueryError: "Pass a string that can be encoded as UTF-8.",
    errors.BadReplyError: "Run `emberd verify` against the server; its version or its model is "
    "likely at fault: [external servers](../other-servers.md).",
    errors.RejectedError: "Read the server's reason in the text; `status` is the HTTP status.",
    errors.AuthenticationError: "Set `api_key` or `EMBERD_API_KEY` to the key of the server.",
    errors.RequestTimeoutError: "Raise `timeout`, or send less at once; `emberd status` shows "
    "whether the server is busy.",
    errors.ServerUnavailableError: "Check the URL and that the server runs; a server that emberd "
    "started has a log: `emberd logs`.",
}


def _error_classes() -> list[type[EmberdError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, EmberdError)
    ]


def _builtin(kind: type) -> str:
    return next(
        (f"`{c.__name__}`" for c in kind.__mro__ if c.__module__ == "builtins" and c is not kind),
        "",
    ).replace("`Exception`", "")


def _error_row(kind: type[EmberdError]) -> str:
    doc = inspect.cleandoc(kind.__doc__ or "")
    when = doc.partition("\nAttributes:")[0].replace("``", "`")
    cells = [f"`{kind.__name__}`", _builtin(kind), _cell(when), ADVICE[kind]]
    return f"| {' | '.join(cells)} |\n"


def _fields() -> Iterator[str]:
    for kind in _error_classes():
        # Fields of a base that is not public are those of each derived class.
        for base in (kind, *(b for b in kind.__bases__ if b.__name__.startswith("_"))):
            _, _, attributes = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
            for name, meaning in re.findall(r"^ +(\w+): (.*)$", attributes, re.MULTILINE):
                yield f"| `{kind.__name__}` | `{name}` | {_cell(meaning)} |\n"


def _errors_page() -> str:
    rows = "".join(map(_error_row, _error_classes()))
    head = "\n## Fields\n\n| class | field | meaning |\n| --- | --- | --- |\n"
    return ERRORS_HEAD + rows + head + "".join(_fields())


def test_every_error_has_advice() -> None:
    assert set(ADVICE) == set(_error_classes())


# --- exit codes ---------------------------------------------------------------------------------

EXIT_CODES_HEAD: Final = """\
# Exit codes

All subcommands use these codes. `emberd --help` shows them too. With `--json`, an error is an
object on stdout.

| code | name | meaning |
| --- | --- | --- |
"""


def _exit_codes_page() -> str:
    return EXIT_CODES_HEAD + "".join(
        f"| {code.value} | `{code.name}` | {_cell(text)} |\n" for code, text in MEANINGS.items()
    )


# --- the command --------------------------------------------------------------------------------

COMMAND_HEAD: Final = """\
# The command `emberd`

All subcommands with their arguments and options. `emberd SUBCOMMAND --help` shows the same. See
also the [exit codes](exit-codes.md), the [environment variables](../environment-variables.md), and
the pages on [`up` and `stop`](../lifecycle.md), [`serve`](../serve.md), [`doctor`](../doctor.md),
[`bench`](../performance.md#measure-your-own-server),
[`verify`](../other-servers.md#compare-a-server-with-transformers),
[`reindex`](../vector-stores.md#change-the-model-of-an-index), [`embed`](../bulk.md),
[`search`](../folder-search.md) and [`engine`](../installing-engines.md).

## Completion in the shell

This command sets up bash, zsh or fish, whichever shell runs it. New shells then complete commands,
options and known models:

```
emberd --install-completion
```

`--show-completion` prints the script instead.
"""


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    if not children:
        yield name, command
    for child, below in children.items():
        yield from _commands(below, f"{name} {child}")


def _option(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = (parameter.metavar or parameter.name).upper().strip("[].")
        shown = name if parameter.required else f"[{name}]"
        return f"`{shown}{'...' if parameter.nargs == -1 else ''}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _sections() -> Iterator[str]:
    for name, command in _commands(typer.main.get_command(app), "emberd"):
        text = inspect.cleandoc(command.help or "").replace("\b\n", "")
        yield f"\n## `{name}`\n\n{text.strip()}\n"
        rows = [
            f"| {_option(p)} | {_cell(getattr(p, 'help', '') or '')} |\n"
            for p in command.params
            if not getattr(p, "hidden", False) and p.name != "help"
        ]
        if rows:
            yield "\n| option | meaning |\n| --- | --- |\n" + "".join(rows)


def _command_page() -> str:
    return COMMAND_HEAD + "".join(_sections())


# --- all ----------------------------------------------------------------------------------------

PAGES: Final[dict[str, Callable[[], str]]] = {
    "errors.md": _errors_page,
    "exit-codes.md": _exit_codes_page,
    "command.md": _command_page,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_made_of_what_the_code_says(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name]()


def test_every_subcommand_and_option_has_a_help_text() -> None:
    rows = re.findall(r"^\| (.*) \| (.*) \|$", _command_page(), re.MULTILINE)
    assert len(rows) > 50
    assert [option for option, text in rows if not text] == []


def write() -> None:
    """Write the pages."""
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
