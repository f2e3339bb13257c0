from __future__ import annotations

import json
from typing import Any

import pytest

from emberd.client.wire import (
    Outcome,
    Reply,
    ServerLost,
    TooLong,
    TransportError,
    body_or_failure,
    embed_request,
    message,
)
from emberd.errors import (
    AuthenticationError,
    RejectedError,
    RequestTimeoutError,
    ServerUnavailableError,
)

URL = "http://host:1"


def _judged(status: int, body: Any) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return body_or_failure(Outcome(Reply(status, raw), tries=2, seconds=1.5), URL)


def _flat(text: str) -> dict[str, Any]:
    return {"object": "error", "message": text, "type": "BadRequestError", "code": 400}


def test_base64_is_asked_for_and_dimensions_only_where_wanted() -> None:
    assert embed_request("m", ["a"], None).body == {
        "model": "m",
        "input": ["a"],
        "encoding_format": "base64",
    }
    assert (embed_request("m", [[7]], 32).body or {})["dimensions"] == 32


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (_flat("flat as SGLang's"), "flat as SGLang's"),
        ({"error": {"message": "nested as vLLM's", "code": 400}}, "nested as vLLM's"),
        ({"error": "Unauthorized"}, "Unauthorized"),
        ({"detail": "Not Found"}, "Not Found"),
        (b"<h1>nginx</h1>\n  502", "<h1>nginx</h1> 502"),
        (b"", "no reason given"),
        ({"error": {"code": 5}}, "{'code': 5}"),
    ],
)
def test_a_servers_reason_is_found_in_whichever_form(body: Any, said: str) -> None:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert message(raw) == said


@pytest.mark.parametrize(
    ("status", "kind", "advice"),
    [
        (400, RejectedError, "same request would fail again"),
        (404, RejectedError, "Correct base_url"),
        (413, RejectedError, "Lower batch_size"),
        (422, RejectedError, "same request would fail again"),
        (307, RejectedError, "Redirects are not followed"),
        (500, RejectedError, "server's log"),
        (401, AuthenticationError, "EMBERD_API_KEY"),
        (403, AuthenticationError, "EMBERD_API_KEY"),
        (429, ServerUnavailableError, "lower max_concurrency"),
        (502, ServerUnavailableError, "try later"),
        (503, ServerUnavailableError, "try later"),
        (504, ServerUnavailableError, "try later"),
    ],
)
def test_each_status_is_an_error_of_its_kind(
    status: int, kind: type[Exception], advice: str
) -> None:
    error = _judged(status, _flat("because"))
    assert type(error) is kind
    assert URL in str(error)
    assert "because" in str(error)
    assert advice in str(error)
    assert getattr(error, "status", status) == status


@pytest.mark.parametrize(
    ("status", "text", "tokens", "limit"),
    [
        (
            400,
            "The input (40000 tokens) is longer than the model's context length (32768 tokens).",
            40000,
            32767,
        ),
        (
            400,
            "Input length (9 tokens) exceeds the maximum allowed length (8 tokens).",
            9,
            7,
        ),
        (
            400,
            "This model's maximum context length is 512 tokens. However, you requested 600 tokens",
            600,
            512,
        ),
        (500, "input is too large to process. increase the physical batch size", None, None),
        (
            400,
            "request (48002 tokens) exceeds the available context size (8192 tokens)",
            48_002,
            8192,
        ),
    ],
)
def test_a_refusal_for_length_is_recognised(
    status: int, text: str, tokens: int | None, limit: int | None
) -> None:
    assert _judged(status, _flat(text)) == TooLong(tokens, limit)


def test_a_good_reply_is_its_body() -> None:
    assert _judged(200, b"body") == b"body"


def test_no_answer_in_time_is_a_timeout_that_says_what_to_do() -> None:
    error = body_or_failure(Outcome(TransportError("timeout", "read"), tries=1, seconds=7), URL)
    assert isinstance(error, RequestTimeoutError)
    assert "7 s in one try" in str(error)
    assert "Raise timeout=" in str(error)


@pytest.mark.parametrize("reached", [True, False])
def test_nobody_there_means_the_server_is_gone(reached: bool) -> None:
    gone = body_or_failure(Outcome(TransportError("refused", "refused"), 3, 1, reached), URL)
    assert isinstance(gone, ServerLost)
    assert gone.reached is reached
    assert "No response from http://host:1 after 3 tries" in str(gone.error)
    assert "let emberd start one" in str(gone.error)
