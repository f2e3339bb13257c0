"""The embedder: with a base URL, with a manager, with clients of the user's own."""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

import emberd
from emberd import Embedder, Endpoint, ServerSpec, model_card
from emberd.client import clients
from emberd.client.verify import verify
from emberd.errors import (
    AuthenticationError,
    BadReplyError,
    IdentityError,
    InstructionError,
    MissingKeyError,
    RejectedError,
    RequestTimeoutError,
    ServerMismatchError,
    ServerStoppedError,
    ServerUnavailableError,
    SettingError,
    TextError,
)
from emberd.manager import Server
from emberd.system import listeners
from fake_server import MODEL, QWEN, FakeServer, vector_of, vectors_of

TASK = "Given a web search query, retrieve relevant passages that answer the query"
QUERY = f"Instruct: {TASK}\nQuery:"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def embedder(server: FakeServer) -> Iterator[Embedder]:
    made = Embedder(MODEL, base_url=server.url, timeout=5, batch_size=4)
    yield made
    made.close()


class FakeManager:
    """Hands out a fake server, and notes what it is asked."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.asked: list[dict[str, Any]] = []
        self.uses: list[Server] = []
        self.suspicions: list[Server] = []
        self.on_lost: Exception | None = None

    def is_current(self, server: Server) -> bool:
        return True

    def ensure(self, spec: ServerSpec, **options: Any) -> Server:
        self.asked.append({"spec": spec, **options})
        if options["lost"] is not None and self.on_lost is not None:
            raise self.on_lost
        if not self.server.is_listening:
            self.server.revive()
        found = verify(self.server.url, None, spec, timeout_s=5)
        return Server(found, "own", "it runs", start_id="n", folder="f")

    def used(self, server: Server) -> None:
        self.uses.append(server)

    def report_unresponsive(self, server: Server) -> None:
        self.suspicions.append(server)


def _managed(server: FakeServer, **settings: Any) -> tuple[Embedder, FakeManager]:
    manager = FakeManager(server)
    return Embedder(MODEL, manager=manager, **{"timeout": 5, **settings}), manager  # type: ignore[arg-type]


def _embed(embedder: Embedder, twin: str, texts: list[str]) -> Any:
    if twin == "threads":
        return embedder.embed_documents(texts)
    return asyncio.run(embedder.aembed_documents(texts))


@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_a_client_that_ensure_made_reads_no_files_for_a_query(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, twin: str
) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    if twin == "threads":
        embedder.ensure()
    else:
        asyncio.run(embedder.aensure())
    _embed(embedder, twin, ["one"])
    monkeypatch.delattr(model_card, "describe")
    assert _embed(embedder, twin, ["two"]).shape == (1, 16)


# ---- vectors


def test_documents_and_queries_get_the_templates_of_their_role() -> None:
    with FakeServer(model=QWEN, dimensions=1024, context_tokens=32768) as server:
        embedder = Embedder(QWEN, base_url=server.url)
        documents = embedder.embed_documents(["a", "", "b"])
        assert (documents == vectors_of(["a", "", "b"], 1024)).all()
        assert (embedder.embed_query("a") == vector_of(f"{QUERY}a", 1024)).all()
        queries = embedder.embed_queries(["a", ""])
        assert (queries == vectors_of([f"{QUERY}a", QUERY], 1024)).all()
        embedder.close()


def test_shapes_and_dtype_are_those_of_the_interface(embedder: Embedder) -> None:
    assert embedder.embed_documents(["a", "b"]).shape == (2, 16)
    assert embedder.embed_queries(["a"]).shape == (1, 16)
    assert embedder.embed_query("a").shape == (16,)
    assert embedder.embed_query("a").dtype == np.float32


async def test_asynchronous_methods_give_the_same_vectors(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    assert (await embedder.aembed_documents(["a", "b"]) == vectors_of(["a", "b"])).all()
    assert (await embedder.aembed_queries(["a", "b"]) == vectors_of(["a", "b"])).all()
    assert (await embedder.aembed_query("a") == vector_of("a")).all()
    assert (await embedder.aensure()).endpoint.url == server.url
    await embedder.aclose()


def test_every_synchronous_method_has_an_asynchronous_twin() -> None:
    methods = {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(Embedder, inspect.isfunction)
        if not name.startswith("_")
        and name not in {"endpoint", "using", "replace", "check_identity"}
    }
    for name, signature in methods.items():
        is_twin = name.startswith(("ae", "ai")) or name == "aclose"
        twin = methods[name.removeprefix("a") if is_twin else f"a{name}"]
        assert list(twin.parameters) == list(signature.parameters), name
        if "iter" not in name:  # whose texts may be awaited too
            assert twin == signature, name


@pytest.mark.parametrize("none", [[], (), iter([])])
def test_no_texts_need_no_server(none: Any) -> None:
    embedder = Embedder(QWEN, base_url="http://127.0.0.1:9", dimensions=64)
    assert embedder.embed_documents(none).shape == (0, 64)


def test_an_error_names_the_callers_text(embedder: Embedder, server: FakeServer) -> None:
    with pytest.raises(TextError, match="Text 1 is of type int"):
        embedder.embed_documents(["a", 3])  # type: ignore[list-item]
    with pytest.raises(TextError, match="not a list of texts"):
        embedder.embed_documents("alone")
    for shown in (False, True):
        embedder = Embedder(MODEL, base_url=server.url, show_progress=shown)
        with pytest.raises(TextError, match="not a list of texts"):
            embedder.embed_documents(None)  # type: ignore[arg-type]
    assert server.requests == []


# ---- a base URL


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("missing", BadReplyError),
        ("doubled", BadReplyError),
        ("unindexed", BadReplyError),
        ("short", BadReplyError),
        ("nan", BadReplyError),
        ("html", BadReplyError),
        ("cut", BadReplyError),
        ("long_norm", BadReplyError),
        ("hang", RequestTimeoutError),
        ("drip", RequestTimeoutError),
        ("reset_late", ServerUnavailableError),
    ],
)
@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_a_wrong_reply_is_a_typed_error_and_never_a_vector(
    server: FakeServer, fault: str, kind: type[Exception], twin: str
) -> None:
    embedder = Embedder(MODEL, base_url=server.url, timeout=0.3)
    embedder.ensure()
    server.fault = fault
    with pytest.raises(kind):
        _embed(embedder, twin, ["a", "b", "c"])
    embedder.close()


def test_the_first_use_verifies_once_and_construction_does_nothing(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=f"{server.url}/v1")
    assert server.requests == []
    embedder.embed_query("a")
    embedder.embed_query("b")
    assert len(server.to("/v1/models")) == 1
    here = listeners.find(server.url)
    assert embedder.endpoint() == Endpoint(server.url, MODEL, 16, 1000, None, "sglang", here)
    assert embedder.ensure().origin == "given"
    embedder.close()


def test_another_model_at_the_base_url_is_a_mismatch(server: FakeServer) -> None:
    with pytest.raises(ServerMismatchError, match="serves test/model, but Qwen"):
        Embedder(QWEN, base_url=server.url).embed_query("a")


def test_nobody_at_the_base_url_starts_nothing() -> None:
    with pytest.raises(ServerUnavailableError, match="No response from http://127.0.0.1:9"):
        Embedder(MODEL, base_url="http://127.0.0.1:9").embed_query("a")


def test_a_given_server_that_goes_away_is_an_error(embedder: Embedder, server: FakeServer) -> None:
    embedder.embed_query("a")
    server.die()
    with pytest.raises(ServerUnavailableError, match="No response"):
        embedder.embed_query("b")


def test_a_wrong_key_is_an_authentication_error(server: FakeServer) -> None:
    server.api_key = "right"
    with pytest.raises(AuthenticationError) as caught:
        Embedder(MODEL, base_url=server.url, api_key="wrong-secret").embed_query("a")
    assert "secret" not in str(caught.value)
    right = Embedder(MODEL, base_url=server.url, api_key="right")
    assert right.embed_query("a").shape == (16,)
    right.close()


@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_a_given_server_that_was_swapped_for_another_model_is_a_mismatch(
    server: FakeServer, twin: str
) -> None:
    embedder = Embedder(MODEL, base_url=server.url)
    _embed(embedder, twin, ["a"])
    server.named = "other/model"
    with pytest.raises(ServerMismatchError, match="vectors of test/model before .* other/model"):
        _embed(embedder, twin, ["a"])
    server.named = None
    assert (_embed(embedder, twin, ["a"]) == vectors_of(["a"])).all()
    embedder.close()


# ---- a manager


@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_a_server_that_was_swapped_is_asked_for_again(server: FakeServer, twin: str) -> None:
    embedder, manager = _managed(server)
    _embed(embedder, twin, ["a"])
    server.named = "other/model"
    with FakeServer() as other:
        manager.server = other
        texts = [f"text {i}" for i in range(30)]
        assert (_embed(embedder, twin, texts) == vectors_of(texts)).all()
        assert embedder.ensure().endpoint.url == other.url
        embedder.close()
    assert len(manager.asked) == 2


class SlowManager(FakeManager):
    """Starts take until ``go``."""

    def __init__(self, server: FakeServer) -> None:
        super().__init__(server)
        self.begun = threading.Event()
        self.go = threading.Event()

    def ensure(self, spec: ServerSpec, **options: Any) -> Server:
        self.begun.set()
        assert self.go.wait(20)
        return super().ensure(spec, **options)


def test_cancelling_who_waits_for_a_start_returns_at_once_and_the_start_goes_on(
    server: FakeServer,
) -> None:
    manager = SlowManager(server)
    embedder = Embedder(MODEL, manager=manager)  # type: ignore[arg-type]

    async def give_up() -> None:
        waiters = [asyncio.create_task(embedder.aensure()) for _ in range(40)]
        await asyncio.to_thread(manager.begun.wait, 5)
        await asyncio.wait_for(asyncio.to_thread(lambda: None), 5)  # the executor is free
        for waiter in waiters:
            waiter.cancel()
        assert all(
            isinstance(result, asyncio.CancelledError)
            for result in await asyncio.gather(*waiters, return_exceptions=True)
        )

    asyncio.run(give_up())  # would wait for threads of the loop's executor
    assert not manager.go.is_set()

    async def wait_again() -> Server:
        waiter = asyncio.create_task(embedder.aensure())
        await asyncio.sleep(0)
        manager.go.set()
        return await waiter

    assert asyncio.run(wait_again()).endpoint.url == server.url
    assert len(manager.asked) == 1


def test_an_event_loop_never_waits_for_a_start_of_another_thread(server: FakeServer) -> None:
    """The server stopped, and a heal in a thread holds the lock for as long as a start takes."""
    embedder, manager = _managed(server)
    embedder.ensure()
    manager.is_current = lambda server: False  # type: ignore[method-assign]
    turns = 0

    async def use() -> None:
        nonlocal turns
        waiter = asyncio.create_task(embedder.aensure())
        for _ in range(5):
            await asyncio.sleep(0)
            turns += 1
        embedder._handle._lock.release()
        await waiter

    assert embedder._handle._lock.acquire()
    asyncio.run(use())
    assert turns == 5
    assert len(manager.asked) == 2


def test_a_server_is_asked_for_once_in_a_process(server: FakeServer) -> None:
    embedder, manager = _managed(server, start_timeout=7, idle_timeout=None, device="cpu")
    start = threading.Barrier(5)

    def use() -> None:
        start.wait()
        embedder.embed_query("a")

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(embedder.aembed_query("a"))
    assert len(manager.asked) == 1
    asked = manager.asked[0]
    assert asked["spec"] == ServerSpec(model=MODEL, device="cpu")
    assert (asked["start_timeout"], asked["idle_timeout"], asked["lost"]) == (7, None, None)
    embedder.close()


async def test_many_first_uses_at_once_ask_once(server: FakeServer) -> None:
    embedder, manager = _managed(server)
    await asyncio.gather(*(embedder.aembed_query(f"{i}") for i in range(40)))
    assert len(manager.asked) == 1


def test_use_and_suspicion_are_reported(server: FakeServer) -> None:
    embedder, manager = _managed(server, timeout=0.2)
    embedder.embed_query("a")
    assert manager.uses == [embedder.ensure()]
    server.fault = "hang"
    with pytest.raises(RequestTimeoutError):
        embedder.embed_query("a")
    assert set(map(id, manager.suspicions)) == {id(embedder.ensure())}
    embedder.close()


@pytest.mark.parametrize("twin", ["threads", "tasks"])
def test_a_server_that_vanishes_is_asked_for_again(server: FakeServer, twin: str) -> None:
    embedder, manager = _managed(server)
    before = embedder.ensure()
    server.die()
    texts = [f"text {i}" for i in range(30)]
    assert (_embed(embedder, twin, texts) == vectors_of(texts)).all()
    assert [asked["lost"] for asked in manager.asked] == [None, before]
    assert embedder.ensure().endpoint.url == server.url
    embedder.close()


def test_several_jobs_heal_one_server_once(server: FakeServer) -> None:
    embedder, manager = _managed(server)
    embedder.ensure()
    server.die()
    start = threading.Barrier(4)
    right: list[bool] = []

    def use(number: int) -> None:
        texts = [f"{number} {i}" for i in range(10)]
        start.wait()
        right.append(bool((embedder.embed_documents(texts) == vectors_of(texts)).all()))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4
    assert len(manager.asked) == 2
    embedder.close()


def test_a_server_that_a_person_stopped_ends_the_job_and_the_next_job_starts_it(
    server: FakeServer,
) -> None:
    embedder, manager = _managed(server)
    embedder.ensure()
    manager.on_lost = ServerStoppedError("stopped by hand")
    server.die()
    with pytest.raises(ServerStoppedError):
        embedder.embed_documents(["a"])
    assert (embedder.embed_documents(["a"]) == vectors_of(["a"])).all()
    assert manager.asked[-1]["lost"] is None
    embedder.close()


# ---- clients of the user's own


def test_a_handed_in_client_decides_where_the_server_is(server: FakeServer) -> None:
    with openai.OpenAI(api_key="theirs", base_url=f"{server.url}/v1") as client:
        server.api_key = "theirs"
        embedder = Embedder(MODEL, client=client)
        assert (embedder.embed_query("a") == vector_of("a")).all()
        assert embedder.ensure().endpoint.dimensions == 16
        assert "given client" in embedder.ensure().reason
        with pytest.raises(SettingError, match="needs async_client="):
            asyncio.run(embedder.aembed_query("a"))


async def test_a_handed_in_asynchronous_client_likewise(server: FakeServer) -> None:
    async with openai.AsyncOpenAI(api_key="theirs", base_url=f"{server.url}/v1") as client:
        server.api_key = "theirs"
        embedder = Embedder(MODEL, async_client=client)
        assert (await embedder.aembed_query("a") == vector_of("a")).all()
        with pytest.raises(SettingError, match="needs client="):
            embedder.embed_query("a")


def test_clients_that_lead_to_different_servers_are_refused(server: FakeServer) -> None:
    here = openai.OpenAI(api_key="k", base_url=f"{server.url}/v1")
    there = openai.AsyncOpenAI(api_key="k", base_url="http://127.0.0.1:9/v1")
    for settings in (
        {"client": here, "async_client": there},
        {"client": here, "base_url": "http://127.0.0.1:9"},
    ):
        with pytest.raises(SettingError, match="different addresses: http"):
            Embedder(MODEL, **settings)  # type: ignore[arg-type]
    assert Embedder(MODEL, client=here, base_url=server.url).settings.base_url == server.url
    here.close()
    asyncio.run(there.close())


# ---- dimensions


def test_cutting_an_untrained_model_warns_once_at_first_use(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url, dimensions=4)
    with pytest.warns(UserWarning, match="test/model was not trained so that"):
        embedder.embed_query("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert embedder.embed_query("a").shape == (4,)
        assert asyncio.run(embedder.aembed_query("a")).shape == (4,)
    embedder.close()


@pytest.mark.parametrize("dimensions", [32, 1024, None])
def test_cutting_a_trained_model_does_not_warn(dimensions: int | None) -> None:
    with FakeServer(model=QWEN, dimensions=1024) as server:
        embedder = Embedder(QWEN, base_url=server.url, dimensions=dimensions)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert embedder.embed_query("a").shape == (dimensions or 1024,)
        embedder.close()


# ---- pickles, printing, identity


def _again(embedder: Embedder) -> Embedder:
    data = pickle.dumps(embedder)
    assert b"secret" not in data
    again: Embedder = pickle.loads(data)
    return again


def test_a_pickle_attaches_again_on_the_other_side(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url, query_instruction="<{text}>")
    embedder.embed_query("a")
    asyncio.run(embedder.aembed_query("a"))
    again = _again(embedder)
    assert again.settings == embedder.settings
    assert (again.embed_query("a") == vector_of("<a>")).all()
    for each in (again, embedder):
        each.close()


def test_a_pickle_carries_no_key_and_takes_one_from_the_environment(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.api_key = "secret"
    embedder = Embedder(MODEL, base_url=server.url, api_key="secret")
    lost = _again(embedder)
    with pytest.raises(MissingKeyError, match="Set EMBERD_API_KEY where it is unpickled"):
        lost.embed_query("a")
    with pytest.raises(MissingKeyError):
        asyncio.run(lost.aembed_query("a"))
    monkeypatch.setenv("EMBERD_API_KEY", "secret")
    found = _again(embedder)
    assert found.embed_query("a").shape == (16,)
    found.close()


def test_a_pickle_of_a_pickle_still_knows_that_its_key_was_lost(server: FakeServer) -> None:
    embedder = Embedder(MODEL, base_url=server.url, api_key="secret")
    with pytest.raises(MissingKeyError):
        _again(_again(embedder)).embed_query("a")


def test_a_pickle_of_one_with_a_client_names_the_missing_key(server: FakeServer) -> None:
    with openai.OpenAI(api_key="secret", base_url=f"{server.url}/v1") as client:
        with pytest.raises(MissingKeyError, match=server.url):
            _again(Embedder(MODEL, client=client)).embed_query("a")


def test_a_managed_pickle_needs_no_key() -> None:
    again = _again(Embedder(MODEL, api_key="secret"))
    assert again.settings.base_url is None
    assert not again._handle.key_is_missing


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_shares_the_key_the_server_and_the_connections(
    server: FakeServer, copied: Any
) -> None:
    server.api_key = "secret"
    embedder = Embedder(MODEL, base_url=server.url, api_key="secret")
    embedder.ensure()
    asked = len(server.requests)
    twin = copied(embedder)
    assert twin.settings == embedder.settings
    assert (twin.embed_query("a") == vector_of("a")).all()
    assert len(server.requests) == asked + 1
    twin.close()
    embedder.close()


def test_printing_shows_what_was_set_and_no_secret() -> None:
    embedder = Embedder("a/b", base_url="http://host:1/v1", api_key="secret", dimensions=8)
    assert repr(embedder) == "Embedder(model='a/b', dimensions=8, base_url='http://host:1')"


def test_an_embedder_knows_its_own_index_and_no_other() -> None:
    embedder = Embedder(MODEL, dimensions=8, query_instruction="<{text}>", api_key="secret")
    embedder.check_identity(embedder.identity)
    assert Embedder(MODEL, batch_size=3, timeout=9).identity == Embedder(MODEL).identity
    with pytest.raises(IdentityError):
        embedder.check_identity(Embedder(MODEL).identity)


def test_construction_checks_everything() -> None:
    with pytest.raises(InstructionError):
        Embedder(query_instruction="Instruct: mine\nQuery:")
    with pytest.raises(SettingError, match="dimensions=31"):
        Embedder(dimensions=31)
    with pytest.raises(TypeError):
        Embedder(batchsize=3)  # type: ignore[call-arg]


def test_progress_is_shown_where_it_is_wanted(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"text {i}" for i in range(20)]
    shown = Embedder(MODEL, base_url=server.url, show_progress=True)
    assert (shown.embed_documents(iter(texts)) == vectors_of(texts)).all()
    shown.close()
    output = capsys.readouterr()
    assert "embedding" in output.err
    assert output.out == ""


# ---- forks and processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_its_parents_lock(server: FakeServer) -> None:
    """As under gunicorn's preload, when another thread asks for the server at the fork."""
    embedder, _ = _managed(server)
    with embedder._handle._lock:
        pid = os.fork()
        if pid == 0:
            try:
                right = (embedder.embed_query("a") == vector_of("a")).all()
                os._exit(0 if right else 3)
            finally:
                os._exit(4)
        killer = threading.Timer(20, os.kill, (pid, 9))
        killer.start()
        _, status = os.waitpid(pid, 0)
        killer.cancel()
    assert os.waitstatus_to_exitcode(status) == 0


