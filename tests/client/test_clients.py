"""What a call of ``embed`` gives, through threads and through tasks."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from embedding import KINDS, QUICK, Kind, embed
from emberd.client.lengths import GATEWAY
from emberd.client.retry import RetryPolicy
from emberd.client.vectors import Floats
from emberd.endpoint import Endpoint
from emberd.errors import (
    AuthenticationError,
    BadReplyError,
    PoisonTextError,
    RejectedError,
    RequestTimeoutError,
    ServerUnavailableError,
    SettingError,
    TextError,
    TextTooLongError,
)
from fake_server import END_OF_TEXT, QWEN, FakeServer, tokenize, vector_of, vectors_of

pytestmark = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def _texts(count: int) -> list[str]:
    """Texts of very different lengths, in no order."""
    return [f"text {number} " + "x" * (number * 131 % 300) for number in range(count)]


# ---- vectors


def test_vectors_come_in_the_callers_order(kind: Kind, server: FakeServer) -> None:
    texts = _texts(150)
    vectors = embed(kind, server.endpoint, texts, batch_size=8)
    assert vectors.dtype == np.float32
    assert (vectors == vectors_of(texts)).all()


def test_the_template_is_put_around_each_text(kind: Kind, server: FakeServer) -> None:
    vectors = embed(kind, server.endpoint, ["a", "b"], template="<{text}>\n")
    assert (vectors == vectors_of(["<a>\n", "<b>\n"])).all()


def test_equal_texts_get_equal_vectors(kind: Kind, server: FakeServer) -> None:
    assert (embed(kind, server.endpoint, ["a"] * 5) == vector_of("a")).all()


def test_no_texts_need_no_server(kind: Kind) -> None:
    nowhere = Endpoint("http://127.0.0.1:9", "m", 16)
    assert embed(kind, nowhere, [], dimensions=8).shape == (0, 8)
    assert embed(kind, nowhere, [], model=QWEN).shape == (0, 1024)


def test_vectors_are_cut_here_and_whole_ones_are_fetched(kind: Kind, server: FakeServer) -> None:
    cut = embed(kind, server.endpoint, ["a"], dimensions=4)
    assert "dimensions" not in server.to("/v1/embeddings")[0].body
    head = vector_of("a")[:4].astype(np.float64)
    assert cut[0] == pytest.approx(head / np.linalg.norm(head), abs=1e-7)


@pytest.mark.parametrize("knob", ["nothing", "ignores_dimensions", "cuts_without_normalising"])
def test_a_server_that_is_to_cut_gives_the_same_vectors(
    kind: Kind, server: FakeServer, knob: str
) -> None:
    setattr(server, knob, True)
    texts = _texts(3)
    there = embed(kind, server.endpoint, texts, dimensions=4, server_dimensions=True)
    assert server.to("/v1/embeddings")[0].body["dimensions"] == 4
    assert there == pytest.approx(embed(kind, server.endpoint, texts, dimensions=4), abs=1e-6)


def test_more_dimensions_than_there_are_is_an_error(kind: Kind, server: FakeServer) -> None:
    with pytest.raises(SettingError, match="Ask for at most 16"):
        embed(kind, server.endpoint, ["a"], dimensions=17)


def test_server_that_ignores_base64_is_supported(kind: Kind, server: FakeServer) -> None:
    server.floats = True
    assert embed(kind, server.endpoint, ["a"]) == pytest.approx(vectors_of(["a"]), abs=1e-7)
    assert server.to("/v1/embeddings")[0].body["encoding_format"] == "base64"


# ---- requests


def test_batches_are_bounded(kind: Kind, server: FakeServer) -> None:
    embed(kind, server.endpoint, _texts(50), batch_size=8)
    assert max(len(inputs) for inputs in server.embedded) == 8


def test_requests_in_flight_are_several_and_bounded(kind: Kind, server: FakeServer) -> None:
    server.overlap = 3
    embed(kind, server.endpoint, _texts(40), batch_size=2, max_concurrency=3)
    assert server.most_in_flight <= 3


def test_progress_counts_up_to_all(kind: Kind, server: FakeServer) -> None:
    seen: list[int] = []
    embed(kind, server.endpoint, _texts(50), batch_size=8, on_done=seen.append)
    assert seen[-1] == 50
    assert all(before <= after for before, after in pairwise(seen))


def test_an_error_of_the_progress_callback_is_raised(kind: Kind, server: FakeServer) -> None:
    def fail(finished: int) -> None:
        raise LookupError(finished)

    with pytest.raises(LookupError):
        embed(kind, server.endpoint, _texts(50), batch_size=8, on_done=fail)


class _Kept:
    """A cache that is empty and records what it is given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def recall(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.bool_], Floats]:
        return np.zeros(len(texts), bool), np.empty((0, 16), np.float32)

    def keep(self, texts: Sequence[str], vectors: Floats) -> None:
        self.texts += texts


