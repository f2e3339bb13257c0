"""The model: a complete folder, a snapshot in the hub's cache, or a name on the hub.

The cache is read in the layout of huggingface_hub, which is installed only in the engines'
environments. An engine may keep models elsewhere, such as in ModelScope's cache. No token is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from emberd import (
    catalog,
    engines,
    env,
    model_files,
    model_pooling,
    model_tokenizer,
    modelscope_weights,
    probe,
    weight_files,
)
from emberd.catalog import DEMO_MODEL, EMBED, RERANK
from emberd.doctor.engines import up_command
from emberd.doctor.findings import Finding, gather, note, ok, problem
from emberd.doctor.wanted import Wanted
from emberd.engines.base import EnvironmentEngine, OtherCache
from emberd.errors import EmberdError
from emberd.model_card import may_rerank
from emberd.probe import ProbeReply
from emberd.settings import ServerSpec
from emberd.system.disk_space import in_words
from emberd.system.redaction import host

TIMEOUT_S: Final = 3.0
TOKENS: Final = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_APPENDING: Final = ("Qwen3ForCausalLM", "Qwen3Model")  # pool the end-of-text token
_MODULE: Final = "."  # a custom engine is the dotted name of its module
_OFFLINE: Final = "HF_HUB_OFFLINE"
_REFUSED: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_REDIRECTS: Final = range(300, 400)  # to the model's new name
_LOG_IN: Final = "hf auth login (or set HF_TOKEN to a token that may read it)"


def check_model(wanted: Wanted) -> Iterator[Finding]:
    """Yield whether the model's files are complete or can be downloaded."""
    model = wanted.spec.model
    if model == DEMO_MODEL or _MODULE in (wanted.spec.engine or ""):
        yield ok("model", f"the engine resolves {model} itself")
    elif model_files.is_path(model) or model_files.is_folder(model):
        yield from _folder(Path(model), wanted.spec.task)
    elif (kept := other_cache(wanted)) is not None:
        yield _elsewhere(wanted.spec, *kept)
    else:
        yield from _on_hub(wanted)


def other_cache(wanted: Wanted) -> tuple[str, OtherCache] | None:
    """Return the engine that a start would use, and where it keeps models; None: the hub's cache.

    ``emberd up`` leaves the download to such an engine.
    """
    with suppress(EmberdError):  # reported by check_engine
        choice = engines.explain(wanted.spec)
        engine = choice.engine or (engines.load(choice.installable) if choice.installable else None)
        if isinstance(engine, EnvironmentEngine):
            found = engine.other_cache(wanted.options)
            return (engine.name, found) if found else None
    return None


def _elsewhere(spec: ServerSpec, engine: str, cache: OtherCache) -> Finding:
    if not cache.is_modelscope:
        return note(
            "cache",
            f"the engine {engine} reads {spec.model} from another place than the hub's cache "
            f"({cache.why}), and downloads there what is missing; emberd does not check it",
        )
    # With a limit, because the package is slow to import.
    [folder] = gather([partial(modelscope_weights.find, spec.model, spec.revision)], TIMEOUT_S)
    if isinstance(folder, Path):
        size = in_words(weight_files.size_bytes(folder))
        return ok("cache", f"{spec.model} is in ModelScope's cache: {size} in {folder}")
    return note(
        "cache",
        f"{spec.model} was not found in ModelScope's cache: the engine {engine} downloads it from "
        f"ModelScope at the first start ({cache.why})",
    )


def _folder(folder: Path, task: str) -> Iterator[Finding]:
    if not folder.is_dir():
        yield problem(
            "folder",
            f"the folder {folder} does not exist",
            f"Correct the path: --model PATH, or {env.setting_variable('model', task)}=PATH",
        )
    elif missing := weight_files.missing_files(folder):
        yield problem("folder", f"{folder}: {', '.join(missing)}", "Download the model again.")
    else:
        size = in_words(weight_files.size_bytes(folder))
        yield ok("folder", f"{folder}: complete, {size} of weights")
        if task == EMBED and may_rerank(str(folder)):
            yield note(
                "task",
                f"{folder} does not say whether it embeds texts or scores documents; taken for an "
                f"embedding model",
                f"If it is a reranker: emberd doctor --task {RERANK} {folder}",
            )
        yield from _end_of_text(folder, task)


def _end_of_text(folder: Path, task: str) -> Iterator[Finding]:
    if task != EMBED or model_pooling.architecture(folder) not in _APPENDING:
        return
    added = model_tokenizer.read(folder).end_of_text_id
    if added is None:
        yield problem(
            "tokenizer",
            "its tokenizer does not append the end-of-text token, whose vector is the text's: all "
            "vectors would be wrong",
            "Download tokenizer.json of the model again: it was corrected in June 2025.",
        )
    else:
        yield ok("tokenizer", f"appends the end-of-text token {added} to each text")


