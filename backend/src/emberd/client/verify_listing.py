"""Which of the models that a server lists is the wanted one, and whether it is of its kind."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import Any, Final

from emberd import catalog, model_files, probe
from emberd.catalog import RERANK
from emberd.client import verify_scores, wire
from emberd.client.verify_scores import Ask
from emberd.client.wire import Reply, Request, TransportError
from emberd.errors import ServerMismatchError, SettingError
from emberd.probe import INFO, MODEL_INFO, MODELS, OLD_MODEL_INFO
from emberd.settings import ServerSpec

_SGLANG: Final = "sglang"
_NO_TASKS: Final = (None, "none", "embed")
# Where the hub's libraries keep downloads: a path that names the model after all.
_FETCHED: Final = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+/?$")


def read_listing(
    url: str, spec: ServerSpec, ask: Ask
) -> Generator[Request, Reply | TransportError | None, tuple[dict[str, Any], int, dict[str, Any]]]:
    """Return the entry of the wanted model, how many models are listed, and what TEI says."""
    entries = probe.entries(wire.parse_object((yield from ask(Request(MODELS)))))
    # Where the server lists its models, the other routes are optional: a gateway may close them.
    optional = bool(entries)
    info = wire.parse_object((yield from ask(Request(MODEL_INFO), optional=optional)))
    if not info:
        info = wire.parse_object((yield from ask(Request(OLD_MODEL_INFO), optional=optional)))
    of_tei: dict[str, Any] = {}
    if not (entries or info):
        of_tei = wire.parse_object((yield from ask(Request(INFO))))
        entries = probe.entries_of_info(of_tei)
        if spec.task == RERANK:
            verify_scores.check_listing(url, entries)
    _check_kind(url, info, spec.task)
    return _serving(url, spec.model, entries, info), len(entries), of_tei


def _check_kind(url: str, info: dict[str, Any], wanted: str) -> None:
    if wanted == RERANK:
        if info.get("is_generation") is False:
            raise ServerMismatchError(
                f"{url} serves {info.get('model_path')} for embeddings or classification; it is "
                f"not a server of a reranker. Start it for generation, as emberd does, or give the "
                f"base_url of another server."
            )
        return
    advice = "Start it as an embedding server, or give the base_url of another one."
    if info.get("is_generation") is True:
        raise ServerMismatchError(
            f"{url} generates text with {info.get('model_path')}; it is not an embedding server. "
            f"{advice}"
        )
    embedding = info.get("embedding")
    task = embedding.get("task") if isinstance(embedding, dict) else None
    if task not in _NO_TASKS:
        kind = ", ".join(map(str, info.get("architectures") or ()))
        raise ServerMismatchError(
            f"{url} serves {info.get('model_path')} ({kind}) for the task {task} (for example "
            f"reranking); it is not an embedding server. {advice}"
        )


def _serving(
    url: str, wanted: str, entries: list[dict[str, Any]], info: dict[str, Any]
) -> dict[str, Any]:
    """Return the entry of ``/v1/models`` that is the wanted model."""
    names = [name for key in ("served_model_name", "model_path") if (name := info.get(key))]
    listed = entries or [{"id": name} for name in names[:1]]
    if not listed:
        raise ServerMismatchError(
            f"{url} does not say which model it serves: none of {MODELS}, {MODEL_INFO} and {INFO} "
            f"lists one. Correct base_url: it must be the root of an OpenAI-compatible server."
        )
    for entry in listed:
        # What SGLang reports of itself is about the first; adapters may follow it.
        said = [entry["id"], entry.get("root"), *(names if entry is listed[0] else ())]
        if _is_wanted(url, wanted, said):
            return entry
    served = [str(entry["id"]) for entry in listed]
    loaded = f" (it has loaded {names[-1]})" if names and names[-1] not in served else ""
    raise ServerMismatchError(
        f"{url} serves {', '.join(served)}, but {wanted} was requested{loaded}. Give the base_url "
        f"of a server for {wanted}, or ask for model={served[0]!r}. If that is another name for "
        f"the same model, have the server list it as {wanted}."
    )


def check_no_adapter(url: str, entry: dict[str, Any], name: str, server: str) -> None:
    """Raise if a reranker is listed as an adapter."""
    # SGLang ignores adapters when it scores, and names the one that was requested in its reply
    # (0.5.23). It reads "a:b" in a request as adapter b of model a.
    if entry.get("parent") or (server == _SGLANG and ":" in name):
        raise ServerMismatchError(
            f"{url} lists {name} as an adapter, and would score with the model without it. Merge "
            f"the adapter into the weights, and serve the merged model."
        )


def _is_wanted(url: str, wanted: str, said: list[Any]) -> bool:
    """Return whether one of ``said``, names and paths of a model, is the wanted model."""
    said = [name for name in said if isinstance(name, str)]
    if probe.is_loopback(url):
        # Files say more than names, if both folders can be read.
        seen = {_holds_model(wanted, path) for path in said} - {None}
        if seen:
            return True in seen
    names = [
        "/".join(found.groups()) if (found := _FETCHED.search(name)) else name for name in said
    ]
    return any(catalog.names(wanted, name) or catalog.names(name, wanted) for name in names)


def _holds_model(wanted: str, path: str) -> bool | None:
    """Return whether the folder ``path`` of this machine holds the files of the folder ``wanted``.

    Names of folders prove little: every training run writes one called ``checkpoint-500``, and a
    link called ``current`` may lead to any of them.

    Returns:
        None if one of them is not a folder here, or cannot be read.
    """
    if not os.path.isabs(path):
        return None
    try:
        served, mine = model_files.content_hash(path), model_files.content_hash(wanted)
    except SettingError:
        return None
    return None if served is None or mine is None else served == mine
