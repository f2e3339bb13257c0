"""Tokenizer and weights of a Qwen3-Embedding checkpoint, checked before anything is embedded."""

from __future__ import annotations

import logging
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from emberd import model_card, model_files
from emberd.errors import StartError
from emberd.serving import devices, hub, packing
from emberd.serving.devices import Place
from emberd.serving.watching import telling

ARCHITECTURES: Final = ("Qwen3ForCausalLM", "Qwen3Model")
"""What is served: causal, full attention, the last token's state is the vector."""

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
    config = model_files.read_json(folder / model_files.CONFIG)
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
            f"{folder} holds no {model_files.CONFIG} that can be read", advice=_COPY_AGAIN
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
    problem = model_card.why_unsupported(folder)
    if problem is not None:
        raise StartError(problem.cause, advice=problem.advice)


def _weights_bytes(folder: Path, dtype: str) -> int:
    """Return what the weights take in ``dtype``, from the headers of their files."""
    files = sorted(folder.glob(model_files.SAFETENSORS))
    if not files:
        raise StartError(
            f"{folder} holds no weights ({model_files.SAFETENSORS})", advice=_COPY_AGAIN
        )
    return sum(_numbers(path) for path in files) * devices.ITEM_BYTES[dtype]


def _numbers(path: Path) -> int:
    """Return how many numbers a file of weights holds, without the head of a language model."""
    try:
        header = model_files.read_safetensors_header(path)
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise StartError(
            f"the weights in {path} are damaged: they have no header that can be read",
            advice=_COPY_AGAIN,
        ) from error
    if size < header.file_bytes:
        raise StartError(
            f"the weights in {path} are incomplete: {size} of {header.file_bytes} bytes",
            advice=_COPY_AGAIN,
        )
    return sum(count for name, count in header.elements.items() if _HEAD not in name)


def _check_room(folder: Path, place: Place, size: int) -> None:
    need = round(size * _ROOM)
    if place.free_bytes is not None and place.free_bytes < need:
        raise StartError(
            f"the weights of {folder} take {size / _GIB:.1f} GiB in {place.dtype}, and "
            f"{place.free_bytes / _GIB:.1f} GiB is free on the {place.device}",
            advice=devices.LESS_MEMORY,
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

    packing.register(transformers)
    transformers.utils.logging.disable_progress_bar()
    taken = _taken_bytes
    if place.device == devices.CUDA:
        taken = lambda: _taken_bytes() + torch.cuda.memory_allocated()  # noqa: E731
    try:
        with telling("loading the weights", taken, size):
            model, report = transformers.AutoModel.from_pretrained(
                folder,
                dtype=getattr(torch, place.dtype),
                attn_implementation=packing.ATTENTION,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            _check_report(folder, report)
            return model.eval().to(place.device)
    except StartError:
        raise
    except Exception as error:
        raise _explained(folder, place, error) from error


def _check_report(folder: Path, report: dict[str, Any]) -> None:
    # transformers fills what is missing with random numbers, and says so in passing.
    for kind in ("missing_keys", "mismatched_keys"):
        names = sorted(map(str, report.get(kind) or ()))
        if names:
            raise StartError(
                f"the weights in {folder} are not those of its {model_files.CONFIG}: "
                f"{kind.replace('_', ' ')} {', '.join(names[:3])} ({len(names)} in all)",
                advice=_COPY_AGAIN,
            )


def _explained(folder: Path, place: Place, error: Exception) -> StartError:
    if devices.is_out_of_memory(error):
        return StartError(
            f"memory ran out on the {place.device} while the weights of {folder} were loaded",
            advice=devices.LESS_MEMORY,
        )
    if hub.is_disk_full(error):
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
