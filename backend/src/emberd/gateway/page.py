"""The page for browsers on this machine: its file with its headers, and what it shows of servers.

The page is one file without requests to other hosts. It has no data of its own: it asks the routes
of the gateway, with a key that its user enters.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from emberd.embedder import Embedder
from emberd.errors import SettingError
from emberd.gateway.metrics import GatewayMetrics
from emberd.gateway.served_models import ServedModels
from emberd.manager import ServerStatus, State, idle
from emberd.prompts import SYMMETRIC_TASKS, TASKS
from emberd.reranker import Reranker
from emberd.verified_manager import Manager

FILE: Final = Path(__file__).with_name("page.html")
"""The page."""

_INLINE: Final = re.compile(rb"<(script|style)[^>]*>(.*?)</\1>", re.DOTALL)
_FAILED_STATUS: Final = 400


@functools.cache  # anyone on this machine may ask for it
def _file() -> tuple[bytes, str]:
    """Return the page, and its policy: its own script and style, and requests to its origin."""
    html = FILE.read_bytes()
    hashes = {
        kind.decode(): base64.b64encode(hashlib.sha256(text).digest()).decode()
        for kind, text in _INLINE.findall(html)
    }
    return html, (
        f"default-src 'none'; connect-src 'self'; img-src data:; "
        f"script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        f"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"require-trusted-types-for 'script'; trusted-types 'none'"
    )


async def respond(_: Request) -> Response:
    """Return the page."""
    html, policy = _file()
    headers = {
        "cache-control": "no-store",
        "content-security-policy": policy,
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


def overview(models: ServedModels, metrics: GatewayMetrics) -> dict[str, Any]:
    """Return the served models with the state of their servers, and the named tasks.

    It reads state files, and sends no server anything: looking does not start a server, and does
    not count as use. It may take seconds if a record is lost.

    Raises:
        StateFolderError: The home cannot be used.
    """
    known = Manager().status()
    counts = _counts(metrics)
    return {
        "models": [
            {
                "name": name,
                "model": user.settings.model,
                "task": user.settings.task,
                **_embedding(user),
                "is_external": user.settings.base_url is not None,
                "requests": counts.get(user.settings.model, (0, 0))[0],
                "failed_requests": counts.get(user.settings.model, (0, 0))[1],
                "servers": [*_servers(user, known)],
            }
            for name, user in models.users()
        ],
        "tasks": [
            {"name": name, "text": text, "is_symmetric": text in SYMMETRIC_TASKS}
            for name, text in TASKS.items()
        ],
    }


def _embedding(user: Embedder | Reranker) -> dict[str, Any]:
    """Return what a request for vectors can choose."""
    if isinstance(user, Reranker):
        return {}
    known = user.settings.known
    try:
        templates = {"query": user.query_template, "document": user.document_template}
    except SettingError:  # its prompts are not known
        templates = {}
    return {
        "dimensions": known.dimensions,
        "default_dimensions": user.settings.dimensions,
        "least_dimensions": known.min_dimensions,
        "is_trained_to_be_cut": known.matryoshka,
        "instruction_form": known.instruction_form,
        "templates": templates,
    }


def _servers(user: Embedder | Reranker, known: list[ServerStatus]) -> Iterator[dict[str, Any]]:
    """Yield what is known of the servers of a model; nothing of one that ended orderly."""
    if user.settings.base_url is not None:
        return
    key = user.settings.spec.key
    for status in known:
        if status.state is State.ABSENT or status.spec.key != key:
            continue
        left = idle.left_s(status.idle_timeout, status.unused_s)
        yield {
            "state": status.state,
            "seconds": round(status.seconds, 1),
            "engine": status.engine,
            "device": status.device,
            "detail": status.detail,
            "is_found": status.origin == "found",
            "idle_timeout_s": status.idle_timeout,
            "idle_left_s": None if left is None else round(left, 1),
        }


def _counts(metrics: GatewayMetrics) -> dict[str, tuple[int, int]]:
    """Return for each model how many requests were answered, and how many of them failed."""
    counts: dict[str, tuple[int, int]] = {}
    for sample in (each for family in metrics.requests.collect() for each in family.samples):
        if sample.name.endswith("_total"):
            count = int(sample.value)
            all_, failed = counts.get(sample.labels["model"], (0, 0))
            failed += count * (int(sample.labels["status"]) >= _FAILED_STATUS)
            counts[sample.labels["model"]] = all_ + count, failed
    return counts
