"""The encoder of Qwen3-Embedding checkpoints: Hugging Face transformers, last-token pooling.

The vectors are those of the reference: tokenizer, weights and layers are transformers' own, and the
state of the last token is normalised in float32. The folder of the model is one on this machine, or
is downloaded from the Hugging Face hub. Its kind, tokenizer and weights are checked before anything
is embedded.

Only the batching is ours. Texts go through the model without padding: the tokens of a batch form
one row, each token has its position in its own text, and attention is computed text by text. All
other layers see as many rows as there are tokens: nothing is computed for padding, and the vector
of a text hardly depends on the other texts. Measured on a CPU in bfloat16, 40 texts of 8 to 400
tokens: 4,130 tokens/s (padded on the left, with a mask: 3,260 in batches of similar length, 1,030
in batches of 32), and a cosine of 1.000000 with each text encoded alone (0.9999 with padding).
"""

from __future__ import annotations

import importlib
import logging
import os
import resource
import sys
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from emberd import hub_client, model_card, model_files, model_pooling
from emberd.errors import BadReplyError, StartError
from emberd.model_files import ModelFileError
from emberd.serving import hardware
from emberd.serving.encoder import LoadOptions, PreparedText
from emberd.serving.hardware import CPU, DeviceChoice
from emberd.serving.telemetry import log_progress
from emberd.system import os_errors

_log = logging.getLogger("emberd.serving")

_CONTEXT_TOKENS: Final = 32_768
"""The limit of Qwen3-Embedding's model card; the configuration allows more."""

# A short request waits for one batch behind a long one. Measured in bfloat16 on one core, two
# layers of 1024: 3,570 tokens/s text by text, 3,870 at 512 tokens a batch, 4,130 at 2,048.
_CPU_BATCH_TEXTS: Final = 64
_CPU_BATCH_TOKENS: Final = 1024
_GPU_BATCH_TEXTS: Final = 256
_GPU_BATCH_TOKENS: Final = 16_384

ARCHITECTURES: Final = ("Qwen3ForCausalLM", "Qwen3Model")
"""Supported architectures: causal, full attention, last-token pooling."""

_RSS_BYTES: Final = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
_MEMORY_FACTOR: Final = 1.05  # the weights, activations and torch itself
_GIB: Final = 1024**3
_WORD: Final = "ready"

_INSTALL: Final = "emberd engine install transformers"
_COPY_AGAIN: Final = (
    "Compare its files with the original and copy it again; for a model of the hub, remove it from "
    "the cache (`hf cache rm`) and start again."
)