def _on_hub(wanted: Wanted) -> Iterator[Finding]:
    spec = wanted.spec
    folder = model_files.hub_snapshot(spec.model, spec.revision)
    missing = weight_files.missing_files(folder) if folder else []
    what = spec.model + (f" at {spec.revision}" if spec.revision else "")
    if folder is None:
        place = model_files.hub_cache()
        fact = f"{what} is not in the hub's cache ({place}): the first start downloads it"
        yield note("cache", fact)
    elif missing:
        yield note("cache", f"{what} is incomplete in {folder}: {', '.join(missing)}")
    else:
        size = in_words(weight_files.size_bytes(folder))
        yield ok("cache", f"{spec.model} is in the hub's cache: {size} in {folder}")
        yield from _end_of_text(folder, spec.task)
        return
    other = partial(modelscope_weights.find, spec.model, spec.revision)
    if model_files.hub_is_offline():
        yield problem(
            "hub",
            f"{_OFFLINE} disables the download of {what}",
            f"unset {_OFFLINE}, or use a folder: --model PATH",
        )
        yield from _from_modelscope(wanted, *gather([other], TIMEOUT_S))
        return
    has_token = any(map(os.environ.get, TOKENS)) or model_files.hub_token_path().is_file()
    revision = quote(spec.revision or "main", safe="")
    path = f"/api/models/{quote(spec.model)}/revision/{revision}?blobs=true"
    # With a limit on the whole: the timeout of a request is one of each step.
    ask = partial(probe.get, _hub_url(), path, timeout_s=TIMEOUT_S)
    calls: list[Callable[[], ProbeReply | Path | None]] = [ask, other]
    reply, found = gather(calls, TIMEOUT_S)
    yield _replied(
        spec, what, reply if isinstance(reply, ProbeReply) else None, has_token=has_token
    )
    yield ok("token", f"a token for the hub is {'set' if has_token else 'not set'}")
    yield from _from_modelscope(wanted, found)


def _from_modelscope(wanted: Wanted, folder: object) -> Iterator[Finding]:
    """Yield that the model is complete in another cache, which a start does not look into."""
    if isinstance(folder, Path):
        others = {name: text for name, text in wanted.given.items() if name != "revision"}
        command = up_command(replace(wanted, given={**others, "model": str(folder)}))
        fact = f"{wanted.spec.model} is in ModelScope's cache, which a start does not read"
        yield note("modelscope", fact, f"{command}  (as a folder; no download)")


def _hub_url() -> str:
    """Return the URL of the hub without a user name and password."""
    given = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    scheme, separator, _ = given.partition("://")
    return f"{scheme}://{host(given)}" if separator else "https://huggingface.co"


def _replied(spec: ServerSpec, what: str, reply: ProbeReply | None, *, has_token: bool) -> Finding:
    place = host(_hub_url())
    if reply is None:
        return problem(
            "hub",
            f"{place} did not respond within {TIMEOUT_S:g} s, and {what} is not in the cache",
            "Check the network, HTTPS_PROXY and HF_ENDPOINT; or copy the model to this machine and "
            "use its folder: --model PATH",
        )
    content: Any = reply.json()
    about = content if isinstance(content, dict) else {}
    if about.get("gated") and not has_token:
        return problem("hub", f"{what} is gated", f"Request access on the hub, then: {_LOG_IN}")
    if reply.status == HTTPStatus.OK or reply.status in _REDIRECTS:
        size = _download_bytes(about.get("siblings"))
        return ok("hub", f"{place} has {what}{f', {in_words(size)}' if size else ''}")
    if reply.status in _REFUSED and has_token:
        return note("hub", f"{place} requires a login for {what}; the token was not tested")
    if reply.status in (*_REFUSED, HTTPStatus.NOT_FOUND):
        return problem("hub", f"{place} has no {what} that you can access", _correction(spec))
    return note("hub", f"{place} responded with status {reply.status}", "Try again later.")


def _download_bytes(siblings: Any) -> int:
    """Return the size of the files that are downloaded, in bytes; 0 if it is unknown."""
    return sum(
        entry["size"]
        for entry in (siblings if isinstance(siblings, list) else ())
        if isinstance(entry, dict)
        and str(entry.get("rfilename", "")).endswith((".json", ".safetensors", ".txt", ".model"))
        and isinstance(entry.get("size"), int)
    )


def _correction(spec: ServerSpec) -> str:
    known = [model.name for model in catalog.MODELS]
    close = get_close_matches(spec.model, known, n=1)
    if close and spec.model not in known:
        return f"Did you mean --model {close[0]}?"
    return f"Check the name and the revision; if the model is private: {_LOG_IN}"
