"""The model: a complete folder, a snapshot in the hub's cache, or a name on the hub.

The cache is read in the layout of huggingface_hub, which is installed only in the engines'
environments. No token is sent.
"""

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

from emberd import catalog, model_card, model_files, probe
from emberd.catalog import DEMO_MODEL
from emberd.doctor.findings import Finding, gather, note, ok, problem
from emberd.doctor.wanted import Wanted
from emberd.installs import in_words
from emberd.settings import ServerSpec
from emberd.system.redaction import host

_APPENDING: Final = ("Qwen3ForCausalLM", "Qwen3Model")  # pool the end-of-text token
_REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_MODULE: Final = "."  # a custom engine is the dotted name of its module
_LOG_IN: Final = "hf auth login (or set HF_TOKEN to a token that may read it)"


def check_model(wanted: Wanted) -> Iterator[Finding]:
    """Yield whether the model's files are complete or can be downloaded."""
    model = wanted.spec.model
    if model == DEMO_MODEL or _MODULE in (wanted.spec.engine or ""):
        yield ok("model", f"the engine resolves {model} itself")
    elif model_files.is_path(model) or model_files.is_folder(model):
        yield from _folder(model)
    else:
        yield from _on_hub(wanted.spec)


def _folder(model: str) -> Iterator[Finding]:
    folder = Path(model)
    if not folder.is_dir():
        yield problem(
            "folder",
            f"the folder {model} does not exist",
            "Correct the path: --model PATH, or EMBERD_MODEL=PATH",
        )
        return
    if missing := missing_files(folder):
        yield problem("folder", f"{model}: {', '.join(missing)}", "Download the model again.")
        return
    yield ok("folder", f"{model}: complete, {in_words(weight_file_bytes(folder))} of weights")
    yield from _end_of_text(folder)


def _end_of_text(folder: Path) -> Iterator[Finding]:
    if model_card.architecture(folder) not in _APPENDING:
        return
    added = model_card.end_of_text_id(folder)
    if added is None:
        yield problem(
            "tokenizer",
            "its tokenizer does not append the end-of-text token, whose vector is the text's: all "
            "vectors would be wrong",
            "Download tokenizer.json of the model again: it was corrected in June 2025.",
        )
    else:
        yield ok("tokenizer", f"appends the end-of-text token {added} to each text")


def _on_hub(spec: ServerSpec) -> Iterator[Finding]:
    kept = cached_model(spec.model, spec.revision)
    if kept.is_complete and kept.folder is not None:
        size = in_words(weight_file_bytes(kept.folder))
        yield ok("cache", f"{spec.model} is in the hub's cache: {size} in {kept.folder}")
        yield from _end_of_text(kept.folder)
        return
    what = spec.model + (f" at {spec.revision}" if spec.revision else "")
    yield _absent(what, kept)
    if is_offline():
        yield problem(
            "hub",
            f"{OFFLINE} disables the download of {what}",
            f"unset {OFFLINE}, or use a folder: --model PATH",
        )
        return
    [outcome] = gather([partial(ask_hub, spec.model, spec.revision)], TIMEOUT_S)
    yield _told(spec, what, outcome.value or HubReply(None))
    yield ok("token", f"a token for the hub is {'set' if has_token() else 'not set'}")


def _absent(what: str, kept: CachedModel) -> Finding:
    if kept.folder is not None:
        return note("cache", f"{what} is incomplete in {kept.folder}: {', '.join(kept.missing)}")
    return note(
        "cache",
        f"{what} is not in the hub's cache ({model_files.hub_cache()}): the first start "
        f"downloads it",
    )


def _told(spec: ServerSpec, what: str, answer: HubReply) -> Finding:
    place = host(hub_url())
    if answer.status is None:
        return problem(
            "hub",
            f"{place} did not respond within {TIMEOUT_S:g} s, and {what} is not in the cache",
            "Check the network, HTTPS_PROXY and HF_ENDPOINT; or copy the model to this machine and "
            "use its folder: --model PATH",
        )
    if answer.gated and not has_token():
        return problem("hub", f"{what} is gated", f"Request access on the hub, then: {_LOG_IN}")
    if answer.is_there:
        size = f", {in_words(answer.bytes)}" if answer.bytes else ""
        return ok("hub", f"{place} has {what}{size}")
    if answer.status in _REFUSED and has_token():
        return note("hub", f"{place} requires a login for {what}; the token was not tested")
    if answer.status in (*_REFUSED, HTTPStatus.NOT_FOUND):
        return problem("hub", f"{place} has no {what} that you can access", _correction(spec))
    return note("hub", f"{place} responded with status {answer.status}", "Try again later.")


