"""The vectors of a model by plain Hugging Face transformers, to compare a server's with.

A separate program, run as a file by the interpreter of an engine, which has torch and
transformers but not emberd. It shares no code with the servers: tokenizer and weights are loaded by
transformers' ``Auto`` classes, each text goes through the model by itself, without padding or a
batch, and the states are pooled as the model's files say. The device is the processor.

Its input is one JSON object::

    {"folder": "/models/one", "pooling": "lasttoken", "texts": ["a", "b"], "most_tokens": 512,
     "template": "passage: {text}", "lengths": [64, 512]}

``lengths`` are numbers of tokens: for each, the longest ``{text}`` is made that has no more of them
in ``template``. Its output is one JSON object a line: ``{"doing": ...}`` while it works, and then
``{"error": ...}``, or ``{"long": [texts], "tokens": [...], "float32": [vectors], "bfloat16": ...}``
of all texts, those that were made last. The vector of a text is null if it has no token, or more
than ``most_tokens``.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

_FORMATS = ("float32", "bfloat16")
_TEXT = "{text}"
# Created at random when a checkpoint lacks it, and not used for a vector.
_UNUSED = ("pooler.",)
_SHOWN = 3


def main() -> int:
    """Answer the request on the standard input; return the exit code."""
    asked = json.load(sys.stdin)
    # Libraries print too.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(**content: Any) -> None:
        output.write(f"{json.dumps(content)}\n")
        output.flush()

    try:
        tell(**compute(asked, lambda doing: tell(doing=doing)))
    except Exception as error:  # noqa: BLE001 - every error becomes an answer
        text = str(error).strip().splitlines() or [""]
        tell(error=f"{type(error).__name__}: {text[0]}".rstrip(".: "))
        return 1
    return 0


def compute(asked: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Return the answer to a request; ``tell`` is called with what is being done."""
    tell("loading torch and transformers")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_float32_matmul_precision("highest")
    folder = asked["folder"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    long = [_long(tokenizer, asked["template"], length) for length in asked["lengths"]]
    made = [asked["template"].replace(_TEXT, text) for text in long]
    inputs = [tokenizer(text, return_tensors="pt") for text in (*asked["texts"], *made)]
    found: dict[str, Any] = {
        "long": long,
        "tokens": [each["input_ids"].shape[1] for each in inputs],
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    for name in _FORMATS:
        tell(f"loading the weights in {name}")
        model = _load(transformers, folder, getattr(torch, name))
        vectors = []
        for number, each in enumerate(inputs, 1):
            tell(f"{name}: text {number} of {len(inputs)}")
            fits = 0 < each["input_ids"].shape[1] <= asked["most_tokens"]
            vectors.append(_vector(torch, model, each, asked["pooling"]) if fits else None)
        found[name] = vectors
        del model  # or both would be in memory
    return found


def _load(transformers: Any, folder: str, dtype: Any) -> Any:
    model, report = transformers.AutoModel.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
    )
    # transformers replaces missing weights by random numbers, and only logs a warning.
    names = [*report.get("missing_keys", ()), *report.get("mismatched_keys", ())]
    if wrong := sorted(name for name in map(str, names) if not name.startswith(_UNUSED)):
        raise ValueError(f"the weights lack {', '.join(wrong[:_SHOWN])} ({len(wrong)} in all)")
    return model.eval()


def _vector(torch: Any, model: Any, inputs: Any, pooling: str) -> list[float]:
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state[0].float()
        pooled = {
            "lasttoken": lambda: states[-1],
            "cls": lambda: states[0],
            "mean": lambda: states.mean(0),
        }[pooling]()
        vector: list[float] = (pooled / pooled.norm()).tolist()
    return vector


def _long(tokenizer: Any, template: str, tokens: int) -> str:
    """Return a text of at most, and nearly, ``tokens`` tokens in ``template``."""
    sentences = (f"Sentence number {i} says that {i} is not {i + 1}." for i in range(tokens))
    words = " ".join(sentences).split()
    low, high = 1, len(words)
    while low < high:  # the longest that fits
        middle = (low + high + 1) // 2
        text = template.replace(_TEXT, " ".join(words[:middle]))
        if len(tokenizer(text)["input_ids"]) <= tokens:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])


if __name__ == "__main__":
    sys.exit(main())
