"""Loading a Qwen3-Embedding checkpoint: its files, tokenizer, weights and attention.

The folder of the model is one on this machine, or is downloaded from the Hugging Face hub. Its
kind, tokenizer and weights are checked before anything is embedded.

Texts go through the model without padding. The tokens of a batch form one row; each token has its
position in its own text, and attention is computed text by text. All other layers see as many rows
as there are tokens: nothing is computed for padding, and the vector of a text hardly depends on
the other texts. Measured on a CPU in bfloat16, 40 texts of 8 to 400 tokens: 4,130 tokens/s (padded
on the left, with a mask: 3,260 in batches of similar length, 1,030 in batches of 32), and a cosine
of 1.000000 with each text encoded alone (0.9999 with padding).
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final

from emberd import model_card, model_files
from emberd.errors import StartError
from emberd.serving import hardware
from emberd.serving.encoder import LoadOptions
from emberd.serving.hardware import DeviceChoice
from emberd.serving.telemetry import log_progress

_log = logging.getLogger("emberd.serving")


# ---------------------------------------------------------------- the folder of a model

_FILES: Final = ("*.json", "*.safetensors", "*.txt")
_CHATTY: Final = ("filelock", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub")
_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
_ELSEWHERE: Final = "download it elsewhere with `hf download {model}` and give the folder as model="


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
    hub: Any = importlib.import_module("huggingface_hub")
    importlib.import_module("huggingface_hub.errors")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    hub.utils.disable_progress_bars()
    cached = Path(hub.constants.HF_HUB_CACHE) / f"models--{options.model.replace('/', '--')}"
    try:
        with log_progress("downloading", lambda: _bytes_in(cached / "blobs"), None):
            return Path(
                hub.snapshot_download(
                    options.model, revision=options.revision, allow_patterns=list(_FILES)
                )
            )
    except Exception as error:
        raise _explain_download(hub, options, error) from error


def _bytes_in(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.is_file())
    except OSError:
        return 0


def _explain_download(hub: Any, options: LoadOptions, error: Exception) -> StartError:
    model = options.model
    for kinds, explain in _CAUSES.items():
        if isinstance(error, tuple(getattr(hub.errors, kind) for kind in kinds)):
            cause, advice = explain(options)
            return StartError(cause, advice=advice)
    if _is_disk_full(error):
        return StartError(
            f"the disk is full: there is no space for {model} in {hub.constants.HF_HUB_CACHE}",
            advice="Free some space there, or set HF_HOME to a folder on another disk.",
        )
    if isinstance(error, hub.errors.LocalEntryNotFoundError) and hub.constants.HF_HUB_OFFLINE:
        return StartError(
            f"{model} is not in the hub's cache on this machine, and HF_HUB_OFFLINE forbids a "
            f"download",
            advice=f"Unset HF_HUB_OFFLINE, or {_ELSEWHERE.format(model=model)}.",
        )
    responses = [found.response for found in _chain(error) if hasattr(found, "response")]
    if responses:
        return StartError(
            f"the hub refused the download of {model} with status {responses[0].status_code}",
            advice="Try again later; `hf auth login` raises the limit of requests.",
        )
    return StartError(
        f"the hub could not be reached, and {model} is not in its cache on this machine "
        f"({type(error).__name__})",
        advice=f"Check the network (HTTPS_PROXY, HF_ENDPOINT), or {_ELSEWHERE.format(model=model)}",
    )


def _is_disk_full(error: BaseException) -> bool:
    return any(
        isinstance(found, OSError) and found.errno == errno.ENOSPC for found in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# In this order: GatedRepoError is a RepositoryNotFoundError.
_CAUSES: Final[dict[tuple[str, ...], Callable[[LoadOptions], tuple[str, str]]]] = {
    ("GatedRepoError",): lambda options: (
        f"{options.model} is gated, and this account has no access to it",
        f"Request access on the model's page, then {_LOG_IN}.",
    ),
    ("RevisionNotFoundError",): lambda options: (
        f"{options.model} has no revision {options.revision} on the hub",
        "Set revision= to a commit, branch or tag from the model's page, or leave it out.",
    ),
    ("RepositoryNotFoundError", "HFValidationError"): lambda options: (
        f"{options.model} is neither a folder here nor a model on the hub that you can access",
        f"Check the name, which has the form owner/name; if it is private, {_LOG_IN}.",
    ),
}


# ---------------------------------------------------------------- tokenizer and weights

ARCHITECTURES: Final = ("Qwen3ForCausalLM", "Qwen3Model")
"""Supported architectures: causal, full attention, last-token pooling."""

_RSS_BYTES: Final = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
_MEMORY_FACTOR: Final = 1.05  # the weights, activations and torch itself
_GIB: Final = 1024**3
_WORD: Final = "ready"
_HEAD: Final = "lm_head."

_COPY_AGAIN: Final = (
    "Compare its files with the original and copy it again; for a model of the hub, remove it from "
    "the cache (`hf cache rm`) and start again."
)
_OTHER_MODEL: Final = "Use a Qwen3-Embedding checkpoint, such as Qwen/Qwen3-Embedding-0.6B."


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to embed.

    Attributes:
        model: The torch module.
        tokenizer: A tokenizer of the tokenizers library; thread-safe.
        dimensions: Length of a native vector.
        context_tokens: Longest text that the model's configuration allows.
        vocabulary: Number of token ids.
    """

    model: Any
    tokenizer: Any
    dimensions: int
    context_tokens: int
    vocabulary: int