def _correction(spec: ServerSpec) -> str:
    known = [model.name for model in catalog.MODELS]
    close = get_close_matches(spec.model, known, n=1)
    if close and spec.model not in known:
        return f"Did you mean --model {close[0]}?"
    return f"Check the name and the revision; if the model is private: {_LOG_IN}"


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
class CachedModel:
    """A model in the hub's cache.

    Attributes:
        folder: The snapshot; None if the cache has none of the requested revision.
        missing: What is missing in the snapshot; empty if it is complete.
    """

    folder: Path | None
    missing: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether nothing has to be downloaded."""
        return self.folder is not None and not self.missing


@dataclass(frozen=True, slots=True)
class HubReply:
    """The hub's reply about a model.

    Attributes:
        status: The HTTP status; None if the hub did not respond.
        gated: Whether access must be requested.
        bytes: Size of the download; None if unknown.
    """

    status: int | None
    gated: bool = False
    bytes: int | None = None

    @property
    def is_there(self) -> bool:
        """Whether the hub has the model, also under a new name."""
        return self.status == HTTPStatus.OK or self.status in _REDIRECTS


def cached_model(model: str, revision: str | None) -> CachedModel:
    """Return the state of a model in the hub's cache.

    Raises:
        OSError: The cache cannot be read.
    """
    folder = model_files.hub_snapshot(model, revision)
    if folder is None:
        return CachedModel(None)
    return CachedModel(folder, tuple(missing_files(folder)))


def ask_hub(model: str, revision: str | None) -> HubReply:
    """Ask the hub about a model, within ``TIMEOUT_S``."""
    path = f"/api/models/{quote(model)}/revision/{quote(revision or _MAIN, safe='')}?blobs=true"
    try:
        reply = probe.fetch(hub_url(), path, None, None, TIMEOUT_S)
    except probe.NO_ANSWER:
        return HubReply(None)
    told: Any = reply.json()
    if not isinstance(told, dict):
        return HubReply(reply.status)
    return HubReply(reply.status, bool(told.get("gated")), _sizes(told.get("siblings")))


def hub_url(environ: Mapping[str, str] = os.environ) -> str:
    """Return the URL of the hub without a user name and password."""
    given = environ.get("HF_ENDPOINT", "").rstrip("/")
    scheme, separator, _ = given.partition("://")
    return f"{scheme}://{host(given)}" if separator else _ENDPOINT


def is_offline(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether downloads are disabled."""
    return any(environ.get(n, "").upper() in _YES for n in (OFFLINE, "TRANSFORMERS_OFFLINE"))


def has_token(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a token for the hub is set, without reading it."""
    if any(environ.get(name) for name in _TOKENS):
        return True
    return model_files.hub_token_path(environ).is_file()


def estimated_weight_bytes(model: str) -> int | None:
    """Estimate the size of the weights from the size in the model's name; None if it has none."""
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
    """Return what is missing or damaged in a model's folder, in a few words each.

    Only the headers of the weights are read, so a truncated file is found but not a changed bit.
    """
    found = [model_files.CONFIG] if not (folder / model_files.CONFIG).is_file() else []
    found = [f"no {name}" for name in found]
    if not any((folder / name).is_file() for name in TOKENIZERS):
        found.append("no tokenizer.json")
    return [*found, *_weights(folder)]


def weight_file_bytes(folder: Path) -> int:
    """Return the size of the weights in bytes."""
    files = [*folder.glob(model_files.SAFETENSORS), *(f for old in _OLD for f in folder.glob(old))]
    return sum(file.stat().st_size for file in files)


def _weights(folder: Path) -> Iterator[str]:
    present = {file.name: file for file in sorted(folder.glob(model_files.SAFETENSORS))}
    named = set(_weight_map(folder).values())
    for name in sorted(named - set(present)):
        yield f"{name} is missing ({_INDEX} lists it)"
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
        return f"has {there:,} bytes of {wanted:,}: its download was interrupted"
    return None
