"""Servers: the one that was given, those that emberd keeps, and those of others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from emberd import probe
from emberd.client.verify import verify
from emberd.doctor.bounded import Outcome, gather
from emberd.doctor.findings import Finding, note, ok, problem, split
from emberd.doctor.start import up
from emberd.doctor.wanted import Wanted
from emberd.endpoint import Endpoint
from emberd.errors import AuthenticationError, EmberdError, StateFolderError
from emberd.manager import State, Timing, discovery, lost_records, paths, state
from emberd.manager.discovery import Candidate
from emberd.manager.state import ServerSnapshot, ServerStatus
from emberd.system import processes

_REQUEST_S: Final = 3.5
_SERVER_S: Final = 4.0
_SHOW_KEY: Final = "If you know its key: export EMBERD_API_KEY=KEY EMBERD_DISCOVER={}"
_GIVEN: Final = "base_url is given"


def look(wanted: Wanted) -> Iterator[Finding]:
    """Yield which servers there are, and which of them serves what is wanted."""
    deadline_s = time.monotonic() + _SERVER_S
    candidates = list(_candidates(wanted))
    # All are asked at once: one that hangs must not use up the time of the others.
    jobs = [partial(_asked, wanted, candidate) for candidate in candidates]
    outcomes = gather(jobs, _SERVER_S)
    found = [_other(wanted, *pair) for pair in zip(candidates, outcomes, strict=True)]
    marks = lost_records.MarkedProcesses()
    for view in _views(wanted, deadline_s):
        found += _own(wanted, view, marks)
    yield from found or [ok("servers", "none runs")]


def _candidates(wanted: Wanted) -> Iterator[Candidate]:
    if wanted.base_url is not None:
        yield Candidate(wanted.base_url, _GIVEN, wanted.api_key)
    for candidate in discovery.candidates(wanted.places.discover, wanted.api_key):
        if candidate.url != wanted.base_url:
            yield candidate


def _asked(wanted: Wanted, candidate: Candidate) -> Endpoint:
    asks = partial(verify, timeout_s=_REQUEST_S)
    if candidate.why == _GIVEN:
        return asks(candidate.url, candidate.api_key, wanted.spec)
    # As ``ensure`` does it, so that nothing is sent to a server that it would not ask.
    return discovery.verify_candidate(
        candidate, wanted.spec, asks, first_answer_s=_REQUEST_S
    ).endpoint


def _other(wanted: Wanted, candidate: Candidate, outcome: Outcome[Endpoint]) -> Finding:
    if candidate.why == _GIVEN:
        return _given(wanted, candidate.url, outcome)
    name = f"{candidate.url} ({candidate.why})"
    if outcome.value is None:
        wants_key = isinstance(outcome.error, AuthenticationError) and not candidate.api_key
        fact, advice = split(_why(outcome, candidate.url))
        advice = _SHOW_KEY.format(candidate.url) if wants_key else advice
        return note("found", f"{name} is not used: {fact}", advice)
    fact = f"{name} serves {wanted.spec.model}: {_size(outcome.value)}"
    return ok("found", fact, gives=f"{fact}. It is found and used; emberd will not stop it")


def _given(wanted: Wanted, url: str, outcome: Outcome[Endpoint]) -> Finding:
    if outcome.value is None:
        fact, advice = split(_why(outcome, url))
        advice = advice or "Correct EMBERD_BASE_URL, or unset it: emberd then finds or starts one."
        return problem("base_url", fact, advice)
    fact = f"{url} serves {wanted.spec.model}: {_size(outcome.value)}"
    return ok("base_url", fact, gives=f"{fact}. It is used, and nothing is ever started")


def _views(wanted: Wanted, deadline_s: float) -> Iterator[ServerSnapshot]:
    for folder in paths.Home(Path(os.path.realpath(wanted.home))).all_server_folders():
        with suppress(StateFolderError):  # told where the state folder is looked at
            yield state.settled_snapshot(folder, deadline_s, Timing().poll_s)


def _own(
    wanted: Wanted, view: ServerSnapshot, marks: lost_records.MarkedProcesses
) -> Iterator[Finding]:
    status = lost_records.server_status(view, marks)
    if status is None:
        return
    if status.state is State.UNKNOWN:
        yield note("own", f"The server in {view.folder}: {status.detail}", "emberd stop")
        return
    where = f" at {status.url}" if status.url else ""
    detail = f" ({status.detail})" if status.detail else ""
    fact = f"{status.spec.model} is {status.state}{where}{detail}"
    if status.state is State.FAILED:
        yield note("own", fact, _after_failure(wanted, status))
    elif status.state is State.READY and not _answers(status):
        yield note("own", f"{fact}, and does not answer", _log(status))
    elif status.state is not State.ABSENT:
        serves = status.spec.key == wanted.spec.key and view.serves(wanted.spec)
        # An external one is only recorded here: it was asked itself, above.
        serves = serves and status.origin == "own"
        yield ok("own", fact, gives=f"{fact}: it is used" if serves else "")
    yield from _leftover(view)


def _answers(status: ServerStatus) -> bool:
    try:
        listener = discovery.listener_to_probe(status)
    except EmberdError:
        return False
    reply = probe.get(status.url or "", "/ready", timeout_s=_REQUEST_S, listener=listener)
    return reply is not None


def _after_failure(wanted: Wanted, status: ServerStatus) -> str:
    again = f"; then: {up(wanted)}" if status.spec.key == wanted.spec.key else ""
    return _log(status) + again


def _log(status: ServerStatus) -> str:
    return f"Look at its log: {status.log_path}" if status.log_path else "emberd stop"


def _leftover(view: ServerSnapshot) -> Iterator[Finding]:
    left = [] if view.alive else [str(own.pid) for own in processes.marked(str(view.folder))]
    if left:
        yield note(
            "leftover",
            f"processes of a server that is gone still run: {', '.join(left)}",
            "emberd stop  (ends what is left; the next start does so too)",
        )


def _why(outcome: Outcome[Endpoint], url: str) -> str:
    if outcome.late:
        return f"{url} did not answer within {_SERVER_S:g} s."
    if isinstance(outcome.error, EmberdError):
        return str(outcome.error)
    return f"{url} cannot be asked: {type(outcome.error).__name__}."


def _size(endpoint: Endpoint) -> str:
    context = f", {endpoint.context_tokens} tokens" if endpoint.context_tokens else ""
    return f"{endpoint.dimensions} dimensions{context}"
