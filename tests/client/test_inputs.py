from __future__ import annotations

from typing import Any

import pytest

from emberd.catalog import Model
from emberd.client.event_loops import finish
from emberd.client.inputs import PreparedTexts, prepare
from emberd.errors import TextError

PLAIN = Model("test/model")
LAST_TOKEN = Model("test/model", end_of_text_id=7)


def _prepared(texts: Any, template: str, model: Model) -> PreparedTexts:
    return finish(prepare(texts, template, model))


def test_texts_are_put_into_the_template_and_measured_in_bytes() -> None:
    prepared = _prepared(["a", "é{text}"], "<{text}>", PLAIN)
    assert prepared.inputs == ["<a>", "<é{text}>"]
    assert prepared.sizes == [3, 10]


def test_the_bare_template_copies_no_text() -> None:
    text = "a long document"
    assert _prepared([text], "{text}", PLAIN).inputs[0] is text


@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u3000", "\u2028"])
def test_a_blank_text_becomes_the_end_of_text_token(blank: str) -> None:
    assert _prepared(["a", blank], "{text}", LAST_TOKEN).inputs == ["a", [7]]


def test_a_blank_text_in_a_template_with_words_is_not_blank() -> None:
    assert _prepared([""], "query: {text}", PLAIN).inputs == ["query: "]


def test_a_blank_text_without_a_known_end_of_text_token_is_named() -> None:
    with pytest.raises(TextError, match=r"Text 1 is blank.*test/model.*Omit blank") as caught:
        _prepared(["a", " "], "{text}", PLAIN)
    assert caught.value.index == 1


@pytest.mark.parametrize("alone", ["text", b"text"])
def test_one_text_in_place_of_a_list_is_refused(alone: Any) -> None:
    with pytest.raises(TextError, match="not a list of texts"):
        _prepared(alone, "{text}", PLAIN)


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["nested"], float("nan")])
def test_what_is_no_text_is_named(wrong: Any) -> None:
    with pytest.raises(TextError, match=f"Text 2 is of type {type(wrong).__name__}") as caught:
        _prepared(["a", "b", wrong], "{text}", PLAIN)
    assert caught.value.index == 2


@pytest.mark.parametrize("nothing", [None, 3])
def test_what_is_no_list_at_all_is_a_text_error(nothing: Any) -> None:
    with pytest.raises(TextError, match=f"of type {type(nothing).__name__}, not a list"):
        _prepared(nothing, "{text}", PLAIN)


def test_a_lone_surrogate_of_the_template_is_said_to_be_in_the_instruction() -> None:
    with pytest.raises(TextError, match=r"The instruction holds the lone surrogate '\\ud83d' and"):
        _prepared(["fine"], "\ud83d {text}", PLAIN)


def test_a_lone_surrogate_is_named_with_its_place() -> None:
    with pytest.raises(TextError, match=r"Text 1 .*'\\ud83d' at character 3") as caught:
        _prepared(["fine \U0001f600", "bad\ud83d"], "{text}", PLAIN)
    assert caught.value.index == 1


def test_only_texts_that_might_be_too_long_are_counted() -> None:
    prepared = _prepared(["x" * 90, "x" * 100, "é" * 60], "{text}", PLAIN)
    assert prepared.to_count(100, range(3)) == [1, 2]
    assert prepared.to_count(100, [2]) == [2]


@pytest.mark.parametrize("given", [("a", "b"), iter(["a", "b"]), {"a": 1, "b": 2}.keys()])
def test_any_iterable_of_texts_will_do(given: Any) -> None:
    assert _prepared(given, "{text}", PLAIN).inputs == ["a", "b"]
