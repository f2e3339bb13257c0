"""The model: a folder that is whole, or a name on the hub that can be had."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from emberd import catalog, hub_cache, model_card, model_files, probe
from emberd.catalog import DEMO_MODEL
from emberd.doctor.findings import Finding, gather, note, ok, problem
from emberd.doctor.wanted import Wanted
from emberd.installs import in_words
from emberd.settings import ServerSpec
from emberd.system.redaction import host

_APPENDING: Final = ("Qwen3ForCausalLM", "Qwen3Model")  # they pool the end-of-text token
_REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_MODULE: Final = "."  # an engine of the user's own is given as the dotted name of its module
_LOG_IN: Final = "hf auth login (or set HF_TOKEN to a token that may read it)"


def check_model(wanted: Wanted) -> Iterator[Finding]:
    """Yield whether the model's files are here, or can be had."""
    model = wanted.spec.model
    if model == DEMO_MODEL or _MODULE in (wanted.spec.engine or ""):
        yield ok("model", f"{model} is its engine's own to find")
    elif model_files.is_path(model) or model_files.is_folder(model):
        yield from _folder(model)
    else:
        yield from _on_hub(wanted.spec)


def _folder(model: str) -> Iterator[Finding]:
    folder = Path(model)
    if not folder.is_dir():
        yield problem(
            "folder",
            f"there is no folder {model}",
            "Correct the path: --model PATH, or EMBERD_MODEL=PATH",
        )
        return
    if missing := missing_files(folder):
        yield problem("folder", f"{model}: {', '.join(missing)}", "Fetch the model again.")
        return
    yield ok("folder", f"{model}: whole, {in_words(size_bytes(folder))} of weights")
    yield from _end_of_text(folder)


def _end_of_text(folder: Path) -> Iterator[Finding]:
    if model_card.architecture(folder) not in _APPENDING:
        return
    added = model_card.end_of_text_id(folder)
    if added is None:
        yield problem(
            "tokenizer",
            "its tokenizer puts no end-of-text token behind a text, and that token's vector is "
            "the text's: all vectors would be wrong",
            "Fetch tokenizer.json of the model again: it was corrected in June 2025.",
        )
    else:
        yield ok("tokenizer", f"puts the end-of-text token {added} behind each text")


def _on_hub(spec: ServerSpec) -> Iterator[Finding]:
    kept = cached(spec.model, spec.revision)
    if kept.is_whole and kept.folder is not None:
        size = in_words(size_bytes(kept.folder))
        yield ok("cache", f"{spec.model} is in the hub's cache: {size} in {kept.folder}")
        yield from _end_of_text(kept.folder)
        return
    what = spec.model + (f" at {spec.revision}" if spec.revision else "")
    yield _absent(what, kept)
    if is_offline():
        yield problem(
            "hub",
            f"{OFFLINE} forbids the download of {what}",
            f"unset {OFFLINE}, or give the model's folder: --model PATH",
        )
        return
    [outcome] = gather([partial(ask, spec.model, spec.revision)], TIMEOUT_S)
    yield _told(spec, what, outcome.value or Answer(None))
    yield ok("token", f"a token for the hub is {'set' if has_token() else 'not set'}")


def _absent(what: str, kept: Cached) -> Finding:
    if kept.folder is not None:
        return note("cache", f"{what} is not whole in {kept.folder}: {', '.join(kept.missing)}")
    return note(
        "cache",
        f"{what} is not in the hub's cache ({hub_cache.root()}): the first start downloads it",
    )


def _told(spec: ServerSpec, what: str, answer: Answer) -> Finding:
    place = host(endpoint())
    if answer.status is None:
        return problem(
            "hub",
            f"{place} does not answer within {TIMEOUT_S:g} s, and {what} is not here",
            "Look at the network, HTTPS_PROXY and HF_ENDPOINT; or copy the model here and give "
            "its folder: --model PATH",
        )
    if answer.gated and not has_token():
        return problem("hub", f"{what} is gated", f"Ask for access on its page, then: {_LOG_IN}")
    if answer.is_there:
        size = f", {in_words(answer.bytes)}" if answer.bytes else ""
        return ok("hub", f"{place} has {what}{size}")
    if answer.status in _REFUSED and has_token():
        return note("hub", f"{place} gives {what} to those who log in: the token was not tried")
    if answer.status in (*_REFUSED, HTTPStatus.NOT_FOUND):
        return problem("hub", f"{place} has no {what} that you may see", _correction(spec))
    return note("hub", f"{place} answered {answer.status}", "Try again later.")


def _correction(spec: ServerSpec) -> str:
    known = [model.name for model in catalog.MODELS]
    close = get_close_matches(spec.model, known, n=1)
    if close and spec.model not in known:
        return f"Did you mean --model {close[0]}?"
    return f"Check name and revision; if the model is private: {_LOG_IN}"


TIMEOUT_S: Final = 3.0
OFFLINE: Final = "HF_HUB_OFFLINE"
_ENDPOINT: Final = "https://huggingface.co"
_YES: Final = ("1", "ON", "TRUE", "YES")
_TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_MAIN: Final = "main"
_NAMED_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)([BM])(?![A-Za-z])")
_BF16_BYTES: Final = 2
_UNITS: Final = {"B": 1_000_000_000, "M": 1_000_000}
_WANTED: Final = (".json", ".safetensors", ".txt", ".model")
_REDIRECTS: Final = range(300, 400)


