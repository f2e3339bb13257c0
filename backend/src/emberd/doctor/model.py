"""The model: a folder that is whole, or a name on the hub that can be had."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

from emberd import catalog, hub_cache, model_card, model_files
from emberd.catalog import DEMO_MODEL
from emberd.doctor import hub, weights
from emberd.doctor.bounded import gather
from emberd.doctor.findings import Finding, note, ok, problem
from emberd.doctor.wanted import Wanted
from emberd.installs import in_words
from emberd.settings import ServerSpec
from emberd.system.redaction import host

_APPENDING: Final = ("Qwen3ForCausalLM", "Qwen3Model")  # they pool the end-of-text token
_TOKENIZER: Final = "tokenizer.json"
_REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_MODULE: Final = "."  # an engine of the user's own is given as the dotted name of its module
_LOG_IN: Final = "hf auth login (or set HF_TOKEN to a token that may read it)"


def look(wanted: Wanted) -> Iterator[Finding]:
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
    lacking = weights.lacking(folder)
    if lacking:
        yield problem("folder", f"{model}: {', '.join(lacking)}", "Fetch the model again.")
        return
    yield ok("folder", f"{model}: whole, {in_words(weights.size_bytes(folder))} of weights")
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
    kept = hub.cached(spec.model, spec.revision)
    if kept.is_whole and kept.folder is not None:
        size = in_words(weights.size_bytes(kept.folder))
        yield ok("cache", f"{spec.model} is in the hub's cache: {size} in {kept.folder}")
        yield from _end_of_text(kept.folder)
        return
    what = spec.model + (f" at {spec.revision}" if spec.revision else "")
    yield _absent(what, kept)
    if hub.is_offline():
        yield problem(
            "hub",
            f"{hub.OFFLINE} forbids the download of {what}",
            f"unset {hub.OFFLINE}, or give the model's folder: --model PATH",
        )
        return
    [outcome] = gather([partial(hub.ask, spec.model, spec.revision)], hub.TIMEOUT_S)
    yield _told(spec, what, outcome.value or hub.Answer(None))
    yield ok("token", f"a token for the hub is {'set' if hub.has_token() else 'not set'}")


def _absent(what: str, kept: hub.Cached) -> Finding:
    if kept.folder is not None:
        return note("cache", f"{what} is not whole in {kept.folder}: {', '.join(kept.lacking)}")
    return note(
        "cache",
        f"{what} is not in the hub's cache ({hub_cache.root()}): the first start downloads it",
    )


def _told(spec: ServerSpec, what: str, answer: hub.Answer) -> Finding:
    place = host(hub.endpoint())
    if answer.status is None:
        return problem(
            "hub",
            f"{place} does not answer within {hub.TIMEOUT_S:g} s, and {what} is not here",
            "Look at the network, HTTPS_PROXY and HF_ENDPOINT; or copy the model here and give "
            "its folder: --model PATH",
        )
    if answer.gated and not hub.has_token():
        return problem("hub", f"{what} is gated", f"Ask for access on its page, then: {_LOG_IN}")
    if answer.is_there:
        size = f", {in_words(answer.bytes)}" if answer.bytes else ""
        return ok("hub", f"{place} has {what}{size}")
    if answer.status in _REFUSED and hub.has_token():
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
