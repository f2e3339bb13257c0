"""The folder of a model: one on this machine, or the files of a model on the Hugging Face hub.

Texts of any length through a model in one go, without padding.

The texts stand behind each other in one row; each token knows its place in its own text, and
attention is computed text by text. All other layers see as many rows as there are tokens: nothing
is computed for padding, and a text's vector hardly depends on the texts beside it. Measured on a
CPU in bfloat16, 40 texts of 8 to 400 tokens: 4,130 tokens/s (padded on the left, with a mask:
3,260 in batches of like length, 1,030 in batches of 32), and a cosine of 1.000000 to each text
alone (0.9999 with padding).

Tokenizer and weights of a Qwen3-Embedding checkpoint, checked before anything is embedded.
"""

from __future__ import annotations

import errno
import importlib
import json
import logging
import math
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final

from emberd import checkpoints, pipeline
from emberd.errors import StartError
from emberd.serving import hardware
from emberd.serving.encoder import Checkpoint
from emberd.serving.hardware import Place
from emberd.serving.telemetry import telling

_FILES: Final = ("*.json", "*.safetensors", "*.txt")
_CHATTY: Final = ("filelock", "httpcore", "httpcore2", "httpx", "httpx2", "huggingface_hub")
_LOG_IN: Final = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
_ELSEWHERE: Final = "download it elsewhere with `hf download {model}` and give the folder as model="


def folder_of(checkpoint: Checkpoint) -> Path:
    """Return the folder that holds the files of a model; those of the hub are downloaded.

    ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_TOKEN`` are the hub's own and hold.

    Raises:
        StartError: There is no such folder or model, or the hub did not give it out.
    """
    path = Path(os.path.expanduser(checkpoint.model))
    if path.is_dir():
        return path
    if checkpoints.is_path(checkpoint.model):
        raise StartError(
            f"there is no folder {checkpoint.model}",
            advice="Correct the path (model= or EMBERD_MODEL): the folder that holds config.json.",
        )
    return _downloaded(checkpoint)


def _downloaded(checkpoint: Checkpoint) -> Path:
    hub: Any = importlib.import_module("huggingface_hub")
    importlib.import_module("huggingface_hub.errors")
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    hub.utils.disable_progress_bars()
    kept = Path(hub.constants.HF_HUB_CACHE) / f"models--{checkpoint.model.replace('/', '--')}"
    try:
        with telling("downloading", lambda: _bytes_in(kept / "blobs"), None):
            return Path(
                hub.snapshot_download(
                    checkpoint.model, revision=checkpoint.revision, allow_patterns=list(_FILES)
                )
            )
    except Exception as error:
        raise _explain_download(hub, checkpoint, error) from error


def _bytes_in(folder: Path) -> int:
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.is_file())
    except OSError:
        return 0


def _explain_download(hub: Any, checkpoint: Checkpoint, error: Exception) -> StartError:
    model = checkpoint.model
    for kinds, explain in _CAUSES.items():
        if isinstance(error, tuple(getattr(hub.errors, kind) for kind in kinds)):
            cause, advice = explain(checkpoint)
            return StartError(cause, advice=advice)
    if is_disk_full(error):
        return StartError(
            f"the disk is full: there is no room for {model} in {hub.constants.HF_HUB_CACHE}",
            advice="Free some space there, or let HF_HOME name a folder on another disk.",
        )
    if isinstance(error, hub.errors.LocalEntryNotFoundError) and hub.constants.HF_HUB_OFFLINE:
        return StartError(
            f"{model} is not in the hub's cache on this machine, and HF_HUB_OFFLINE forbids a "
            f"download",
            advice=f"Unset HF_HUB_OFFLINE, or {_ELSEWHERE.format(model=model)}.",
        )
    answers = [found.response for found in _chain(error) if hasattr(found, "response")]
    if answers:
        return StartError(
            f"the hub did not give out {model}: it answered {answers[0].status_code}",
            advice="Try again later; `hf auth login` raises the limit of requests.",
        )
    return StartError(
        f"the hub could not be reached, and {model} is not in its cache on this machine "
        f"({type(error).__name__})",
        advice=f"Check the network (HTTPS_PROXY, HF_ENDPOINT), or {_ELSEWHERE.format(model=model)}",
    )