def test_vectors_are_cached_before_progress_is_reported(kind: Kind, server: FakeServer) -> None:
    kept = _Kept()

    def fail(finished: int) -> None:
        if finished:
            raise LookupError(finished)

    with pytest.raises(LookupError) as raised:
        embed(
            kind, server.endpoint, _texts(8), batch_size=8, on_done=fail, callbacks={"cache": kept}
        )
    assert raised.value.args == (8,)
    assert len(kept.texts) == 8


def test_use_is_reported_after_each_answer(kind: Kind, server: FakeServer) -> None:
    uses: list[Endpoint] = []
    embed(kind, server.endpoint, _texts(9), batch_size=3, callbacks={"on_use": uses.append})
    assert uses == [server.endpoint] * 3


def test_the_servers_own_name_for_the_model_is_sent(kind: Kind, server: FakeServer) -> None:
    server.model = "served-name"
    embed(kind, server.endpoint, ["a"])
    assert server.to("/v1/embeddings")[0].body["model"] == "served-name"


# ---- wrong answers: never a vector

FAULTS = {
    "missing": "vectors for",
    "doubled": "vectors for|two vectors",
    "unindexed": "index None",
    "short": "15 dimensions instead of 16",
    "nan": "NaN",
    "infinite": "NaN or infinity",
    "long_norm": "norm 3",
    "zero": "norm 0",
    "no_base64": "neither base64",
    "odd_bytes": "neither base64",
    "words": "nor a list of numbers",
    "garbled": "cannot be unpacked",
    "html": "page of HTML",
    "cut": "breaks off",
    "text": "not JSON",
    "no_data": "without a list of vectors",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("count", [1, 5])
def test_a_wrong_reply_is_a_typed_error(
    kind: Kind, server: FakeServer, fault: str, count: int
) -> None:
    server.fault = fault
    with pytest.raises(BadReplyError, match=FAULTS[fault]):
        embed(kind, server.endpoint, _texts(count))
    assert len(server.embedded) == 1, "a wrong reply is not asked for again"


def test_vectors_in_another_order_are_put_in_order_by_index(kind: Kind, server: FakeServer) -> None:
    server.fault = "reordered"
    texts = _texts(5)
    assert (embed(kind, server.endpoint, texts) == vectors_of(texts)).all()


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_an_answer_that_takes_for_ever_is_a_timeout(
    kind: Kind, server: FakeServer, fault: str
) -> None:
    server.fault = fault
    timeouts: list[Endpoint] = []
    with pytest.raises(RequestTimeoutError, match="Raise timeout="):
        embed(kind, server.endpoint, ["a"], timeout=0.2, callbacks={"on_timeout": timeouts.append})
    assert timeouts == [server.endpoint] * QUICK.timeout_tries
    assert len(server.embedded) == QUICK.timeout_tries


def test_a_gateway_that_hangs_is_a_timeout_as_soon_as_any_server(
    kind: Kind, server: FakeServer
) -> None:
    """Whether it starts a server again or hangs cannot be told from its silence."""
    server.fault = "hang"
    gateway = replace(server.endpoint, server=GATEWAY)
    with pytest.raises(RequestTimeoutError):
        embed(kind, gateway, ["a"], timeout=0.2, start_timeout=2.0)
    assert len(server.embedded) == QUICK.timeout_tries


@pytest.mark.parametrize("fault", ["reset", "reset_late"])
def test_a_connection_that_breaks_off_is_tried_again_and_then_an_error(
    kind: Kind, server: FakeServer, fault: str
) -> None:
    server.fault = fault
    with pytest.raises(ServerUnavailableError, match="No response from .* after 3 tries"):
        embed(kind, server.endpoint, ["a"])
    assert len(server.embedded) == 3


def test_nobody_there_is_an_error_that_says_what_to_do(kind: Kind) -> None:
    with pytest.raises(ServerUnavailableError, match="Start the server there, correct base_url"):
        embed(kind, Endpoint("http://127.0.0.1:9", "m", 16), ["a"])


# ---- refusals and retries


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_passes_is_waited_out(kind: Kind, server: FakeServer, status: int) -> None:
    server.answer_first(status)
    assert (embed(kind, server.endpoint, ["a"]) == vectors_of(["a"])).all()
    assert len(server.embedded) == 2


def test_retry_after_is_waited_for(kind: Kind, server: FakeServer) -> None:
    server.answer_first(503, retry_after="100000")
    embed(kind, server.endpoint, ["a"], policy=RetryPolicy(first_s=0, longest_retry_after_s=0.3))
    server.answer_first(503, retry_after="100000")
    with pytest.raises(ServerUnavailableError, match="answered 503"):
        embed(kind, server.endpoint, ["a"], policy=RetryPolicy(busy_s=1))


def test_a_server_that_stays_busy_is_an_error(kind: Kind, server: FakeServer) -> None:
    server.answer_first(*[503] * 10_000)
    with pytest.raises(ServerUnavailableError, match=r"answered 503 \(try later\) to \d+ tries"):
        embed(kind, server.endpoint, ["a"], policy=RetryPolicy(first_s=0.001, busy_s=0.05))


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refusal_is_never_repeated(kind: Kind, server: FakeServer, status: int) -> None:
    server.answer_first(status)
    with pytest.raises(RejectedError, match=f"status {status}: try later") as caught:
        embed(kind, server.endpoint, ["a", "b"])
    assert caught.value.status == status
    assert len(server.embedded) == 1


def test_text_that_is_too_large_for_a_request_is_named(kind: Kind, server: FakeServer) -> None:
    server.answer_first(413)
    with pytest.raises(TextTooLongError) as caught:
        embed(kind, server.endpoint, ["a", "b" * 40], batch_size=1, max_concurrency=1)
    assert caught.value.index == 1  # the longest is sent first
    assert len(server.embedded) == 1


def test_a_redirect_is_not_followed(kind: Kind, server: FakeServer) -> None:
    server.answer_first(307, location="http://127.0.0.1:9/v1/embeddings")
    with pytest.raises(RejectedError, match="Redirects are not followed"):
        embed(kind, server.endpoint, ["a"])


def test_a_wrong_key_is_an_authentication_error(kind: Kind, server: FakeServer) -> None:
    server.api_key = "right"
    assert embed(kind, server.endpoint, ["a"]).shape == (1, 16)
    wrong = Endpoint(server.url, server.model, 16, api_key="mistyped")
    with pytest.raises(AuthenticationError, match="EMBERD_API_KEY") as caught:
        embed(kind, wrong, ["a"])
    assert "mistyped" not in str(caught.value)


def test_the_first_error_ends_the_call_and_cancels_what_has_not_begun(
    kind: Kind, server: FakeServer
) -> None:
    server.latency_s = 0.02
    server.answer_first(400)
    with pytest.raises(RejectedError):
        embed(kind, server.endpoint, _texts(200), batch_size=1, max_concurrency=2)
    assert len(server.embedded) <= 6


# ---- blank and over-long texts


def test_blank_texts_are_sent_as_their_token_ids(kind: Kind) -> None:
    texts = ["a", "", "b", "\n", "\x1c", "\u2028", "\u200b", "\n"]
    with FakeServer(model=QWEN, dimensions=1024) as server:
        vectors = embed(kind, server.endpoint, texts, model=QWEN)
        assert (vectors == vectors_of(texts, 1024)).all()
        assert ["a", "b", "\u200b"] in map(sorted, server.embedded)
        assert [END_OF_TEXT] in [given for batch in server.embedded for given in batch]
        # Equal ones are tokenized once.
        assert len(server.to("/v1/tokenize")) == 3


def test_white_space_needs_no_known_end_of_text_token(kind: Kind, server: FakeServer) -> None:
    texts = ["a", " ", "\t" * 990]
    assert (embed(kind, server.endpoint, texts) == vectors_of(texts)).all()


def test_an_empty_text_of_another_model_is_named_before_anything_is_sent(
    kind: Kind, server: FakeServer
) -> None:
    with pytest.raises(TextError, match="Text 1 is empty") as caught:
        embed(kind, server.endpoint, ["a", ""])
    assert caught.value.index == 1
    assert server.requests == []


def test_white_space_that_is_too_long_is_cut_or_named(kind: Kind) -> None:
    texts = ["a", " " * 1500, " " * 1500]
    with FakeServer(model=QWEN, dimensions=1024) as server:
        with pytest.raises(TextTooLongError) as caught:
            embed(kind, server.endpoint, texts, model=QWEN)
        assert (caught.value.index, caught.value.tokens) == (1, 1501)
        vectors = embed(kind, server.endpoint, texts, model=QWEN, truncate=True)
        assert (vectors == vectors_of(["a", " " * 998, " " * 998], 1024)).all()


@pytest.mark.parametrize("status", [404, 403])
def test_white_space_is_named_where_the_tokenizer_cannot_be_asked(
    kind: Kind, server: FakeServer, status: int
) -> None:
    server.closed = {"/v1/tokenize": status}
    with pytest.raises(TextError, match=r"Text 1 is blank \('\\n'\)") as caught:
        embed(kind, server.endpoint, ["a", "\n", " "])
    assert caught.value.index == 1
    assert server.embedded == []


def test_white_space_is_sent_as_the_server_after_a_death_takes_it(
    kind: Kind, server: FakeServer
) -> None:
    """The first takes it as a text, the second does not."""
    texts = ["a", " ", "DIE", "\n"]
    server.deadly = "DIE"
    first = replace(server.endpoint, server="vllm")

    def reconnect(endpoint: Endpoint) -> Endpoint:
        server.deadly = None
        return server.revive()

    vectors = embed(kind, first, texts, reconnect=reconnect)
    assert (vectors == vectors_of(texts)).all()
    assert ["a", " ", "DIE", "\n"] not in server.embedded[1:]


# ---- what the server says that it read


def test_a_reply_for_other_tokens_than_those_that_were_sent_is_refused(
    kind: Kind, server: FakeServer
) -> None:
    server.usage_off_by = -1
    texts = ["z" * 998, "y" * 997]
    with pytest.raises(BadReplyError, match=f"read {998 + 999 - 1} tokens, but the 2 texts"):
        embed(kind, server.endpoint, texts)
    with pytest.raises(BadReplyError, match=r"read 1 tokens.*have 2"):
        embed(kind, server.endpoint, [" "])
    # Of one of them it is not known how many it has.
    assert embed(kind, server.endpoint, ["a", "z" * 998]).shape == (2, 16)
    server.usage_off_by = 0
    assert (embed(kind, server.endpoint, texts) == vectors_of(texts)).all()


def test_an_error_shows_the_text_as_the_caller_gave_it(kind: Kind) -> None:
    with FakeServer(model=QWEN, dimensions=1024, context_tokens=20, deadly="é") as server:
        with pytest.raises(TextTooLongError) as caught:
            embed(kind, server.endpoint, ["a", "e\u0301" * 10], model=QWEN)
        assert (caught.value.index, caught.value.tokens) == (1, 21)
        with pytest.raises(PoisonTextError) as poison:
            embed(
                kind,
                server.endpoint,
                ["a", "e\u0301"],
                model=QWEN,
                reconnect=lambda _: server.revive(),
            )
        assert poison.value.index == 1
        assert "e\u0301" in str(poison.value)


def test_an_over_long_text_is_named_before_anything_is_embedded(
    kind: Kind, server: FakeServer
) -> None:
    texts = [*_texts(20), "y" * 1500, *_texts(20)]
    with pytest.raises(
        TextTooLongError, match=r"Text 20 \(.*\) has 1501 tokens, 999 are"
    ) as caught:
        embed(kind, server.endpoint, texts, batch_size=4)
    assert (caught.value.index, caught.value.tokens, caught.value.limit) == (20, 1501, 999)
    assert server.embedded == []


@pytest.mark.parametrize(("length", "fits"), [(998, True), (999, False)])
def test_the_limit_is_one_less_than_the_context(
    kind: Kind, server: FakeServer, length: int, fits: bool
) -> None:
    """SGLang refuses a text of exactly as many tokens as its context."""
    texts = ["z" * length]
    if fits:
        assert (embed(kind, server.endpoint, texts) == vectors_of(texts)).all()
        return
    with pytest.raises(TextTooLongError):
        embed(kind, server.endpoint, texts)


def test_texts_that_cannot_be_too_long_are_not_counted(kind: Kind, server: FakeServer) -> None:
    embed(kind, server.endpoint, [*_texts(20), "w" * 997])
    assert len(server.to("/v1/tokenize")) == 1


def test_a_cut_text_keeps_its_end_of_text_token(kind: Kind) -> None:
    with FakeServer(model=QWEN, dimensions=1024) as server:
        texts = ["short", "y" * 1500, "z" * 2000]
        vectors = embed(kind, server.endpoint, texts, model=QWEN, truncate=True)
        assert (vectors == vectors_of(["short", "y" * 998, "z" * 998], 1024)).all()
        sent = [given for inputs in server.embedded for given in inputs if given != "short"]
        assert sorted(sent) == [tokenize("y" * 998), tokenize("z" * 998)]


def test_a_text_of_a_model_without_known_end_cannot_be_cut(kind: Kind, server: FakeServer) -> None:
    with pytest.raises(TextTooLongError, match="end-of-text token of test/model is not known"):
        embed(kind, server.endpoint, ["y" * 1500], truncate=True)


@pytest.mark.parametrize(
    ("truncate", "advice"), [(False, "Split it."), (True, "this server has no /v1/tokenize route")]
)
def test_without_a_tokenizer_route_the_servers_refusal_names_the_callers_text(
    kind: Kind, server: FakeServer, truncate: bool, advice: str
) -> None:
    server.has_tokenizer = False
    texts = _texts(60)
    texts[37] = "y" * 1500
    with pytest.raises(TextTooLongError, match=advice) as caught:
        embed(kind, server.endpoint, texts, batch_size=16, truncate=truncate)
    assert (caught.value.index, caught.value.tokens, caught.value.limit) == (37, 1501, 999)


def test_without_a_tokenizer_route_long_texts_that_fit_are_embedded(
    kind: Kind, server: FakeServer
) -> None:
    server.has_tokenizer = False
    texts = ["w" * 998, "v" * 998]
    assert (embed(kind, server.endpoint, texts, truncate=True) == vectors_of(texts)).all()


@pytest.mark.parametrize("status", [401, 403])
def test_a_closed_tokenizer_route_counts_as_missing(
    kind: Kind, server: FakeServer, status: int
) -> None:
    server.closed = {"/v1/tokenize": status}
    states_less = Endpoint(server.url, server.model, 16, context_tokens=500)
    texts = ["a", "y" * 900]
    assert (embed(kind, states_less, texts, truncate=True) == vectors_of(texts)).all()
    assert server.to("/v1/tokenize")
    with pytest.raises(TextTooLongError, match="no /v1/tokenize route"):
        embed(kind, states_less, ["y" * 1500], truncate=True)


def test_a_server_whose_real_limit_is_lower_than_it_states(kind: Kind, server: FakeServer) -> None:
    told = Endpoint(server.url, server.model, 16, context_tokens=5000)
    texts = [*_texts(9), "y" * 1500]
    with pytest.raises(TextTooLongError, match="truncate=True to cut") as caught:
        embed(kind, told, texts)
    assert caught.value.index == 9


# ---- all at once


def test_texts_of_any_mixture_come_out_right(kind: Kind) -> None:
    """Lengths, blanks, cuts and faults that pass, all at once, in random order."""
    chance = random.Random(11)
    texts = [
        chance.choice(["", "\t", "é" * chance.randint(1, 40), "y" * chance.randint(990, 1200)])
        for _ in range(120)
    ]
    with FakeServer(model=QWEN, dimensions=1024) as server:
        server.answer_first(503, 429, 500)
        vectors = embed(kind, server.endpoint, texts, model=QWEN, truncate=True, batch_size=7)
    assert (vectors == vectors_of([text[:998] for text in texts], 1024)).all()
