"""``emberd stop``."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from emberd import model_files
from emberd.catalog import EMBED, RERANK
from emberd.cli import options, output, serve_background
from emberd.cli.serve_background import GATEWAY
from emberd.cli.shown_servers import as_content
from emberd.errors import SettingError
from emberd.gateway.background_gateway import BackgroundGateway
from emberd.manager import State, Timing
from emberd.manager.lost_records import NO_MODEL
from emberd.settings import QUANTIZATIONS, ServerSpec
from emberd.verified_manager import Manager

if TYPE_CHECKING:
    from emberd.gateway.background_gateway import GatewayStatus
    from emberd.manager import ServerStatus

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        autocompletion=options.complete_model,
        help="Only servers of this model.",
    ),
]


def stop(
    name: options.ModelName = None,
    model: Model = None,
    revision: options.Revision = None,
    as_json: options.AsJson = False,
) -> None:
    """Stop servers and wait until they have stopped.

    Stops all servers that emberd started and the gateway of `emberd serve --background`, or only
    the servers of one model, or only the gateway if MODEL is "gateway"; each after its requests in
    flight. Servers that the gateway has started do not depend on it.

    An external server is only forgotten and continues to run. Jobs that use a stopped server get
    an error and do not restart it.
    """
    is_gateway = name == GATEWAY and model is None and revision is None
    model = None if is_gateway else options.resolve_model(name, model)
    manager = Manager()
    gateway: GatewayStatus | None = None
    stopped: list[ServerStatus] = []
    unnamed: list[ServerStatus] = []
    with output.ProgressLine() as line:
        if sys.stderr.isatty():
            line.show("stopping after the requests in flight")
        # First: it would start servers again.
        if is_gateway or (model is None and revision is None):
            gateway = BackgroundGateway().stop()
        if not is_gateway:
            stopped, unnamed = _stop(manager, model, revision)
    for left in unnamed:
        output.note(
            f"note: the record of the server in the state folder {left.key} is lost, so its model "
            f"is unknown. `emberd stop` without a model stops it too."
        )
    if as_json:
        content = {"stopped": [as_content(was) for was in stopped]}
        output.write_json({**content, "gateway": serve_background.as_content(gateway)})
        return
    if gateway is not None:
        output.write_line(f"Stopped the gateway (it was {gateway.state}).")
    for was in stopped:
        output.write_line(_line(was))
    if is_gateway and gateway is None:
        output.write_line("No gateway is running in the background.")
    elif not stopped and gateway is None:
        output.write_line(f"No server{f' of {model}' if model else ''} is running.")


def _stop(
    manager: Manager, model: str | None, revision: str | None
) -> tuple[list[ServerStatus], list[ServerStatus]]:
    """Stop servers; return them, and the running servers whose model is unknown."""
    if model is None and revision is None:
        return manager.stop(), []
    # One deadline for lost records, not one per stop.
    deadline_s = time.monotonic() + Timing().record_s
    # Each revision of a model has its own state folder.
    everything = manager.status()
    chosen = {
        known.spec.key: known.spec
        for known in everything
        if model in (None, known.spec.model) and revision in (None, known.spec.revision)
    }
    if model is not None:
        content = None
        with suppress(SettingError):  # also stop servers of a model folder that cannot be read
            content = model_files.content_hash(model)
        # Without a record the model is unknown, but its state folder can be found by the key.
        for quantization, task in product((None, *QUANTIZATIONS), (EMBED, RERANK)):
            spec = ServerSpec(model, revision, quantization, content=content, task=task)
            chosen.setdefault(spec.key, spec)
    stopped = [was for spec in chosen.values() for was in manager.stop(spec, deadline_s=deadline_s)]
    ended = {was.key for was in stopped}
    lost = [known for known in everything if known.spec.model == NO_MODEL]
    return stopped, [known for known in lost if known.key not in ended]


def _line(was: ServerStatus) -> str:
    place = f" at {was.url}" if was.url else ""
    if was.origin == "found":
        return (
            f"Removed the record of {was.spec.model}{place}. emberd did not start this server, so "
            f"it continues to run. Stop it where it was started."
        )
    if was.state is State.UNKNOWN:
        model = "the server" if was.spec.model == NO_MODEL else was.spec.model
        return f"Stopped {model} in the state folder {was.key}, whose record could not be read."
    kind = "the reranker " if was.spec.task == RERANK else ""
    return f"Stopped {kind}{was.spec.model}{place} (it was {was.state})."
