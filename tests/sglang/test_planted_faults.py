"""Faults planted in the model code of a real server, and what finds them.

The table of ``docs/other-servers.md`` is made by this file. To write it again:
``PYTHONPATH=tests:tests/sglang .venv/bin/python -c "import test_planted_faults as t; t.write()"``.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import waiting
from docs_table import DocsTable
from emberd import Embedder, catalog, fidelity, installs, model_card, probe
from emberd.catalog import Model
from emberd.client import canary, wire
from emberd.client.clients import Client
from emberd.client.event_loops import finish
from emberd.client.verify import verify
from emberd.endpoint import Endpoint
from emberd.errors import RequestError, ServerMismatchError
from emberd.fidelity import Comparison, Outcome, ReferenceVectors
from emberd.prompts import Role
from emberd.settings import Settings
from ports import free_port
from real.engines import HERE, START_S, python_of

_LONGEST_TOKENS: Final = 600
_CUT_DIMENSIONS: Final = 64


class Found(NamedTuple):
    """Which check finds a fault.

    Attributes:
        before_use: The verification before the first use, without printed similarities.
        printed: The similarities that the model card prints.
        reply: The checks of each reply.
        compared: ``emberd verify``.
    """

    before_use: bool
    printed: bool
    reply: bool
    compared: bool


TABLE: Final[dict[str, tuple[str, Found]]] = {
    "no causal mask": ("no causal mask", Found(False, True, False, True)),
    "mean pooling": (
        "the mean of the tokens instead of the last one",
        Found(False, True, False, True),
    ),
    "mean of the batch": (
        "the mean over the batch, so that all texts of a request get one vector",
        Found(True, False, False, True),
    ),
    "order": ("vectors in the order of the lengths", Found(True, False, False, True)),
    "truncation": (
        "texts cut after 256 tokens, with the end-of-text token kept and the whole text counted",
        Found(False, False, False, True),
    ),
    "NaN": ("NaN for texts of more than 256 tokens", Found(False, False, True, True)),
    "other weights": ("other weights of the same shape", Found(False, True, False, True)),
    "padding side": (
        "padding on the right, and pooling as if it were on the left",
        Found(True, False, False, True),
    ),
    "lost end": (
        "the model code drops the end-of-text token, and the server counts it",
        Found(False, True, False, True),
    ),
    "no end token": ("the tokenizer appends no end-of-text token", Found(True, True, False, True)),
    "lower case": ("texts in lower case", Found(False, True, False, True)),
    "float16": ("float16, in which a few texts overflow", Found(False, False, True, True)),
    "always cut": ("all vectors cut, and not normalised again", Found(True, True, True, True)),
    "cut, norm not one": (
        "vectors cut on request (`server_dimensions`), and not normalised again",
        Found(False, False, False, False),
    ),
}
"""Name of a fault -> what it is, and what finds it."""

_ON_REQUEST: Final = "cut, norm not one"
_DOCS: Final = DocsTable(
    "other-servers.md",
    "the planted faults",
    (
        *("fault", "before the first use", "printed similarities", "each reply"),
        *("`emberd verify`", "without `emberd verify`, a caller gets"),
    ),
)


@dataclass
class Faulty:
    """The server, and the file that names its fault."""

    url: str
    folder: Path
    fault: Path

    def __post_init__(self) -> None:
        self.process: subprocess.Popen[bytes]  # while it runs

    @property
    def settings(self) -> Settings:
        return Settings.resolve(model=str(self.folder), base_url=self.url)

    @contextmanager
    def having(self, fault: str) -> Iterator[None]:
        self.fault.write_text(fault)
        yield
        self.fault.write_text("")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the server."""
        port = self.url.rpartition(":")[2]
        words = [str(HERE / "faulty_server.py"), str(self.folder), port, str(self.fault)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with subprocess.Popen([python_of("transformers"), *words], env=environment) as process:
            self.process = process
            try:
                waiting.until(
                    lambda: process.poll() is not None or probe.is_ready(self.url), START_S
                )
                assert process.poll() is None
                yield
            finally:
                process.terminate()


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "fault").write_text("")
    url = f"http://127.0.0.1:{free_port()}"
    made = Faulty(url, folder / "tiny-qwen3", folder / "fault")
    with made.running():
        yield made


@pytest.fixture(scope="module")
def reference(faulty: Faulty) -> ReferenceVectors:
    """The vectors of transformers, which shares no code with the server."""
    settings = faulty.settings
    checkpoint = fidelity.find_checkpoint(settings)
    interpreter = installs.locate("transformers")
    assert interpreter is not None
    return fidelity.compute(checkpoint, interpreter, settings, _LONGEST_TOKENS)


