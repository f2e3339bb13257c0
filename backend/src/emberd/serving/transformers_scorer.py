"""The scorer of Qwen3-Reranker checkpoints: the encoder's states, and the language-model head.

A row is the probability of each label among the labels, for the token after the prompt. Only the
rows of the head that belong to the labels are computed, in float32. On a CPU, the beginning that
all prompts of a batch have in common, instruction and query, is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from emberd.serving import hardware
from emberd.serving.encoder import LoadOptions, PreparedText
from emberd.serving.hardware import DeviceChoice
from emberd.serving.transformers_encoder import TransformersEncoder, last_states, load_checkpoint

_LABELS: Final = 2
_PROBE: Final = (0, 1)  # of health probes, whose answer does not matter


class TransformersScorer(TransformersEncoder):
    """A Qwen3-Reranker checkpoint on a CPU, a CUDA GPU or Apple's GPU."""

    pooling = "none"

    def __init__(self, options: LoadOptions) -> None:
        super().__init__(options)
        self.dimensions = _LABELS

    def prepare(self, texts: Sequence[str]) -> list[PreparedText]:
        """Return the token ids of ``texts``, as the tokenizer makes them."""
        return [self._labelled(item) for item in super().prepare(texts)]

    def prepare_ids(self, ids: Sequence[int]) -> PreparedText:
        """Return token ids in the form that ``encode`` takes; raises as ``TransformersEncoder``."""
        return self._labelled(super().prepare_ids(ids))

    def with_labels(self, item: PreparedText, labels: Sequence[int]) -> PreparedText:
        """Return a prompt whose next token is compared among ``labels``.

        Raises:
            ValueError: A label is not in the vocabulary.
        """
        for token in labels:
            if not 0 <= token < self._vocabulary:
                raise ValueError(f"Token ID {token} is out of vocabulary")
        ids, _ = item.payload
        return replace(item, payload=(ids, tuple(labels)))

    def _labelled(self, item: PreparedText) -> PreparedText:
        return replace(item, payload=(item.payload, _PROBE))

    def _load(self, folder: Path, choice: DeviceChoice) -> tuple[dict[str, Any], Any, Any]:
        return load_checkpoint(folder, choice, with_head=True)

    def _width(self, config: dict[str, Any]) -> int:  # noqa: ARG002 - of vectors
        return _LABELS

    def _encode(self, texts: Sequence[Any]) -> NDArray[np.float32]:
        torch = self._torch
        with torch.inference_mode():
            # On a GPU a mask would rule out the kernel that does not store all scores of a text.
            states = last_states(
                torch,
                self._model.model,
                [ids for ids, _ in texts],
                shares_beginning=self.device == hardware.CPU,
            ).float()
            labels = torch.tensor([labels for _, labels in texts], device=states.device)
            head = self._model.lm_head.weight[labels].float()  # (prompts, labels, state)
            logits = torch.einsum("nd,nld->nl", states, head)
            rows: NDArray[np.float32] = logits.softmax(dim=1).cpu().numpy()
        return rows
