"""What sentence-transformers does with folders; run by an interpreter that has it.

``python sentence_decisions.py`` reads JSON from its input: a list of objects with ``folder``,
``text`` (or a list of texts) and, to save the model as the library does, ``save``: a folder and
``prompts``; ``dtype`` if it is not float32. It writes, as JSON, for each the version of the
library, the prompts that ``encode_query`` and ``encode_document`` apply, and their vectors as they
come; or the ``error``.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from typing import Any

library: Any = importlib.import_module("sentence_transformers")


def main(asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answer each question; what the library raises is an answer too."""
    return [_answer(**question) for question in asked]


def _answer(
    folder: str,
    text: str | list[str],
    save: str | None = None,
    prompts: dict[str, str] | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    load = functools.partial(
        library.SentenceTransformer, device="cpu", model_kwargs={"dtype": dtype}
    )
    try:
        model = load(folder, prompts=prompts)
        if save is not None:
            model.save(save, create_model_card=False)
            model = load(save)
        applied: list[str] = []
        _record(model, applied)
        roles = (model.encode_query, model.encode_document)
        vectors = [encode(text, convert_to_tensor=True).float().tolist() for encode in roles]
    except Exception as error:  # noqa: BLE001 - whatever the library raises is its answer
        return {"error": f"{type(error).__name__}: {error}"}
    return {"version": library.__version__, "prompts": applied, "vectors": vectors}


def _record(model: Any, applied: list[str]) -> None:
    """Have the prompts kept with which the texts of ``model`` are tokenised."""
    preprocess = model.preprocess

    def keep(inputs: Any, prompt: str | None = None, **given: Any) -> Any:
        applied.append(prompt or "")
        return preprocess(inputs, prompt=prompt, **given)

    model.preprocess = keep


if __name__ == "__main__":
    json.dump(main(json.load(sys.stdin)), sys.stdout)
