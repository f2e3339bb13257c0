"""What a reranker's folder says of its prompt: the chat template, and the default instruction.

sentence-transformers' ``CrossEncoder`` gives a pair to the chat template, as messages with the
roles query and document, and the saved prompt of ``default_prompt_name`` as the system message
(6.2.0). emberd writes the prompt of Qwen3-Reranker, in which only the instruction varies. So
a template that writes another prompt is an error: the scores would be those of another model.

Templates are compared as text, because only Jinja can run one. What a text does not show, such as
the effect of a condition, counts as another prompt.
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
_ROLE: Final = "[\"']{}[\"']"
_ONLY_SETS: Final = re.compile(r"\{%(?!-?\s*set\s)")
_CODE: Final = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_FILTER: Final = re.compile(r"\|\s*(\w+)")
_KEEP_TEXT: Final = frozenset({"selectattr", "map", "first", "default"})
_DEFAULT: Final = re.compile(r"\|\s*default\(\s*(\"[^\"]*\"|'[^']*')\s*\)")


def default_instruction(folder: Path) -> str:
    """Return the instruction of calls that name none.

    Raises:
        ModelFileError: The files describe another prompt than that of Qwen3-Reranker, or one that
            cannot be compared with it.
    """
    _check_modality(folder)
    path, template = _pair_template(folder)
    own = WEB_TASK
    if template is not None:
        own = _instruction_of(path, template)
        if not re.search(_ROLE.format("system"), template):
            return own  # the template ignores the saved prompt
    return _saved_prompt(folder) or own


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


def _instruction_of(path: Path, template: str) -> str:
    """Return the instruction of a template that writes the prompt of Qwen3-Reranker."""
    expected = rerank_frame(_SLOT, default=_SLOT)
    before, after = expected.before.split(_SLOT, 1)
    pattern = f"{re.escape(before)}([^\n]+){re.escape(after)}{_SLOT}{re.escape(expected.after)}"
    found = re.fullmatch(pattern, _literal(template))
    filters = {name for code in _CODE.findall(template) for name in _FILTER.findall(code)}
    if found is None or _ONLY_SETS.search(template) or not filters <= _KEEP_TEXT:
        raise ModelFileError(
            f"{path} writes another prompt for a query and a document than that of "
            f"Qwen3-Reranker, the only one that emberd can write, or has conditions, which emberd "
            f"does not evaluate"
        )
    if found[1] != _SLOT:
        if _SLOT in found[1]:
            raise ModelFileError(f"{path} puts more than a task into the instruction of the prompt")
        return found[1]
    defaults = {text[1:-1] for text in _DEFAULT.findall(template)}
    if len(defaults) > 1 or any("\\" in text for text in defaults):
        raise ModelFileError(f"{path} has no instruction that can be read as its default")
    return next(iter(defaults), WEB_TASK)


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
