"""Qwen's real tokenizer, from the table of the PyPI package ``dashscope``; imported beside the
scripts of an engine's interpreter.

The table has the merges of all Qwen models; pattern and special tokens are those of Qwen3.
"""

from __future__ import annotations

import base64
import json
import unicodedata
from pathlib import Path
from typing import Any

import make_tiny as tiny  # type: ignore[import-not-found]  # beside this script

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_table(table: Path) -> dict[bytes, int]:
    """Return the rank of each token; its rank is its id."""
    lines = (line.split() for line in table.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def make(folder: Path, table: Path, special: list[tuple[str, int]]) -> None:
    """Write a tiny checkpoint with this tokenizer to ``folder``."""
    tiny.write_checkpoint(folder, _tokenizer(read_table(table), special), 2, 128)
    # A class that Transformers 4 has too, which infinity uses.
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    tiny.write(file, {**settings, "tokenizer_class": "PreTrainedTokenizerFast"})


def counts(table: Path, special: list[tuple[str, int]], texts: list[str]) -> list[int]:
    """Return how many tokens each of ``texts`` has, its end of text included, by tiktoken."""
    import tiktoken

    by_name = dict(special)
    encoding = tiktoken.Encoding(
        "qwen", pat_str=PATTERN, mergeable_ranks=read_table(table), special_tokens=by_name
    )
    normal = (unicodedata.normalize("NFC", text) for text in texts)
    return [len(encoding.encode(text, allowed_special="all")) + 1 for text in normal]


def _tokenizer(ranks: dict[bytes, int], special: list[tuple[str, int]]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    shown = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in ranks.items():
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], shown[left], shown[right]))
    vocabulary = {shown[token]: rank for token, rank in ranks.items()}
    bare = Tokenizer(models.BPE(vocabulary, [merge[3:] for merge in sorted(merges)]))
    bare.normalizer = normalizers.NFC()
    bare.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bare.add_tokens([AddedToken(token, normalized=False, special=False) for token, _ in special])
    end = (tiny.END_OF_TEXT, dict(special)[tiny.END_OF_TEXT])
    bare.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    assert {token: bare.token_to_id(token) for token, _ in special} == dict(special)
    return tiny.wrapped(bare)
