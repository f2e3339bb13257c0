"""The doctor removes secrets from its output, also from text that other programs wrote."""

from __future__ import annotations

import pytest

from emberd.system.redaction import host, origin, redactor, secrets, shortener, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://me:pass@host:1/v1 failed", "http://***@host:1/v1 failed"),
        ("redis://:pass@cache/0", "redis://***@cache/0"),
        ("GET /v1?api_key=abc&x=1", "GET /v1?api_key=***&x=1"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("ServerArgs(api_key='abc', port=1)", "ServerArgs(api_key=***, port=1)"),
        ('{"admin_api_key": "abc"}', '{"admin_api_key": ***}'),
        ("run --api-key abc --port 1", "run --api-key *** --port 1"),
        ("run --apikey SECRETKEY123 --port 1", "run --apikey *** --port 1"),
        ("run --admin-api-key=abc", "run --admin-api-key=***"),
        ("--api-key \"abc' cannot be read", "--api-key *** cannot be read"),
        ("aws_secret_access_key = abc", "aws_secret_access_key = ***"),
        ("run --secret-key abc --port 1", "run --secret-key *** --port 1"),
        ("password: abc", "password: ***"),
        ("password: 1234", "password: ***"),
        ("run --hub-token 12ab --port 1", "run --hub-token *** --port 1"),
        ("token: 123456789012", "token: ***"),
        ("refresh_token='abc', tokenizer=1", "refresh_token=***, tokenizer=1"),
        ("keos_tokens_token=abc", "keos_tokens_token=***"),
        ("LAUNCHPAD_TOKEN=abc chunk-token: abc", "LAUNCHPAD_TOKEN=*** chunk-token: ***"),
        ("Incorrect API key provided: sk-abcdefgh1234", "Incorrect API key provided: ***"),
        ("hf_abcdefgh1234 is no token", "*** is no token"),
        ("github_pat_11ABC_abcdef is none either", "*** is none either"),
        ("https://bob:p@ss.w0rd@index/simple failed", "https://***@index/simple failed"),
        ("run --password 'a b' --port 1", "run --password *** --port 1"),
        ("Authorization: Basic YTpi", "Authorization: Basic ***"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, expected: str) -> None:
    assert redactor({})(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "KV cache 2.0 GiB: 16,384 tokens: the longest text",
        "a token for the hub is not set",
        "puts the end-of-text token 151643 behind each text",
        "api_key=None",
        "ServerArgs(hf_chat_template_name=None, model='hf-internal-testing/tiny')",
        "Prefill batch. #new-seq: 1, #new-token: 16, #cached-token: 0, token usage: 0.00",
        "run --max-token 512 --other-token=64",
        "Tokenizer(eos_token='<|im_end|>', pad_token=<pad>, image_token: <i>)",
        '{"bos_token": "<s>", "mask-token": "<mask>"}',
        "run --eos-token '</s>' --stop-token=END",
        "https://index/simple?who=a@b and basic words",
        "hf auth login (or set HF_TOKEN to a token that may read it)",
        "export EMBERD_BASE_URL=http://HOST:30000/v1",
        "/models/task-sk-1/hf_x",
    ],
)
def test_what_is_no_secret_is_left(text: str) -> None:
    assert redactor({"TOKENIZERS_PARALLELISM": "token", "EMBERD_MODEL": "models"})(text) == text


@pytest.mark.parametrize(
    "name",
    [
        "EMBERD_API_KEY",
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "DB_PASSWORD",
        "AWS_SECRET",
        "apikey",
        "PGPASSWORD",
        "MYSQL_PWD",
    ],
)
def test_the_value_of_a_variable_named_like_a_secret_is_hidden_wherever_it_stands(
    name: str,
) -> None:
    assert redactor({name: "open sesame"})("it said: open sesame!") == "it said: ***!"


def test_passwords_in_urls_of_the_environment_are_hidden_elsewhere_too() -> None:
    redact = redactor({"HTTPS_PROXY": "http://me:proxypass@proxy:1"})
    assert redact("407 for me with proxypass") == "407 for me with ***"


def test_a_secret_that_begins_like_another_is_hidden_whole() -> None:
    assert redactor({}, ["abcde", "abcdefgh"])("x abcdefgh y abcde z") == "x *** y *** z"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://me:pass@proxy.lan:3128", "proxy.lan:3128"),
        ("me:pass@proxy.lan:3128", "proxy.lan:3128"),
        ("proxy.lan", "proxy.lan"),
        ("http://[broken", "***"),
    ],
)
def test_of_a_proxy_host_and_port_are_shown_alone(url: str, expected: str) -> None:
    assert host(url) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://me:pass@host:1/v1", "http://host:1"),
        ("https://host/secret/v1?key=1", "https://host"),
        ("http://[::1]:30000/v1", "http://[::1]:30000"),
        ("localhost:30000/v1", "localhost:30000"),
        ("ftp://somewhere", "ftp://somewhere"),
        ("http://me:pa/ss@host", "***"),
        ("a-key-in-the-wrong-place", "***"),
    ],
)
def test_of_a_server_scheme_host_and_port_are_shown_alone(url: str, expected: str) -> None:
    assert origin(url) == expected


def test_the_path_of_a_given_url_is_hidden_wherever_it_stands() -> None:
    shorten = shortener(["http://host:1/secret", "x"])
    assert shorten("GET http://host:1/secret/v1/models: 404, x") == "GET http://host:1: 404, x"


def test_of_a_command_the_values_of_secret_options_are_hidden() -> None:
    command = ["run", "--api-key", "a b", "--token=c d", "--tokenizer-path", "e", "--key"]
    assert list(secrets(command)) == ["a b", "c d"]
    assert words(command, redactor({})) == [
        *("run", "--api-key", "***", "--token=***", "--tokenizer-path", "e", "--key"),
    ]
