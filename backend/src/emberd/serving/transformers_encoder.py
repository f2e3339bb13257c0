"""The encoder of Qwen3-Embedding checkpoints: Hugging Face transformers, last-token pooling.

The vectors are the reference's: tokenizer, weights and layers are transformers' own, the state of
the last token is taken and brought to norm one in float32. Only the way in which texts travel
together is ours (``packing``).
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
from emberd.serving import devices, hub, loading, packing, processor
from emberd.serving.devices import CPU, Place
from emberd.serving.encoder import Checkpoint, Prepared
from emberd.serving.loading import Loaded

_CONTEXT_TOKENS: Final = 32_768  # as Qwen3-Embedding's model card has it, whatever else is allowed

# A batch is what a short request waits for behind a long one. Measured in bfloat16 on one core, two
# layers of 1024: 3,570 tokens/s text by text, 3,870 at 512 tokens a batch, 4,130 at 2,048.
_CPU_BATCH_TEXTS: Final = 64
_CPU_BATCH_TOKENS: Final = 1024
_GPU_BATCH_TEXTS: Final = 256
_GPU_BATCH_TOKENS: Final = 16_384

_INSTALL: Final = "emberd engine install transformers"

_log = logging.getLogger("emberd.serving")


class TransformersEncoder:
    """A Qwen3-Embedding checkpoint on a CPU, a CUDA GPU or Apple's GPU.

    What only the files and the machine can tell holds after ``load``: dimensions, device, dtype.
    """

    pooling = "last"

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Remember what to load.

        Args:
            checkpoint: The model, and how it is to be run.
        """
        known = model_card.describe(checkpoint.model)
        self.name = checkpoint.model
        self.matryoshka = known.matryoshka
        self.dimensions = known.dimensions or 0
        self.context_tokens = _CONTEXT_TOKENS
        self.device = checkpoint.device or CPU
        self.dtype = checkpoint.dtype or devices.BFLOAT16
        self.batch_texts, self.batch_tokens = _CPU_BATCH_TEXTS, _CPU_BATCH_TOKENS
        self._checkpoint = checkpoint
        self._torch: Any = None
        self._loaded: Loaded | None = None

    def load(self) -> None:
        """Find, check and load the checkpoint.

        Raises:
            StartError: It cannot be; the text says why and what to do.
        """
        self._torch = _import_torch()
        folder = hub.folder_of(self._checkpoint)
        place = devices.choose(self._torch, self._checkpoint.device, self._checkpoint.dtype)
        _log.info("device %s, %s: %s", place.device, place.dtype, place.why)
        loaded = loading.load(folder, place, model_card.describe(self.name).end_of_text_id)
        self._settle(place, loaded)
        self._loaded = loaded

    def prepare(self, texts: Sequence[str]) -> list[Prepared]:
        """Return the token ids of ``texts``, the end-of-text token behind each."""
        found = self._get().tokenizer.encode_batch(list(texts))
        return [Prepared(len(each.ids), each.ids) for each in found]

    def encode(self, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        """Return vectors of shape (len(batch), dimensions), norm one.

        Raises:
            BadReplyError: Memory does not suffice for one text alone.
        """
        try:
            return self._encode([item.payload for item in batch])
        except Exception as error:
            if not devices.is_out_of_memory(error):
                raise
            longest = max(item.tokens for item in batch)
        # Behind the "except", so that the failed attempt holds no memory any more.
        if self.device == devices.CUDA:
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

    def prepare_ids(self, ids: Sequence[int]) -> Prepared:
        """Return token ids in the form that ``encode`` takes.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        vocabulary = self._get().vocabulary
        for token in ids:
            if not 0 <= token < vocabulary:
                raise ValueError(f"Token ID {token} is not in the vocabulary")
        return Prepared(len(ids), list(ids))

    def _settle(self, place: Place, loaded: Loaded) -> None:
        limit, wanted = loaded.context_tokens, self._checkpoint.context_tokens
        if wanted is not None and wanted > limit:
            raise StartError(
                f"texts of {wanted} tokens were asked for, and {self.name} takes {limit}",
                advice="Ask for no more than that, or split longer texts.",
            )
        # A text must have fewer tokens than this, as with SGLang: one more, so that one fits.
        self.context_tokens = min(limit, wanted + 1 if wanted else _CONTEXT_TOKENS)
        self.dimensions = loaded.dimensions
        self.device, self.dtype = place.device, place.dtype
        if place.device != CPU:
            self.batch_texts, self.batch_tokens = _GPU_BATCH_TEXTS, _GPU_BATCH_TOKENS

    def _encode(self, texts: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        torch = self._torch
        with torch.inference_mode():
            states = packing.last_states(torch, self._get().model, texts)
            unit = torch.nn.functional.normalize(states.float(), dim=1)
            vectors: NDArray[np.float32] = unit.cpu().numpy()
        return vectors

    def _get(self) -> Loaded:
        if self._loaded is None:
            raise StartError("the model is not loaded", advice="Call load() first.")
        return self._loaded


def _import_torch() -> Any:
    processor.set_threads()
    _log.info("loading torch and transformers")
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("transformers")
    except (ImportError, MemoryError) as error:
        if devices.is_out_of_memory(error):
            raise StartError(
                "memory ran out while torch was loaded", advice=devices.LESS_MEMORY
            ) from error
        raise StartError(
            f"torch or transformers cannot be imported ({error})", advice=f"Run: {_INSTALL}"
        ) from error
    return torch