class TransformersEncoder:
    """A Qwen3-Embedding checkpoint on a CPU, a CUDA GPU or Apple's GPU.

    Dimensions, device and dtype are final only after ``load``: they depend on the files and the
    machine.

    Args:
        options: The model, and how to run it.
    """

    pooling = "last"

    def __init__(self, options: LoadOptions) -> None:
        self.name = options.model
        self.dimensions = model_card.describe(options.model, options.revision).dimensions or 0
        self.context_tokens = _CONTEXT_TOKENS
        self.device = options.device or CPU
        self.dtype = options.dtype or hardware.BFLOAT16
        self.batch_texts, self.batch_tokens = _CPU_BATCH_TEXTS, _CPU_BATCH_TOKENS
        self._options = options
        self._torch: Any = None
        self._model: Any = None
        self._tokenizer: Any = None
        self._vocabulary = 0

    def load(self) -> None:
        """Find, check and load the checkpoint.

        Raises:
            StartError: It cannot be loaded; the message says why and what to do.
        """
        self._torch = _import_torch()
        folder = model_folder(self._options)
        choice = hardware.choose_device(self._torch, self._options.device, self._options.dtype)
        _log.info("device %s, %s: %s", choice.device, choice.dtype, choice.why)
        config, self._tokenizer, self._model = self._load(folder, choice)
        limit, wanted = int(config["max_position_embeddings"]), self._options.context_tokens
        if wanted is not None and wanted > limit:
            raise StartError(
                f"texts of {wanted} tokens were requested, but {self.name} takes at most {limit}",
                advice="Request a shorter limit, or split longer texts.",
            )
        # A text must have fewer tokens than this, as with SGLang; one more, so that a text of
        # exactly the requested length fits.
        self.context_tokens = min(limit, wanted + 1 if wanted else _CONTEXT_TOKENS)
        self.dimensions, self._vocabulary = self._width(config), int(config["vocab_size"])
        self.device, self.dtype = choice.device, choice.dtype
        if choice.device != CPU:
            self.batch_texts, self.batch_tokens = _GPU_BATCH_TEXTS, _GPU_BATCH_TOKENS

    def _load(self, folder: Path, choice: DeviceChoice) -> tuple[dict[str, Any], Any, Any]:
        end_of_text_id = model_card.describe(self.name, self._options.revision).end_of_text_id
        return load_checkpoint(folder, choice, end_of_text_id)

    def prepare(self, texts: Sequence[str]) -> list[PreparedText]:
        """Return the token ids of ``texts``, each with the end-of-text token at its end."""
        found = self._tokenizer.encode_batch(list(texts))
        return [PreparedText(len(each.ids), each.ids) for each in found]

    def encode(self, batch: Sequence[PreparedText]) -> NDArray[np.float32]:
        """Return unit vectors of shape (len(batch), dimensions).

        If there is not enough memory, the batch is split.

        Raises:
            BadReplyError: There is not enough memory for a single text.
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
                f"there is not enough memory on the {self.device} for a text of {longest} tokens."
            )
        middle = len(batch) // 2
        return np.concatenate([self.encode(batch[:middle]), self.encode(batch[middle:])])

    def tokenize(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Return the token ids of ``text``."""
        return list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def prepare_ids(self, ids: Sequence[int]) -> PreparedText:
        """Return token ids in the form that ``encode`` takes.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        for token in ids:
            if not 0 <= token < self._vocabulary:
                raise ValueError(f"Token ID {token} is not in the vocabulary")
        return PreparedText(len(ids), list(ids))

    def _width(self, config: dict[str, Any]) -> int:
        return int(config["hidden_size"])

    def _encode(self, texts: Sequence[Any]) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            states = last_states(self._torch, self._model, texts)
            unit = self._torch.nn.functional.normalize(states.float(), dim=1)
            vectors: NDArray[np.float32] = unit.cpu().numpy()
        return vectors


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


# ---------------------------------------------------------------- the folder of a model

_FILES: Final = ("*.json", "*.safetensors", "*.txt")


def model_folder(options: LoadOptions) -> Path:
    """Return the folder with the files of a model; those of the hub are downloaded.

    The hub's own variables ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_TOKEN`` apply.

    Raises:
        StartError: The folder or model does not exist, or the hub refused the download.
    """
    path = Path(os.path.expanduser(options.model))
    if path.is_dir():
        return path
    if model_files.is_path(options.model):
        raise StartError(
            f"there is no folder {options.model}",
            advice="Correct the path (model= or EMBERD_MODEL): the folder that holds config.json.",
        )
    model, revision = options.model, options.revision
    hub_client.quiet()
    blobs = model_files.hub_folder(model) / "blobs"
    try:
        with log_progress("downloading", lambda: _bytes_in(blobs), None):
            download = hub_client.load("snapshot_download")
            return Path(download(model, revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:
        cause, advice = hub_client.explain(error, model, revision)
        raise StartError(cause, advice=f"{advice}.") from error


def _bytes_in(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.is_file())
    except OSError:
        return 0


# ---------------------------------------------------------------- tokenizer and weights


def load_checkpoint(
    folder: Path,
    choice: DeviceChoice,
    end_of_text_id: int | None = None,
    *,
    with_head: bool = False,
) -> tuple[dict[str, Any], Any, Any]:
    """Check and load a checkpoint.

    Args:
        folder: Its files.
        choice: The device and number format to run it with.
        end_of_text_id: The token that must end each text; None if only the tokenizer knows it.
        with_head: Load a reranker with its language-model head, which needs no such token.

    Returns:
        Its configuration, its tokenizer (of the tokenizers library; thread-safe), and the torch
        module.

    Raises:
        StartError: The model is of an unsupported kind, is damaged, or does not fit.
    """
    config = model_files.read_json(folder / model_files.CONFIG)
    _check_kind(folder, config, pools=not with_head)
    try:
        size = model_files.count_weights(folder) * hardware.ITEM_BYTES[choice.dtype]
    except ModelFileError as error:
        raise StartError(error.cause, advice=_COPY_AGAIN) from error
    if choice.free_bytes is not None and choice.free_bytes < round(size * _MEMORY_FACTOR):
        raise StartError(
            f"the weights of {folder} take {size / _GIB:.1f} GiB in {choice.dtype}, but only "
            f"{choice.free_bytes / _GIB:.1f} GiB is free on the {choice.device}",
            advice=hardware.LESS_MEMORY,
        )
    _log.info("loading the tokenizer")
    tokenizer = read_tokenizer(folder)
    if not with_head:
        _check_end_of_text(folder, tokenizer, end_of_text_id)
    return config, tokenizer, _load_model(folder, choice, size, with_head=with_head)


def _check_kind(folder: Path, config: dict[str, Any], *, pools: bool) -> None:
    if not config:
        raise StartError(f"{folder} has no readable {model_files.CONFIG}", advice=_COPY_AGAIN)
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        family = "Qwen3-Embedding" if pools else "Qwen3-Reranker"
        raise StartError(
            f"the architecture of {folder} is {architecture}, but this engine supports only "
            f"{' and '.join(ARCHITECTURES)}",
            advice=f"Use a {family} checkpoint, such as Qwen/{family}-0.6B.",
        )
    # Checked before the start as well, but the files of a hub model may be known only here.
    problem = model_pooling.why_unsupported(folder) if pools else None
    if problem is not None:
        raise StartError(problem.cause, advice=problem.advice)


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a checkpoint, without truncation and padding.

    Raises:
        StartError: It cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        wrapped = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise StartError(
            f"the tokenizer in {folder} cannot be read ({_first_line(error)})", advice=_COPY_AGAIN
        ) from error
    tokenizer = getattr(wrapped, "backend_tokenizer", None)
    if tokenizer is None:
        raise StartError(f"{folder} has no tokenizer.json", advice=_COPY_AGAIN)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check_end_of_text(folder: Path, tokenizer: Any, end_of_text_id: int | None) -> None:
    empty, word = tokenizer.encode("").ids, tokenizer.encode(_WORD).ids
    expected = empty[-1:] if end_of_text_id is None else [end_of_text_id]
    if not expected or empty[-1:] != expected or word[-1:] != expected:
        raise StartError(
            f"the tokenizer in {folder} is out of date: it does not end each text with the "
            f"end-of-text token, from which the vector is read",
            advice="Download tokenizer.json and tokenizer_config.json again; Qwen's files since "
            "June 2025 add the token. A model that was not made for embeddings has no such "
            "tokenizer.",
        )


def _load_model(folder: Path, choice: DeviceChoice, size: int, *, with_head: bool) -> Any:
    import torch
    import transformers

    transformers.AttentionInterface.register(_ATTENTION, _attend)
    transformers.utils.logging.disable_progress_bar()

    def used_bytes() -> int:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_BYTES
        on_gpu = choice.device == hardware.CUDA
        return used + (int(torch.cuda.memory_allocated()) if on_gpu else 0)

    try:
        with log_progress("loading the weights", used_bytes, size):
            kind = transformers.AutoModelForCausalLM if with_head else transformers.AutoModel
            model, report = kind.from_pretrained(
                folder,
                dtype=getattr(torch, choice.dtype),
                attn_implementation=_ATTENTION,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            _check_report(folder, report)
            return model.eval().to(choice.device)
    except StartError:
        raise
    except Exception as error:
        raise _explain_load(folder, choice, error) from error


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    # transformers replaces missing weights by random numbers, and only logs a warning.
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(map(str, report.get(kind) or ()))
        if names:
            raise StartError(
                f"the weights in {folder} do not match its {model_files.CONFIG}: "
                f"{kind.replace('_', ' ')} {', '.join(names[:3])} ({len(names)} in all)",
                advice=_COPY_AGAIN,
            )


def _explain_load(folder: Path, choice: DeviceChoice, error: Exception) -> StartError:
    if hardware.is_out_of_memory(error):
        return StartError(
            f"out of memory on the {choice.device} while the weights of {folder} were loaded",
            advice=hardware.LESS_MEMORY,
        )
    if os_errors.is_disk_full(error):
        return StartError(
            f"a disk is full: there was no space for a file of {folder}",
            advice="`df -h` shows which; HF_HOME moves the hub's cache, TMPDIR temporary files.",
        )
    _log.error("the weights could not be loaded", exc_info=error)
    return StartError(
        f"the weights in {folder} cannot be read ({_first_line(error)})", advice=_COPY_AGAIN
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [""]
    # One sentence: the reader of the log takes what follows the first full stop for advice.
    return f"{type(error).__name__}: {text[0]}".rstrip(".: ").replace(". ", "; ")


# ---------------------------------------------------------------- attention without padding

_ATTENTION: Final = "emberd_packed"  # the name in transformers' registry
_SPANS: Final = "emberd_spans"
_SHARED: Final = "emberd_shared"
_TOKENS: Final = 2  # tensors are (batch, heads, tokens, numbers of a head)
_HEADS: Final = 1


def last_states(
    torch: Any, model: Any, texts: Sequence[Sequence[int]], *, shares_beginning: bool = False
) -> Any:
    """Return the last token's state of each text: a tensor of shape (texts, dimensions).

    Args:
        torch: The module.
        model: A model that ``load`` returned.
        texts: Token ids; none is empty.
        shares_beginning: Compute the beginning that all texts have in common once.
    """
    shared = _common_beginning(texts) if shares_beginning else 0
    rows = [text[shared:] for text in texts]
    if shared:
        rows = [texts[0][:shared], *rows]
    ends = list(accumulate(map(len, rows)))
    spans = list(pairwise([0, *ends]))
    device = model.device
    ids = torch.tensor([[token for row in rows for token in row]], device=device)
    # The beginning of a row starts at position 0, and every other row after it.
    first = [0 if shared and number == 0 else shared for number in range(len(rows))]
    places = [torch.arange(at, at + len(row)) for at, row in zip(first, rows, strict=True)]
    states = model(
        input_ids=ids,
        position_ids=torch.cat(places).unsqueeze(0).to(device),
        use_cache=False,
        **{_SPANS: spans, _SHARED: shared},
    ).last_hidden_state[0]
    return states[torch.tensor(ends[-len(texts) :], device=device) - 1]


def _common_beginning(texts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all texts have in common; each keeps a token that is its own."""
    if len(texts) == 1:
        return 0
    one, *_, other = sorted(map(tuple, texts))  # what these two have in common, all have
    most = min(map(len, texts)) - 1
    return next((at for at in range(most) if one[at] != other[at]), most)


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    _mask: Any,
    *,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Any, None]:
    """Compute causal attention within each text; the signature is that of transformers."""
    import torch

    shares_heads = query.device.type == hardware.CPU
    if not shares_heads:
        # Elsewhere shared heads may select a kernel that stores all scores of a long text.
        groups = module.num_key_value_groups
        key = key.repeat_interleave(groups, _HEADS)
        value = value.repeat_interleave(groups, _HEADS)
    shared = given[_SHARED]
    parts = []
    for start, stop in given[_SPANS]:
        own = [tensor.narrow(_TOKENS, start, stop - start) for tensor in (query, key, value)]
        mask = None
        if shared and start:  # each token sees the shared beginning and its own text so far
            seen = (tensor.narrow(_TOKENS, 0, shared) for tensor in (key, value))
            pairs = zip(seen, own[1:], strict=True)
            own[1:] = [torch.cat(pair, _TOKENS) for pair in pairs]
            size = (stop - start, shared + stop - start)
            mask = torch.ones(size, dtype=torch.bool, device=query.device).tril(shared)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                *own,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=shares_heads,
            )
        )
    return torch.cat(parts, _TOKENS).transpose(_HEADS, _TOKENS), None
