from __future__ import annotations

import subprocess
import sys

import pytest

from emberd.cache.cache import keys
from managed import environment


def key(identity: str, text: str) -> bytes:
    return keys(identity, [text])[0]


def test_a_key_is_of_the_text_and_of_the_identity() -> None:
    made = {key(identity, text) for identity in ("a", "b") for text in ("x", "y", "")}
    assert len(made) == 6
    assert {len(one) for one in made} == {32}


@pytest.mark.parametrize(
    ("one", "other"),
    [(("ab", "c"), ("a", "bc")), (("", "ab"), ("ab", "")), (("a\0", ""), ("a", "\0"))],
)
def test_the_end_of_the_identity_cannot_pass_for_the_text(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert key(*one) != key(*other)


def test_many_keys_are_those_of_each_text_in_order() -> None:
    texts = ["b", "a", "b"]
    assert keys("m", texts) == [key("m", text) for text in texts]


def test_half_a_surrogate_pair_has_a_key_of_its_own() -> None:
    assert key("m", "\ud83d") != key("m", "?")


def test_a_key_is_the_same_in_another_process() -> None:
    program = "from emberd.cache.cache import keys; print(keys('m', ['Grüße'])[0].hex())"
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True
    )
    assert ended.stdout.strip() == key("m", "Grüße").hex()
    # Written down, because a cache outlives versions of emberd: another format of keys or records
    # gets another number, and then another line here.
    assert key("m", "Grüße").hex().startswith("febdee6ac6c9926b")
