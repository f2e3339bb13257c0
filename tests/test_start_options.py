from __future__ import annotations

import pytest

from emberd.errors import SettingError
from emberd.settings import StartOptions


def test_what_is_given_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"EMBERD_PORT": "30000", "EMBERD_TP_SIZE": "2", "EMBERD_ENGINE_ARGS": "--a 'b c'"}
    options = StartOptions.resolve(environ, port=31_000)
    assert options == StartOptions(port=31_000, tp_size=2, arguments=("--a", "b c"))
    assert StartOptions.resolve({}) == StartOptions()


def test_an_open_server_cannot_be_asked_for_by_the_environment() -> None:
    assert not StartOptions.resolve({"EMBERD_NO_AUTH": "1"}).no_auth


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"EMBERD_PORT": "many"}, "EMBERD_PORT='many' cannot be read"),
        ({"EMBERD_PORT": "70000"}, "EMBERD_PORT=70000 is not a port"),
        ({"EMBERD_TP_SIZE": "0"}, "EMBERD_TP_SIZE=0 must be at least 1"),
        ({"EMBERD_ENGINE_ARGS": "--a 'b"}, "EMBERD_ENGINE_ARGS cannot be read"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        StartOptions.resolve(environ)


def test_variable_that_an_argument_overrides_is_not_read() -> None:
    assert StartOptions.resolve({"EMBERD_TP_SIZE": "0"}, tp_size=1).tp_size == 1


def test_copies_on_gpus_of_their_own_are_counted() -> None:
    assert StartOptions(tp_size=2, dp_size=3).gpus == 6