def test_rejections_reach_the_caller(embedder: Embedder, server: FakeServer) -> None:
    embedder.ensure()
    server.answer_first(400)
    with pytest.raises(RejectedError):
        embedder.embed_query("a")


_PUBLIC = """
import sys, emberd
late = {'numpy', 'openai', 'filelock', 'psutil', 'rich', 'emberd.manager', 'emberd.client'}
print(sorted(late & {*sys.modules}))
emberd.Embedder()
print(sorted({'numpy', 'openai', 'filelock', 'psutil', 'rich'} & {*sys.modules}))
"""


def test_importing_and_constructing_import_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PUBLIC],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")


def test_public_names_exist_and_others_do_not() -> None:
    for name in emberd.__all__:
        assert getattr(emberd, name) is not None
        assert name in dir(emberd)
    assert emberd.Embedder is Embedder
    assert emberd.Endpoint is Endpoint
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = emberd.Nothing


@pytest.mark.parametrize("kind", [clients.Client, clients.AsyncClient])
async def test_client_made_while_the_settings_are_completed_has_them(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, or another task."""
    embedder = Embedder(QWEN, base_url="http://127.0.0.1:9")
    made = kind.__init__

    def slow(self: Any, *args: Any, **settings: Any) -> None:
        made(self, *args, **settings)
        embedder._check()

    monkeypatch.setattr(kind, "__init__", slow)
    is_async = kind is clients.AsyncClient
    client = await embedder._aclient() if is_async else embedder._client()
    assert client._settings is embedder.settings