def load(folder: Path, choice: DeviceChoice, end_of_text_id: int | None) -> LoadedModel:
    """Load a checkpoint.

    Args:
        folder: Its files.
        choice: The device and number format to run it with.
        end_of_text_id: The token that must end each text; None if only the tokenizer knows it.

    Raises:
        StartError: The model is of an unsupported kind, is damaged, or does not fit.
    """
    config = model_files.read_json(folder / model_files.CONFIG)
    _check_kind(folder, config)
    size = _weights_bytes(folder, choice.dtype)
    need = round(size * _MEMORY_FACTOR)
    if choice.free_bytes is not None and choice.free_bytes < need:
        raise StartError(
            f"the weights of {folder} take {size / _GIB:.1f} GiB in {choice.dtype}, but only "
            f"{choice.free_bytes / _GIB:.1f} GiB is free on the {choice.device}",
            advice=hardware.LESS_MEMORY,
        )
    _log.info("loading the tokenizer")
    tokenizer = _tokenizer(folder, end_of_text_id)
    return LoadedModel(
        model=_model(folder, choice, size),
        tokenizer=tokenizer,
        dimensions=int(config["hidden_size"]),
        context_tokens=int(config["max_position_embeddings"]),
        vocabulary=int(config["vocab_size"]),
    )


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    if not config:
        raise StartError(f"{folder} has no readable {model_files.CONFIG}", advice=_COPY_AGAIN)
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise StartError(
            f"the architecture of {folder} is {architecture}, and this engine supports only "
            f"{' and '.join(ARCHITECTURES)}",
            advice=_OTHER_MODEL,
        )
    if config.get("use_sliding_window"):
        raise StartError(
            f"{folder} uses sliding-window attention, which this engine does not support",
            advice=_OTHER_MODEL,
        )
    # Checked before the start as well, but the files of a hub model may be known only here.
    problem = model_card.why_unsupported(folder)
    if problem is not None:
        raise StartError(problem.cause, advice=problem.advice)


def _weights_bytes(folder: Path, dtype: str) -> int:
    """Return the size of the weights in ``dtype``, from the headers of their files."""
    files = sorted(folder.glob(model_files.SAFETENSORS))
    if not files:
        raise StartError(f"{folder} has no weights ({model_files.SAFETENSORS})", advice=_COPY_AGAIN)
    return sum(_numbers(path) for path in files) * hardware.ITEM_BYTES[dtype]


def _numbers(path: Path) -> int:
    """Return how many numbers a file of weights has, without the head of a language model."""
    try:
        header = model_files.read_safetensors_header(path)
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise StartError(
            f"the weights in {path} are damaged: they have no readable header", advice=_COPY_AGAIN
        ) from error
    if size < header.file_bytes:
        raise StartError(
            f"the weights in {path} are incomplete: {size} of {header.file_bytes} bytes",
            advice=_COPY_AGAIN,
        )
    return sum(count for name, count in header.elements.items() if _HEAD not in name)


def _tokenizer(folder: Path, end_of_text_id: int | None) -> Any:
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
    empty, word = tokenizer.encode("").ids, tokenizer.encode(_WORD).ids
    expected = empty[-1:] if end_of_text_id is None else [end_of_text_id]
    if len(empty) != 1 or empty != expected or word[-1:] != expected:
        raise StartError(
            f"the tokenizer in {folder} is out of date: it does not end each text with the "
            f"end-of-text token, from which the vector is read",
            advice="Download tokenizer.json and tokenizer_config.json again; Qwen's files since "
            "June 2025 add the token. A model that was not made for embeddings has no such "
            "tokenizer.",
        )
    return tokenizer


def _model(folder: Path, choice: DeviceChoice, size: int) -> Any:
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
            model, report = transformers.AutoModel.from_pretrained(
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
    if _is_disk_full(error):
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
_TOKENS: Final = 2  # tensors are (batch, heads, tokens, numbers of a head)
_HEADS: Final = 1


def last_states(torch: Any, model: Any, texts: Sequence[Sequence[int]]) -> Any:
    """Return the last token's state of each text: a tensor of shape (texts, dimensions).

    Args:
        torch: The module.
        model: A model that ``load`` returned.
        texts: Token ids; none is empty.
    """
    ends = list(accumulate(len(text) for text in texts))
    spans = list(pairwise([0, *ends]))
    device = model.device
    ids = torch.tensor([[token for text in texts for token in text]], device=device)
    positions = torch.cat([torch.arange(len(text)) for text in texts]).unsqueeze(0).to(device)
    states = model(
        input_ids=ids, position_ids=positions, use_cache=False, **{_SPANS: spans}
    ).last_hidden_state[0]
    return states[torch.tensor(ends, device=device) - 1]


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
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            *(tensor.narrow(_TOKENS, start, stop - start) for tensor in (query, key, value)),
            is_causal=True,
            scale=scaling,
            enable_gqa=shares_heads,
        )
        for start, stop in given[_SPANS]
    ]
    return torch.cat(parts, _TOKENS).transpose(_HEADS, _TOKENS), None