@pytest.fixture(scope="module")
def printed(faulty: Faulty) -> Model:
    """The model with the similarities of its own vectors, as a model card would print them."""
    texts = catalog.lookup("Qwen/Qwen3-Embedding-0.6B").reference
    assert texts is not None
    model = replace(model_card.describe(str(faulty.folder)), reference=texts)
    vectors = _alone(faulty, canary.texts(model))[-4:]
    rows = tuple(tuple(catalog.cosine(q, d) for d in vectors[2:]) for q in vectors[:2])
    return replace(model, reference=replace(texts, similarities=rows))


def _alone(faulty: Faulty, texts: Sequence[str]) -> list[tuple[float, ...]]:
    """Return the vectors of texts, from a request each, as they come."""
    vectors = []
    for text in texts:
        request = wire.embed_request(str(faulty.folder), [text], None)
        reply = probe.fetch(
            faulty.url, request.path, json.dumps(request.body).encode(), None, START_S
        )
        ((raw,),) = [finish(wire.read_embeddings(reply.body, 1)).vectors]
        vectors.append(struct.unpack(f"<{len(raw) // 4}f", raw))
    return vectors


@pytest.fixture(scope="module")
def endpoint(faulty: Faulty) -> Endpoint:
    """The server as it is known if nothing about its vectors is verified."""
    return verify(faulty.url, None, faulty.settings.spec)


def _is_found_before_use(faulty: Faulty) -> bool:
    try:
        verify(faulty.url, None, faulty.settings.spec)
    except ServerMismatchError:
        return True
    return False


def _differs_from_what_is_printed(faulty: Faulty, printed: Model) -> bool:
    try:
        canary.check(faulty.url, printed, [], _alone(faulty, canary.texts(printed)))
    except ServerMismatchError as error:
        return "the model card prints" in str(error)
    return False


def _compare(faulty: Faulty, endpoint: Endpoint, reference: ReferenceVectors) -> Comparison:
    """Do as ``emberd verify`` with a server that was not verified before."""
    settings = faulty.settings
    if faulty.fault.read_text() == _ON_REQUEST:
        settings = settings.changed(dimensions=_CUT_DIMENSIONS, server_dimensions=True)
    client = Client(lambda: endpoint, settings)

    def embed(texts: Sequence[str], role: Role) -> list[Outcome]:
        template = settings.query_template if role == "query" else settings.document_template
        try:
            windows = client.stream(texts, template, set_aside=True)
            return [each for window in windows for each in window]
        except RequestError as error:
            return [error] * len(texts)

    with closing(client):
        return fidelity.compare(embed, reference)


def _find(faulty: Faulty, printed: Model, endpoint: Endpoint, reference: ReferenceVectors) -> Found:
    compared = _compare(faulty, endpoint, reference)
    lowest = min((each.lowest for each in compared.texts if each.lowest is not None), default=0)
    errors = {each.error for each in compared.texts if each.error and not each.is_refused}
    print(
        f"\n{faulty.fault.read_text() or 'no fault'}: bound {compared.bound:.1e}, lowest cosine "
        f"{lowest:.6f}, {sum(not each.is_good for each in compared.texts)} of "
        f"{len(compared.texts)} texts wrong, {sorted(errors)[:1]}"
    )
    return Found(
        before_use=_is_found_before_use(faulty),
        printed=_differs_from_what_is_printed(faulty, printed),
        reply=bool(errors),
        compared=not compared.is_good,
    )


def test_nothing_is_found_in_a_healthy_server(
    faulty: Faulty, printed: Model, endpoint: Endpoint, reference: ReferenceVectors
) -> None:
    assert not any(_find(faulty, printed, endpoint, reference))


@pytest.mark.parametrize("fault", TABLE)
def test_a_fault_is_found_by_these_checks(
    faulty: Faulty, printed: Model, endpoint: Endpoint, reference: ReferenceVectors, fault: str
) -> None:
    with faulty.having(fault):
        assert _find(faulty, printed, endpoint, reference) == TABLE[fault][1]


def test_other_weights_after_a_restart_are_found_by_the_vectors_from_before(
    faulty: Faulty,
) -> None:
    """It ends the server of the tests before."""
    embedder = Embedder(faulty.folder, base_url=faulty.url)
    embedder.embed_query("a")
    faulty.process.terminate()
    faulty.process.wait(START_S)
    with faulty.having("other weights"), faulty.running():
        with pytest.raises(ServerMismatchError, match="other vectors than before"):
            embedder.embed_query("a")


# ---------------------------------------------------------------- the table


def _rows() -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table in the documentation."""
    for name, (what, found) in TABLE.items():
        outcome = "wrong vectors"
        if name == _ON_REQUEST:
            outcome = "the right vectors: emberd normalises them"
        elif found.before_use:
            outcome = "an error before the first text"
        elif found.reply:
            outcome = "an error for each request with such a text"
        elif found.printed:
            outcome = "an error before the first text, if similarities are printed"
        yield (what, *("found" if cell else "-" for cell in found), outcome)


def write() -> None:
    """Write the table to the documentation."""
    _DOCS.write(_rows())


def test_the_documentation_has_the_table() -> None:
    assert _DOCS.has(_rows())