@dataclass(frozen=True, slots=True)
class Cached:
    """What the cache holds of a model.

    Attributes:
        folder: The snapshot; None where there is none of the revision that is wanted.
        missing: What the snapshot lacks; empty for nothing.
    """

    folder: Path | None
    missing: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing has to be downloaded."""
        return self.folder is not None and not self.missing


@dataclass(frozen=True, slots=True)
class Answer:
    """What the hub says of a model.

    Attributes:
        status: The HTTP status; None when the hub did not answer.
        gated: It is given only to those who were let in.
        bytes: What has to be downloaded; None when the hub does not say.
    """

    status: int | None
    gated: bool = False
    bytes: int | None = None

    @property
    def is_there(self) -> bool:
        """Whether the hub knows such a model; one that was renamed is known too."""
        return self.status == HTTPStatus.OK or self.status in _REDIRECTS


def cached(model: str, revision: str | None) -> Cached:
    """Return what the cache holds of a model.

    Raises:
        OSError: The cache cannot be read.
    """
    folder = hub_cache.snapshot(model, revision)
    if folder is None:
        return Cached(None)
    return Cached(folder, tuple(missing_files(folder)))


def ask(model: str, revision: str | None) -> Answer:
    """Return what the hub says of a model, after a few seconds at most."""
    path = f"/api/models/{quote(model)}/revision/{quote(revision or _MAIN, safe='')}?blobs=true"
    try:
        reply = probe.fetch(endpoint(), path, None, None, TIMEOUT_S)
    except probe.NO_ANSWER:
        return Answer(None)
    told: Any = reply.json()
    if not isinstance(told, dict):
        return Answer(reply.status)
    return Answer(reply.status, bool(told.get("gated")), _sizes(told.get("siblings")))


def endpoint(environ: Mapping[str, str] = os.environ) -> str:
    """Return the URL of the hub, without a password that may stand in it."""
    given = environ.get("HF_ENDPOINT", "").rstrip("/")
    scheme, separator, _ = given.partition("://")
    return f"{scheme}://{host(given)}" if separator else _ENDPOINT


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the user forbids downloads."""
    return any(environ.get(n, "").upper() in _YES for n in (OFFLINE, "TRANSFORMERS_OFFLINE"))


def has_token(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a token for the hub is there; what it is, is nobody's business."""
    if any(environ.get(name) for name in _TOKENS):
        return True
    return hub_cache.token_path(environ).is_file()


def weights_bytes(model: str) -> int | None:
    """Return about what a model's weights take, by the size in its name; None when it has none."""
    found = _NAMED_SIZE.findall(model)
    if not found:
        return None
    number, unit = found[-1]
    return int(float(number) * _UNITS[unit] * _BF16_BYTES)


def _sizes(siblings: Any) -> int | None:
    if not isinstance(siblings, list):
        return None
    sizes = [
        entry["size"]
        for entry in siblings
        if isinstance(entry, dict)
        and str(entry.get("rfilename", "")).endswith(_WANTED)
        and isinstance(entry.get("size"), int)
    ]
    return sum(sizes) or None


TOKENIZERS: Final = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
_INDEX: Final = "model.safetensors.index.json"
_OLD: Final = ("*.bin", "*.pt")


def missing_files(folder: Path) -> list[str]:
    """Return what is missing in a model's folder or broken, a few words each; empty for nothing.

    Of the weights the headers are read: a file that was cut short is seen, a flipped bit is not.
    """
    found = [model_files.CONFIG] if not (folder / model_files.CONFIG).is_file() else []
    found = [f"no {name}" for name in found]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        found.append("no tokenizer.json")
    return [*found, *_weights(folder)]


def size_bytes(folder: Path) -> int:
    """Return what the weights take."""
    files = [*folder.glob(model_files.SAFETENSORS), *(f for old in _OLD for f in folder.glob(old))]
    return sum(file.stat().st_size for file in files)


def _weights(folder: Path) -> Iterator[str]:
    present = {file.name: file for file in sorted(folder.glob(model_files.SAFETENSORS))}
    named = set(_weight_map(folder).values())
    for name in sorted(named - set(present)):
        yield f"{name} is missing, which {_INDEX} names"
    for name, file in present.items():
        if trouble := _trouble(file):
            yield f"{name} {trouble}"
    if not present and not named and not any(any(folder.glob(old)) for old in _OLD):
        yield f"no weights ({model_files.SAFETENSORS})"


def _weight_map(folder: Path) -> dict[str, str]:
    found = model_files.read_json(folder / _INDEX).get("weight_map")
    names = found.items() if isinstance(found, dict) else ()
    return {tensor: name for tensor, name in names if isinstance(name, str)}


def _trouble(file: Path) -> str | None:
    try:
        wanted = model_files.read_safetensors_header(file).file_bytes
        there = file.stat().st_size
    except (OSError, ValueError) as error:
        return f"cannot be read as safetensors ({type(error).__name__})"
    if there != wanted:
        return f"has {there:,} bytes of {wanted:,}: its download was cut short"
    return None
