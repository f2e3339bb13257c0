"""What the server refuses, with SGLang's status codes, shapes and wording."""

from __future__ import annotations

from typing import Any

import pytest

from served import Served

LONG = " ".join(["word"] * 600)
NO_IDS = (
    "Model 'emberd/demo' takes no token ids. Send the text itself: LangChain's OpenAIEmbeddings "
    "does with check_embedding_ctx_length=False."
)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": []}, "Input cannot be empty"),
        ({"input": ""}, "Input cannot be empty"),
        ({"input": " \n\t"}, "Input cannot be empty or whitespace only"),
        ({"input": ["a", "b", ""]}, "Input at index 2 cannot be empty or whitespace only"),
        ({"input": ["a", "\u3000"]}, "Input at index 1 cannot be empty or whitespace only"),
        (
            {"input": "a", "encoding_format": "int8"},
            "encoding_format must be either 'float' or 'base64', got 'int8'",
        ),
        ({"input": "a", "dimensions": 0}, "Requested dimensions must be greater than 0"),
        ({"input": "a", "dimensions": -1}, "Requested dimensions must be greater than 0"),
        (
            {"input": "a", "dimensions": 385},
            "Provided dimensions are greater than max embedding dimension: 384",
        ),
        (
            {"input": ["a", LONG]},
            "The input (604 tokens) is longer than the model's context length (512 tokens).",
        ),
        ({"input": [0, -1, 2]}, "Token ID at index 1 must be non-negative"),
        ({"input": [0, 2]}, NO_IDS),
        ({"input": [[0, 2]]}, NO_IDS),
    ],
)
def test_a_request_that_cannot_be_served_is_a_400(
    server: Served, body: dict[str, Any], message: str
) -> None:
    reply = server.embed(**{"given": body.pop("input"), **body})
    assert reply.status_code == 400
    assert reply.json() == {
        "object": "error",
        "message": message,
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b"{}",
        b'{"input": null}',
        b'{"input": 3}',
        b'{"input": ["a", 3]}',
        b'{"input": ["a", ["b"]]}',
        b'{"input": [[1, "a"]]}',
        b'{"input": [true, false]}',
        b'{"input": [{"text": "a"}]}',
        b'{"input": ["a", "\\ud800"]}',
        b'{"input": "a", "dimensions": "64"}',
        b'{"input": "a", "dimensions": true}',
        b'{"input": "a", "dimensions": 6.5}',
        b'{"input": "a", "encoding_format": null}',
        b'{"input": "a", "model": 3}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_a_body_that_is_not_of_the_schema_is_a_400(server: Served, body: bytes) -> None:
    with server.client() as client:
        reply = client.post(
            "/v1/embeddings", content=body, headers={"content-type": "application/json"}
        )
    assert (reply.status_code, reply.json()["type"]) == (400, "Bad Request")
    assert (reply.json()["object"], reply.json()["code"]) == ("error", 400)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-Embedding-4B", "demo", "EMBERD/DEMO", " "])
def test_another_model_is_a_404_and_never_a_vector(server: Served, name: str) -> None:
    reply = server.embed("a", model=name)
    assert reply.status_code == 404
    assert reply.json() == {
        "error": {
            "message": f"The model '{name}' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def test_request_may_leave_out_the_model_or_name_default(server: Served) -> None:
    named = server.vectors("a")
    assert server.vectors("a", model="default") == server.vectors("a", model="") == named
    with server.client() as client:
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/jsonlines"])
def test_another_content_type_is_a_400(server: Served, content_type: str) -> None:
    with server.client() as client:
        reply = client.post(
            "/v1/embeddings",
            content=b'{"input": "a"}',
            headers={"content-type": content_type},
        )
    assert reply.status_code == 400
    assert "Only 'application/json' is allowed" in reply.json()["message"]


def test_a_content_type_with_a_charset_is_taken(server: Served) -> None:
    with server.client() as client:
        reply = client.post(
            "/v1/embeddings",
            content=b'{"input": "a"}',
            headers={"content-type": "Application/JSON; charset=utf-8"},
        )
    assert reply.status_code == 200


def test_a_body_without_end_is_refused_before_it_is_read(server: Served) -> None:
    with server.client() as client:
        reply = client.post(
            "/v1/embeddings",
            content=b'{"input": "' + b"a" * (16 * 1024 * 1024) + b'"}',
            headers={"content-type": "application/json"},
        )
    assert (reply.status_code, reply.json()["type"]) == (413, "413")


def test_the_longest_text_is_one_token_short_of_the_context(server: Served) -> None:
    # "word" is one token; <s>, "passage", ":" and </s> are four more.
    longest = "word " * (511 - 4)
    with server.client() as client:
        reply = client.post("/v1/embeddings", json={"input": longest.strip()})
        over = client.post("/v1/embeddings", json={"input": f"{longest}word"})
    assert (reply.status_code, reply.json()["usage"]["prompt_tokens"]) == (200, 511)
    assert (over.status_code, over.json()["message"][:22]) == (400, "The input (512 tokens)")


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/tokenize"])
def test_an_unknown_method_or_route_is_not_an_embedding(server: Served, path: str) -> None:
    with server.client() as client:
        assert client.get(path).status_code == 405
        assert client.get("/nothing").json() == {"detail": "Not Found"}


def test_an_encoder_without_a_tokenizer_has_no_tokenize_route(server: Served) -> None:
    with server.client() as client:
        reply = client.post("/v1/tokenize", json={"prompt": "a"})
    assert reply.status_code == 404
    assert "no tokenizer" in reply.json()["message"]


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer wrong", "Basic {key}", "{key}", "Bearer {key}x"]
)
def test_without_the_key_everything_but_probes_is_a_401(server: Served, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.format(key=server.key)}
    with server.client() as client:
        client.headers.pop("Authorization")
        for path in ("/v1/models", "/model_info", "/server_info", "/v1/models/emberd/demo"):
            reply = client.get(path, headers=headers)
            assert (reply.status_code, reply.json()) == (401, {"error": "Unauthorized"})
        reply = client.post("/v1/embeddings", json={"input": "a"}, headers=headers)
        assert reply.status_code == 401
        for path in ("/ready", "/health", "/health_generate", "/metrics"):
            assert client.get(path, headers=headers).status_code == 200


def test_the_scheme_of_the_key_is_read_in_any_case(server: Served) -> None:
    with server.client() as client:
        reply = client.get("/v1/models", headers={"Authorization": f"bearer {server.key}"})
    assert reply.status_code == 200