def is_disk_full(error: BaseException) -> bool:
    """Return whether a disk was full: this error says so, or one that it came from."""
    return any(
        isinstance(found, OSError) and found.errno == errno.ENOSPC for found in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# In this order: what is gated counts as not found, too.
_CAUSES: Final[dict[tuple[str, ...], Callable[[Checkpoint], tuple[str, str]]]] = {
    ("GatedRepoError",): lambda wanted: (
        f"{wanted.model} is gated: the hub gives it only to those who were let in",
        f"Ask for access on the model's page, then {_LOG_IN}.",
    ),
    ("RevisionNotFoundError",): lambda wanted: (
        f"{wanted.model} has no revision {wanted.revision} on the hub",
        "Give revision= a commit, branch or tag from the model's page, or leave it out.",
    ),
    ("RepositoryNotFoundError", "HFValidationError"): lambda wanted: (
        f"{wanted.model} is neither a folder here nor a model on the hub that you may see",
        f"Check the name, which has the form owner/name; if it is private, {_LOG_IN}.",
    ),
}


ATTENTION: Final = "emberd_packed"
"""The name under which transformers finds the attention of this module."""

_SPANS: Final = "emberd_spans"
_CPU: Final = "cpu"
_TOKENS: Final = 2  # tensors are (batch, heads, tokens, numbers of a head)
_HEADS: Final = 1


def register(transformers: Any) -> None:
    """Tell transformers of ``ATTENTION``; a model must be loaded with it."""
    transformers.AttentionInterface.register(ATTENTION, _attend)


def last_states(torch: Any, model: Any, texts: Sequence[Sequence[int]]) -> Any:
    """Return the last token's state of each text: a tensor of shape (texts, dimensions).

    Args:
        torch: The module.
        model: One that was loaded with ``ATTENTION``.
        texts: Token ids; none is empty.
    """
    ends = list(accumulate(len(text) for text in texts))
    spans = list(pairwise([0, *ends]))
    device = model.device
    ids = torch.tensor([[token for text in texts for token in text]], device=device)
    places = torch.cat([torch.arange(len(text)) for text in texts]).unsqueeze(0).to(device)
    states = model(
        input_ids=ids, position_ids=places, use_cache=False, **{_SPANS: spans}
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
    """Attend as transformers' attention functions do, from each token to those before it."""
    import torch

    shares_heads = query.device.type == _CPU
    if not shares_heads:
        # Elsewhere shared heads may end in a kernel that writes out all scores of a long text.
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


ARCHITECTURES: Final = ("Qwen3ForCausalLM", "Qwen3Model")
"""What is served: causal, full attention, the last token's state is the vector."""

_WEIGHTS: Final = "*.safetensors"
_HEADER_BYTES: Final = 8  # a safetensors file opens with its header's length, little-endian
_MAX_HEADER_BYTES: Final = 100_000_000
_RSS_BYTES: Final = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
_ROOM: Final = 1.05  # activations and torch itself, beside the weights
_GIB: Final = 1024**3
_WORD: Final = "ready"
_HEAD: Final = "lm_head."

_COPY_AGAIN: Final = (
    "Compare its files with the original and copy it again; for a model of the hub, remove it from "
    "the cache (`hf cache rm`) and start again."
)
_OTHER_MODEL: Final = "Give a Qwen3-Embedding checkpoint, such as Qwen/Qwen3-Embedding-0.6B."

_log = logging.getLogger("emberd.serving")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to embed.

    Attributes:
        model: The module.
        tokenizer: The tokenizers library's own; many threads may ask it.
        dimensions: Length of a native vector.
        context_tokens: Longest text that the model's configuration allows.
        vocabulary: Number of token ids.
    """

    model: Any
    tokenizer: Any
    dimensions: int
    context_tokens: int
    vocabulary: int


def load(folder: Path, place: Place, end_of_text_id: int | None) -> Loaded:
    """Load a checkpoint.

    Args:
        folder: Its files.
        place: Where it is to run.
        end_of_text_id: The token that must end each text; None when only the tokenizer knows.

    Raises:
        StartError: It is not of a kind that is served, is damaged, or does not fit.
    """
    config = checkpoints.read_json(folder / checkpoints.CONFIG)
    _check_kind(folder, config)
    size = _weights_bytes(folder, place.dtype)
    _check_room(folder, place, size)
    _log.info("loading the tokenizer")
    tokenizer = _tokenizer(folder, end_of_text_id)
    model = _model(folder, place, size)
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        dimensions=int(config["hidden_size"]),
        context_tokens=int(config["max_position_embeddings"]),
        vocabulary=int(config["vocab_size"]),
    )


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    if not config:
        raise StartError(
            f"{folder} holds no {checkpoints.CONFIG} that can be read", advice=_COPY_AGAIN
        )
    architecture = (config.get("architectures") or ["no architecture at all"])[0]
    if architecture not in ARCHITECTURES:
        raise StartError(
            f"{folder} is of the architecture {architecture}, and this engine serves "
            f"{' and '.join(ARCHITECTURES)}",
            advice=_OTHER_MODEL,
        )
    if config.get("use_sliding_window"):
        raise StartError(
            f"{folder} attends in a sliding window, which this engine does not serve",
            advice=_OTHER_MODEL,
        )
    # Asked before the start as well, but for a model of the hub its files are known only here.
    problem = pipeline.unservable(folder)
    if problem is not None:
        raise StartError(problem.cause, advice=problem.advice)


def _weights_bytes(folder: Path, dtype: str) -> int:
    """Return what the weights take in ``dtype``, from the headers of their files."""
    files = sorted(folder.glob(_WEIGHTS))
    if not files:
        raise StartError(f"{folder} holds no weights ({_WEIGHTS})", advice=_COPY_AGAIN)
    return sum(_numbers(path) for path in files) * hardware.ITEM_BYTES[dtype]


def _numbers(path: Path) -> int:
    """Return how many numbers a file of weights holds, without the head of a language model."""
    try:
        start, header = _header(path)
        tensors = {name: tensor for name, tensor in header.items() if "shape" in tensor}
        end = start + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        size = path.stat().st_size
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StartError(
            f"the weights in {path} are damaged: they have no header that can be read",
            advice=_COPY_AGAIN,
        ) from error
    if size < end:
        raise StartError(
            f"the weights in {path} are incomplete: {size} of {end} bytes", advice=_COPY_AGAIN
        )
    return sum(math.prod(tensor["shape"]) for name, tensor in tensors.items() if _HEAD not in name)


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return where the numbers begin in a file of weights, and what it says of them."""
    with pipeline.open_regular(path) as file:
        length = int.from_bytes(file.read(_HEADER_BYTES), "little")
        if length > _MAX_HEADER_BYTES:
            raise ValueError(path)
        return _HEADER_BYTES + length, json.loads(file.read(length))


def _check_room(folder: Path, place: Place, size: int) -> None:
    need = round(size * _ROOM)
    if place.free_bytes is not None and place.free_bytes < need:
        raise StartError(
            f"the weights of {folder} take {size / _GIB:.1f} GiB in {place.dtype}, and "
            f"{place.free_bytes / _GIB:.1f} GiB is free on the {place.device}",
            advice=hardware.LESS_MEMORY,
        )


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
        raise StartError(f"{folder} holds no tokenizer.json", advice=_COPY_AGAIN)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    alone, behind = tokenizer.encode("").ids, tokenizer.encode(_WORD).ids
    expected = alone[-1:] if end_of_text_id is None else [end_of_text_id]
    if len(alone) != 1 or alone != expected or behind[-1:] != expected:
        raise StartError(
            f"the tokenizer in {folder} is out of date: it does not put the end-of-text token, "
            f"which the model's vector is read from, behind each text",
            advice="Get tokenizer.json and tokenizer_config.json anew; Qwen's of June 2025 and "
            "later do it. A model that was not made for embeddings has no such tokenizer.",
        )
    return tokenizer


def _model(folder: Path, place: Place, size: int) -> Any:
    import torch
    import transformers

    register(transformers)
    transformers.utils.logging.disable_progress_bar()
    taken = _taken_bytes
    if place.device == hardware.CUDA:
        taken = lambda: _taken_bytes() + torch.cuda.memory_allocated()  # noqa: E731
    try:
        with telling("loading the weights", taken, size):
            model, report = transformers.AutoModel.from_pretrained(
                folder,
                dtype=getattr(torch, place.dtype),
                attn_implementation=ATTENTION,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            _check_report(folder, report)
            return model.eval().to(place.device)
    except StartError:
        raise
    except Exception as error:
        raise _explain_load(folder, place, error) from error


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    # transformers fills what is missing with random numbers, and says so in passing.
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(map(str, report.get(kind) or ()))
        if names:
            raise StartError(
                f"the weights in {folder} are not those of its {checkpoints.CONFIG}: "
                f"{kind.replace('_', ' ')} {', '.join(names[:3])} ({len(names)} in all)",
                advice=_COPY_AGAIN,
            )


def _explain_load(folder: Path, place: Place, error: Exception) -> StartError:
    if hardware.is_out_of_memory(error):
        return StartError(
            f"memory ran out on the {place.device} while the weights of {folder} were loaded",
            advice=hardware.LESS_MEMORY,
        )
    if is_disk_full(error):
        return StartError(
            f"a disk is full: there was no room for a file of {folder}",
            advice="`df -h` shows which; HF_HOME moves the hub's cache, TMPDIR temporary files.",
        )
    _log.error("the weights could not be loaded", exc_info=error)
    return StartError(
        f"the weights in {folder} cannot be read ({_first_line(error)})", advice=_COPY_AGAIN
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [""]
    # One sentence: whoever reads the log takes what follows the first full stop for advice.
    return f"{type(error).__name__}: {text[0]}".rstrip(".: ").replace(". ", "; ")


def _taken_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_BYTES
