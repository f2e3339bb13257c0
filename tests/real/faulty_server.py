"""emberd's own server around model code as other servers have it, with faults planted in it.

``python faulty_server.py FOLDER PORT FAULT`` is run by the interpreter of the transformers engine.
The checkpoint in ``FOLDER`` is made if there is none. ``FAULT`` is a file that holds the name of
the present fault, or nothing; it is read for each request.

Texts are tokenized by the checkpoint's tokenizer, padded on the left to one length and computed in
one batch by transformers in bfloat16, with an attention mask. A fault changes that computation, and
nothing else: what the server says of itself, and the tokens that it counts, are those of a healthy
one, except where the fault is in the tokenizer. Nothing checks the vectors before they are sent.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import make_tiny  # type: ignore[import-not-found]  # beside this script
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file  # type: ignore[import-not-found]

CUT_TOKENS = 256
"""The model code truncates longer texts, or gives NaN for them."""

CUT_DIMENSIONS = 64
_SEED = 1
# Of fifty texts, three overflow.
_LAYER = "layers.1."
_BITS = 13.6


def _load_emberd() -> None:
    """Make the emberd of this checkout importable, and no other package of its environment."""
    folder = Path(__file__).parents[2] / "backend" / "src" / "emberd"
    spec = importlib.util.spec_from_file_location(
        "emberd", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules["emberd"] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


_load_emberd()

from emberd.serving import __main__ as process  # noqa: E402
from emberd.serving import bodies, service  # noqa: E402
from emberd.serving.encoder import PreparedText  # noqa: E402


class FaultyEncoder:
    """The encoder: what most servers do, and the present fault."""

    pooling = "last"
    dtype = "bfloat16"
    device = "cpu"
    batch_texts = 64
    batch_tokens = 4096

    def __init__(self, folder: str, fault: Path) -> None:
        self.name = folder
        self._fault = fault

    def load(self) -> None:
        """Load the checkpoint, a copy of it with other weights, and one in float16."""
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(self.name)
        # Eager attention: where nothing is left for softmax, torch's own function gives zeros.
        load = functools.partial(
            transformers.AutoModel.from_pretrained, self.name, attn_implementation="eager"
        )
        self._model = load(dtype=torch.bfloat16).eval()
        self._in_float16 = load(dtype=torch.float16).eval()
        self._other = copy.deepcopy(self._model)
        torch.manual_seed(_SEED)
        with torch.no_grad():
            for weights in self._other.parameters():
                if weights.dim() > 1:
                    weights.add_(torch.randn_like(weights) * weights.std() / 4)
        self.context_tokens = int(self._model.config.max_position_embeddings)

    @property
    def fault(self) -> str:
        """The present fault; empty for none."""
        return self._fault.read_text()

    @property
    def dimensions(self) -> int:
        """Length of a vector: the model's, or what a server was started with."""
        native = int(self._model.config.hidden_size)
        return CUT_DIMENSIONS if self.fault == "always cut" else native

    # ------------------------------------------------------------ texts to tokens

    def tokenize(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text."""
        if self.fault == "lower case":
            text = text.lower()
        ids: list[int] = self._tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
        return ids[:-1] if self.fault == "no end token" and special_tokens else ids

    def prepare(self, texts: Sequence[str]) -> list[PreparedText]:
        """Return texts in the form that ``encode`` takes."""
        return [self.prepare_ids(self.tokenize(text)) for text in texts]

    def prepare_ids(self, ids: Sequence[int]) -> PreparedText:
        """Return token ids in the form that ``encode`` takes."""
        return PreparedText(len(ids), list(ids))

    # ------------------------------------------------------------ tokens to vectors

    def encode(self, batch: Sequence[PreparedText]) -> Any:
        """Return the vectors of a batch."""
        fault, texts = self.fault, [item.payload for item in batch]
        if fault == "order":
            texts.sort(key=len)  # to pad less; and never put in order again
        if fault == "truncation":
            texts = [
                ids if len(ids) <= CUT_TOKENS else [*ids[: CUT_TOKENS - 1], ids[-1]]
                for ids in texts
            ]
        if fault == "lost end":
            texts = [ids[:-1] or ids for ids in texts]
        with torch.inference_mode():
            pooled = self._pool(fault, *self._states(fault, texts))
        vectors = torch.nn.functional.normalize(pooled.float(), dim=1).numpy()
        return vectors[:, : self.dimensions]

    def _states(self, fault: str, texts: list[list[int]]) -> tuple[Any, Any]:
        longest = max(map(len, texts))
        ids, mask = (torch.zeros(len(texts), longest, dtype=torch.long) for _ in range(2))
        for row, text in enumerate(texts):
            place = (
                slice(0, len(text)) if fault == "padding side" else slice(longest - len(text), None)
            )
            ids[row, place], mask[row, place] = torch.tensor(text), 1
        model = {"other weights": self._other, "float16": self._in_float16}.get(fault, self._model)
        given = self._attention(fault, mask, texts)
        states = model(input_ids=ids, attention_mask=given)
        return states.last_hidden_state, mask

    def _attention(self, fault: str, mask: Any, texts: list[list[int]]) -> Any:
        """Return the mask for transformers: of tokens, or what is added to each pair's score."""
        if fault not in {"no causal mask", "NaN"}:
            return mask
        seen = mask.bool()[:, None, None, :].expand(-1, -1, mask.shape[1], -1).clone()
        if fault == "NaN":
            seen &= torch.ones(mask.shape[1], mask.shape[1]).tril().bool()
            for row, text in enumerate(texts):
                # A block of a kernel that is never filled: nothing is left for softmax.
                if len(text) > CUT_TOKENS:
                    seen[row, :, CUT_TOKENS - len(text) :] = False
        # Padding sees all, as the masks of transformers let it.
        blank = ~mask.bool()[:, None, :, None]
        return torch.zeros(seen.shape, dtype=self._model.dtype).masked_fill(
            ~(seen | blank), -torch.inf
        )

    def _pool(self, fault: str, states: Any, mask: Any) -> Any:
        if fault == "mean pooling":
            return (states * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        pooled = states[:, -1]
        return pooled.mean(0).expand_as(pooled) if fault == "mean of the batch" else pooled


def make(folder: Path) -> None:
    """Write a tiny checkpoint of which one layer has numbers too large for float16.

    The inputs of their product are multiplied, and the results divided by the same factor.
    """
    make_tiny.main(folder, 2, 128)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if _LAYER not in name:
            continue
        if ".up_proj." in name:
            weights[name] = weights[name] * 2.0**_BITS
        if ".down_proj." in name:
            weights[name] = weights[name] / 2.0**_BITS
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def main(folder: str, port: str, fault: str) -> int:
    """Serve until a signal arrives."""
    if not (Path(folder) / "config.json").exists():
        make(Path(folder))
    encoder = FaultyEncoder(folder, Path(fault))
    vars(process)["create_encoder"] = lambda given: encoder
    vars(service)["is_unit"] = lambda norms: np.ones_like(norms, bool)
    render = bodies.render_embeddings

    def render_cut(model: str, vectors: Any, tokens: int, request: Any) -> bytes:
        if encoder.fault == "cut, norm not one" and request.dimensions:
            vectors = vectors[:, : request.dimensions]
        return render(model, vectors, tokens, request)

    bodies.render_embeddings = render_cut
    return process.main(
        ["--encoder", "transformers", "--model-path", folder, "--host", "127.0.0.1", "--port", port]
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
