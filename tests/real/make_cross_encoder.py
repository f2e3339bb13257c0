"""Makes a tiny cross-encoder; run by an engine's interpreter: ``make_cross_encoder.py FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

SEED = 20_261_122
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def main(folder: Path) -> None:
    """Write a BERT with one number a text, random weights, and letters for tokens."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    words = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(words))
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    torch.manual_seed(SEED)
    shape = BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        num_labels=1,
    )
    BertForSequenceClassification(shape).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    # SGLang 0.5.23 reads it; Transformers 5 no longer writes it.
    config["position_embedding_type"] = "absolute"
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
