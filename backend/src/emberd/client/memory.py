"""What a client asks for vectors before it asks a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from emberd.client.vectors import Floats


class Memory(Protocol):
    """Native vectors of texts that were embedded before; used by threads at once."""

    def recall(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.bool_], Floats]:
        """Return which of ``texts``, in their templates, are known, and the vectors of those.

        Returns:
            A mask, ``(len(texts),)``, and one row for each that is true in it, in order.
        """

    def keep(self, texts: Sequence[str], vectors: Floats) -> None:
        """Keep native vectors, ``(len(texts), native)``."""
