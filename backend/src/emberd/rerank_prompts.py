"""What a reranker's folder says of its prompt: the chat template, and the default instruction.

sentence-transformers' ``CrossEncoder`` gives a pair to the chat template, as messages with the
roles query and document, and the saved prompt of ``default_prompt_name`` as the system message
(6.2.0). emberd writes the prompt of Qwen3-Reranker, in which only the instruction varies. So
a template that writes another prompt is an error: the scores would be those of another model.

Templates are compared as text, because only Jinja can run one. Code of any other form than that of
published templates counts as another prompt.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

from emberd.catalog import WEB_TASK
from emberd.model_files import ModelFileError, as_object, load_json, read_text
from emberd.model_pooling import PROMPTS_FILE, TRANSFORMER
from emberd.model_tokenizer import SETTINGS
from emberd.prompts import rerank_frame

TEMPLATE: Final = "chat_template.jinja"

_SLOT: Final = "\0"
_SYSTEM: Final = "system"

# The only code that is accepted: the content of the message of a role. Jinja's other filters,
# operators and tests may change the text, or use another one for an empty text. ``~`` stands for
# optional white space.
_ROLE: Final = "[\"']{}[\"']"
_OF_ROLE: Final = (
    r"messages~\|~selectattr~\(~[\"']role[\"']~,~[\"'](?:eq|equalto|==)[\"']~,~"
    r"[\"'](system|query|document)[\"']~\)"
)
_CONTENT: Final = (
    rf"{_OF_ROLE}~\|~map~\(~attribute~=~[\"']content[\"']~\)~\|~first"
    rf"|\(~{_OF_ROLE}~\|~first~\)~\.~content"
    r"|(\w+)"
)
# Without braces, so that the end of the code is where it seems to be, and without escapes.
_DEFAULT: Final = r"\|~default~\(~([\"'])([^\"'\\{}\r]*)\4~\)"
_VALUE: Final = re.compile(f"(?:{_CONTENT})(?:~{_DEFAULT})?".replace("~", r"\s*"))
_SET: Final = re.compile(r"set\s+(\w+)\s*=\s*(.*)", re.DOTALL)
_CODE: Final = re.compile(r"\{#.*?#\}|\{%-?(.*?)-?%\}|\{\{-?(.*?)-?\}\}", re.DOTALL)

# The role whose message a piece of code writes, and what it writes if there is none.
_Value = tuple[str, str | None]


def default_instruction(folder: Path) -> str:
    """Return the instruction of calls that name none.

    Raises:
        ModelFileError: The files describe another prompt than that of Qwen3-Reranker, or one that
            cannot be compared with it.
    """
    _check_modality(folder)
    path, template = _pair_template(folder)
    if template is None:
        return _saved_prompt(folder) or WEB_TASK
    own, is_fixed = _instruction_of(path, template)
    task = own if is_fixed else _saved_prompt(folder) or own
    if not task:
        raise ModelFileError(
            f"{path} has no default for the instruction, and {folder / PROMPTS_FILE} names none"
        )
    return task


def _check_modality(folder: Path) -> None:
    for name in TRANSFORMER:
        if (settings := load_json(folder / name)) is not None:
            config = as_object(folder / name, settings).get("modality_config")
            if isinstance(config, dict) and "message" not in config:
                raise ModelFileError(
                    f"{folder / name} has a modality_config without 'message', so the model was "
                    f"trained without a chat template"
                )


def _pair_template(folder: Path) -> tuple[Path, str | None]:
    """Return the chat template, and its file, if it is one for a query and a document.

    The file ``chat_template.jinja`` wins over the entry of ``tokenizer_config.json``, as in
    Transformers.
    """
    path = folder / TEMPLATE
    found: Any
    try:
        found = read_text(path)
    except (FileNotFoundError, NotADirectoryError):
        path = folder / SETTINGS
        settings = load_json(path)
        found = as_object(path, settings).get("chat_template") if settings is not None else None
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read ({error})") from error
    if isinstance(found, list):
        named = [each for each in found if isinstance(each, dict)]
        found = next(
            (each.get("template") for each in named if each.get("name") == "default"), None
        )
    is_for_pairs = isinstance(found, str) and re.search(_ROLE.format("document"), found)
    return path, found if is_for_pairs else None


def _instruction_of(path: Path, template: str) -> tuple[str | None, bool]:
    """Return the instruction of a template that writes the prompt of Qwen3-Reranker.

    Returns:
        The instruction, or None; and whether the template ignores a saved prompt.
    """
    expected = rerank_frame(_SLOT, default=_SLOT)
    before, after = expected.before.split(_SLOT, 1)
    pattern = f"{re.escape(before)}([^\n]+){re.escape(after)}{_SLOT}{re.escape(expected.after)}"
    found = re.fullmatch(pattern, _literal(template))
    values = _values(template)
    if found is None or values is None:
        raise _other_prompt(path)
    if is_fixed := found[1] != _SLOT:
        if _SLOT in found[1]:
            raise ModelFileError(f"{path} puts more than a task into the instruction of the prompt")
        values.insert(0, (_SYSTEM, found[1]))
    if [role for role, _ in values] != [_SYSTEM, "query", "document"]:
        raise _other_prompt(path)
    return values[0][1], is_fixed


def _other_prompt(path: Path) -> ModelFileError:
    return ModelFileError(
        f"{path} writes another prompt for a query and a document than that of Qwen3-Reranker, the "
        f"only one that emberd can write, or has code that emberd does not evaluate"
    )


def _values(template: str) -> list[_Value] | None:
    """Return the values that a template writes, in order; None if it has other code too."""
    variables: dict[str, _Value] = {}
    written: list[_Value] = []
    for code in _CODE.finditer(template):
        statement, expression = code.groups()
        if statement is not None:
            assigned = _SET.fullmatch(statement.strip())
            value = _value(assigned[2], variables) if assigned else None
            if assigned is None or value is None or assigned[1] == "messages":
                return None
            variables[assigned[1]] = value
        elif expression is not None:
            if (value := _value(expression.strip(), variables)) is None:
                return None
            written.append(value)
    return written


def _value(code: str, variables: dict[str, _Value]) -> _Value | None:
    """Return what an expression writes; None if it is of another form."""
    if (found := _VALUE.fullmatch(code)) is None:
        return None
    content, attribute, name, _, default = found.groups()
    role, first_default = (
        variables.get(name, (None, None)) if name else (content or attribute, None)
    )
    # Jinja fails if there is no message to take the attribute of, and only that may be missing.
    if role is None or attribute == _SYSTEM or (default is not None and role != _SYSTEM):
        return None
    return role, default if first_default is None else first_default


def _literal(template: str) -> str:
    """Return the text that a template writes, with ``_SLOT`` for each value in it.

    White space around code is removed as with the options that Transformers sets
    (``trim_blocks``, ``lstrip_blocks``), and one newline at the end, as by default.
    """
    text = re.sub(r"\s+(?=\{[{%#]-)", "", template.removesuffix("\n"))
    text = re.sub(r"(?<=-[}%#]\})\s+", "", text)
    text = re.sub(r"(?m)^[ \t]+(?=\{[%#])", "", text)
    text = re.sub(r"\{%.*?%\}\n?|\{#.*?#\}\n?", "", text, flags=re.DOTALL)
    return re.sub(r"\{\{.*?\}\}", _SLOT, text, flags=re.DOTALL)


def _saved_prompt(folder: Path) -> str | None:
    """Return the text of ``default_prompt_name``; None if there is none, or an empty one."""
    path = folder / PROMPTS_FILE
    if (found := load_json(path)) is None:
        return None
    saved = as_object(path, found)
    if (name := saved.get("default_prompt_name")) is None:
        return None
    prompts = as_object(path, saved.get("prompts", {}), "prompts")
    if name not in prompts:  # sentence-transformers does not load such a model
        raise ModelFileError(
            f"{path} has default_prompt_name={json.dumps(name)}, but no prompt of that name"
        )
    text = prompts[name]
    if text is not None and not isinstance(text, str):
        raise ModelFileError(f"{path} has the prompt {name}={json.dumps(text)}, not a string")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ModelFileError(f"{path} has a prompt {name} that cannot be encoded") from error
    return text or None
