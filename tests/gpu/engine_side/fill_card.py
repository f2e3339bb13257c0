"""Holds nearly all memory of a GPU until its input ends; run by an engine's Python.

``python fill_card.py LEAVE_BYTES`` prints ``{"free": bytes, "total": bytes}`` once hardly more than
that is free on the first visible GPU.
"""

from __future__ import annotations

import json
import sys

BLOCK_BYTES = 64 << 20
MOST_BYTES = 4 << 30


def main(leave_bytes: int) -> None:
    """Fill the card, say so, and wait."""
    import torch

    held = []
    while (room := torch.cuda.mem_get_info()[0] - leave_bytes) > BLOCK_BYTES:
        held.append(torch.empty(min(room, MOST_BYTES), dtype=torch.uint8, device="cuda"))
    free, total = torch.cuda.mem_get_info()
    print(json.dumps({"free": free, "total": total}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(int(sys.argv[1]))
