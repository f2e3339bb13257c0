"""The encoder of Qwen3-Embedding checkpoints: Hugging Face transformers, last-token pooling.

The vectors are those of the reference: tokenizer, weights and layers are transformers' own, and the
state of the last token is normalised in float32. Only the batching without padding is ours
(``loading.last_states``).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from emberd import model_card
from emberd.errors import BadReplyError, StartError
from emberd.serving import hardware, loading
from emberd.serving.encoder import LoadOptions, PreparedText
from emberd.serving.hardware import CPU
from emberd.serving.loading import LoadedModel

_CONTEXT_TOKENS: Final = 32_768
"""The limit of Qwen3-Embedding's model card; the configuration allows more."""

# A short request waits for one batch behind a long one. Measured in bfloat16 on one core, two
# layers of 1024: 3,570 tokens/s text by text, 3,870 at 512 tokens a batch, 4,130 at 2,048.
_CPU_BATCH_TEXTS: Final = 64
_CPU_BATCH_TOKENS: Final = 1024
_GPU_BATCH_TEXTS: Final = 256
_GPU_BATCH_TOKENS: Final = 16_384

_INSTALL: Final = "emberd engine install transformers"

_log = logging.getLogger("emberd.serving")


class TransformersEncoder:
    """A Qwen3-Embedding checkpoint on a CPU, a CUDA GPU or Apple's GPU.

    Dimensions, device and dtype are final only after ``load``: they depend on the files and the
    machine.

    Args:
        options: The model, and how to run it.
    """

    pooling = "last"

    def __init__(self, options: LoadOptions) -> None:
        known = model_card.describe(options.model)
        self.name = options.model
        self.matryoshka = known.matryoshka
        self.dimensions = known.dimensions or 0
        self.context_tokens = _CONTEXT_TOKENS
        self.device = options.device or CPU
        self.dtype = options.dtype or hardware.BFLOAT16
        self.batch_texts, self.batch_tokens = _CPU_BATCH_TEXTS, _CPU_BATCH_TOKENS
        self._options = options
        self._torch: Any = None
        self._loaded: LoadedModel | None = None

    def load(self) -> None:
        """Find, check and load the checkpoint.

        Raises:
            StartError: It cannot be loaded; the message says why and what to do.
        """
        self._torch = _import_torch()
        folder = loading.model_folder(self._options)
        choice = hardware.choose_device(self._torch, self._options.device, self._options.dtype)
        _log.info("device %s, %s: %s", choice.device, choice.dtype, choice.why)
        loaded = loading.load(folder, choice, model_card.describe(self.name).end_of_text_id)
        limit, wanted = loaded.context_tokens, self._options.context_tokens
        if wanted is not None and wanted > limit:
            raise StartError(
                f"texts of {wanted} tokens were requested, but {self.name} takes at most {limit}",
                advice="Request a shorter limit, or split longer texts.",
            )
        # A text must have fewer tokens than this, as with SGLang; one more, so that a text of
        # exactly the requested length fits.
        self.context_tokens = min(limit, wanted + 1 if wanted else _CONTEXT_TOKENS)
        self.dimensions = loaded.dimensions
        self.device, self.dtype = choice.device, choice.dtype
        if choice.device != CPU:
            self.batch_texts, self.batch_tokens = _GPU_BATCH_TEXTS, _GPU_BATCH_TOKENS
        self._loaded = loaded

    def prepare(self, texts: Sequence[str]) -> list[PreparedText]:
        """Return the token ids of ``texts``, each with the end-of-text token at its end."""
        found = self._get().tokenizer.encode_batch(list(texts))
        return [PreparedText(len(each.ids), each.ids) for each in found]

    def encode(self, batch: Sequence[PreparedText]) -> NDArray[np.float32]:
        """Return unit vectors of shape (len(batch), dimensions).

        If memory does not suffice, the batch is split.

        Raises:
            BadReplyError: Memory does not suffice for a single text.
        """
        try:
            return self._encode([item.payload for item in batch])
        except Exception as error:
            if not hardware.is_out_of_memory(error):
                raise
            longest = max(item.tokens for item in batch)
        # After the "except" block, so that the memory of the failed attempt is free.
        if self.device == hardware.CUDA:
            self._torch.cuda.empty_cache()
        if len(batch) == 1:
            raise BadReplyError(
                f"memory on the {self.device} does not suffice for a text of {longest} tokens."
            )
        middle = len(batch) // 2
        return np.concatenate([self.encode(batch[:middle]), self.encode(batch[middle:])])

    def tokenize(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the token ids of ``text``."""
        found = self._get().tokenizer.encode(text, add_special_tokens=special_tokens)
        return list(found.ids)

    def prepare_ids(self, ids: Sequence[int]) -> PreparedText:
        """Return token ids in the form that ``encode`` takes.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        vocabulary = self._get().vocabulary
        for token in ids:
            if not 0 <= token < vocabulary:
                raise ValueError(f"Token ID {token} is not in the vocabulary")
        return PreparedText(len(ids), list(ids))

    def _encode(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        torch = self._torch
        with torch.inference_mode():
            states = loading.last_states(torch, self._get().model, texts)
            unit = torch.nn.functional.normalize(states.float(), dim=1)
            vectors: NDArray[np.float32] = unit.cpu().numpy()
        return vectors

    def _get(self) -> LoadedModel:
        if self._loaded is None:
            raise StartError("the model is not loaded", advice="Call load() first.")
        return self._loaded


def _import_torch() -> Any:
    hardware.set_threads()
    _log.info("loading torch and transformers")
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("transformers")
    except (ImportError, MemoryError) as error:
        if hardware.is_out_of_memory(error):
            raise StartError(
                "out of memory while torch was loaded", advice=hardware.LESS_MEMORY
            ) from error
        raise StartError(
            f"torch or transformers cannot be imported ({error})", advice=f"Run: {_INSTALL}"
        ) from error
    return torch
