"""``emberd up --dry-run``: what is printed of a start that does not happen."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from emberd import engines
from emberd.cli import up
from emberd.engines.base import Launch, Plan, Reason
from emberd.engines.gpu_usage import GpuServer
from emberd.settings import ServerSpec, StartOptions

KEY = "open-sesame please"


class Engine:
    """Takes the arguments as they are, and a variable away."""

    name = "made"

    def exclusive_resources(
        self, spec: ServerSpec, options: StartOptions, servers: Sequence[GpuServer]
    ) -> tuple[str, ...]:
        return ()

    def plan(self, spec: ServerSpec, launch: Launch) -> Plan:
        kept = {name: text for name, text in os.environ.items() if name != "DROPPED"}
        arguments = launch.options.arguments
        return Plan(
            command=["serve", "--port", str(launch.port), *arguments],
            environment={**kept, "ADDED": "a b", "OWN": str(launch.api_key)},
            device="cpu",
            files={"config.yaml": f"api-key: {launch.api_key}"},
            reasons=[Reason(" ".join(arguments), "you asked for it")],
        )


@contextmanager
def _chosen() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "choose", lambda _: Engine())
        patch.setenv("DROPPED", "1")
        yield


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, as_json: bool = False) -> str:
    with _chosen():
        start = (ServerSpec("stub/ok"), StartOptions(arguments=arguments))
        up.show_dry_run([start], as_json=as_json)
    return capsys.readouterr().out


def test_the_command_can_be_pasted_with_what_is_taken_away_and_added(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = shown(capsys).splitlines()
    start = lines.index("env -u DROPPED \\")
    assert lines[start + 1 : start + 3] == ["ADDED='a b' \\", "serve --port 30000"]


def test_before_the_command_stands_once_that_a_running_server_would_be_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = shown(capsys)
    assert out.startswith("If a server for this model is running, emberd uses it instead.\n")
    assert out.count("instead") == 1


def test_a_file_that_does_not_exist_yet_is_said_to_be_written_at_the_start(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "The file FOLDER-OF-THE-SERVER/config.yaml is written at the start" in shown(capsys)


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("--api-key", KEY),
        (f"--admin-api-key={KEY}",),
        ("--apikey", KEY),
        ("--hf-token", KEY),
        ("--ssl-keyfile-password", KEY, "--port", "1"),
    ],
    ids=lambda arguments: arguments[0].partition("=")[0],
)
def test_a_key_among_the_arguments_is_not_printed(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], as_json: bool
) -> None:
    out = shown(capsys, *arguments, as_json=as_json)
    assert "***" in out
    assert not any(part in out for part in KEY.split())


def test_what_is_no_key_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--tokenizer-path 'a b' --context-tokens 5" in shown(
        capsys, "--tokenizer-path", "a b", "--context-tokens", "5"
    )
