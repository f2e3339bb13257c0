"""The serving process with an encoder that never finishes loading, fails to load, or is slow."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emberd.errors import StartError
from emberd.serving import __main__ as process
from emberd.serving.encoder import PreparedText
from fake_encoder import FakeEncoder

BATCH_S = 0.7


class SlowEncoder(FakeEncoder):
    """An encoder that takes the same time for a batch on every machine, and no CPU time."""

    context_tokens = 512
    batch_texts = 8
    batch_tokens = 1024

    def encode(self, batch: Sequence[PreparedText]) -> NDArray[np.float32]:
        """Return unit vectors after a delay."""
        time.sleep(BATCH_S)
        return super().encode(batch)


def main() -> int:
    """Serve; the first argument is the fault."""
    fault = sys.argv.pop(1)
    fake = SlowEncoder() if fault == "slow" else FakeEncoder()
    if fault == "hangs":
        fake.loaded.clear()
    elif fault == "fails":
        fake.load_error = StartError("the weights are not there", advice="Fetch them.")
    process.create_encoder = lambda *_: fake
    return process.main()


if __name__ == "__main__":
    sys.exit(main())
