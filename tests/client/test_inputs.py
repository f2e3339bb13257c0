from __future__ import annotations

from typing import Any

import pytest

from emberd.catalog import Model
from emberd.client.event_loops import finish
from emberd.client.inputs import PreparedTexts, prepare
from emberd.errors import TextError

PLAIN = Model("test/model")
LAST_TOKEN = Model("test/model", end_of_text_id=7)
NFC = Model("test/model", normalization="NFC", special_tokens=(("<|end|>", 8), ("<think>", 9)))


def _prepared(texts: Any, template: str, model: Model) -> PreparedTexts:
    return finish(prepare(texts, template, model))


def test_texts_are_put_into_the_template_and_measured_in_bytes() -> None:
    prepared = _prepared(["a", "é{text}"], "<{text}>", NFC)
    assert prepared.inputs == ["<a>", "<é{text}>"]
    assert prepared.sizes == [3, 10]


def test_a_text_is_measured_in_the_longest_form_that_an_unknown_tokenizer_may_give_it() -> None:
    texts = ["plain", "\U0001d160" * 300, "\ufdfa"]
    prepared = _prepared(texts, "{text}", PLAIN)
    assert prepared.inputs == texts
    assert prepared.sizes == [5, 3600, 33]


@pytest.mark.parametrize(
    ("text", "template", "sent"),
    [
        ("cafe\u0301", "{text}", "café"),
        ("\u0301", "e{text}", "é"),
        ("\U0001d160", "{text}", "\U0001d158\U0001d165\U0001d16e"),
        ("\u2000", "{text}", "\u2002"),
        ("ﬁ", "{text}", "ﬁ"),  # NFKC would change it
        # The tokenizer finds its special tokens first, and normalises what is between them.
        ("a>\u0338", "{text}", "a\u226f"),
        ("e\u0301<think>\u0338", "{text}", "é<think>\u0338"),
        ("<|end|>\u0301\u0338\u0338", "{text}", "<|end|>\u0338\u0338\u0301"),
    ],
)
def test_a_text_is_normalised_as_by_the_tokenizer_of_the_model(
    text: str, template: str, sent: str
) -> None:
    prepared = _prepared([text], template, NFC)
    assert prepared.inputs == [sent]
    assert prepared.sizes == [len(sent.encode())]
    assert _prepared([text], template, PLAIN).inputs == [template.replace("{text}", text)]


def test_the_bare_template_copies_no_text() -> None:
    for text in ("a long document", "ein längeres Dokument"):
        assert _prepared([text], "{text}", NFC).inputs[0] is text


def test_an_empty_text_becomes_the_end_of_text_token() -> None:
    assert _prepared(["a", ""], "{text}", LAST_TOKEN).inputs == ["a", [7]]


def test_an_empty_text_keeps_what_the_tokenizer_puts_before_texts() -> None:
    model = Model("test/model", start_ids=(5,), end_of_text_id=7)
    assert _prepared([""], "{text}", model).inputs == [[5, 7]]


@pytest.mark.parametrize(
    ("text", "is_blank"),
    [
        *((space, True) for space in (" ", "\n\t", "\x1c", "\x1f", "\x85", "\xa0", "\u2028")),
        *((space, True) for space in ("\u2000", "\u3000")),
        *((mark, False) for mark in ("\u200b", "\u2060", "\ufeff", "\u180e", "\x00", " .")),
    ],
)
def test_white_space_stays_as_it_is_and_is_noted_where_sglang_refuses_it(
    text: str, is_blank: bool
) -> None:
    prepared = _prepared(["a", text], "{text}", LAST_TOKEN)
    assert prepared.inputs == ["a", text]
    assert prepared.blank == ([1] if is_blank else [])


def test_a_blank_text_in_a_template_with_words_is_not_blank() -> None:
    prepared = _prepared(["", " "], "query: {text}", PLAIN)
    assert (prepared.inputs, prepared.blank) == (["query: ", "query:  "], [])


def test_an_empty_text_without_a_known_end_of_text_token_is_named() -> None:
    with pytest.raises(TextError, match=r"Text 1 is empty.*test/model.*Omit empty") as caught:
        _prepared(["a", ""], "{text}", PLAIN)
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
    for model, text in ((PLAIN, "bad\ud83d"), (PLAIN, "bä \ud83d"), (NFC, "ba\u0308\ud83d")):
        with pytest.raises(TextError, match=r"Text 1 .*'\\ud83d' at character 3") as caught:
            _prepared(["fine \U0001f600", text], "{text}", model)
        assert caught.value.index == 1


def test_only_texts_that_might_be_too_long_are_counted() -> None:
    prepared = _prepared(["x" * 90, "x" * 100, "é" * 60], "{text}", NFC)
    assert prepared.to_count(100, range(3)) == [1, 2]
    assert prepared.to_count(100, [2]) == [2]


@pytest.mark.parametrize("given", [("a", "b"), iter(["a", "b"]), {"a": 1, "b": 2}.keys()])
def test_any_iterable_of_texts_will_do(given: Any) -> None:
    assert _prepared(given, "{text}", PLAIN).inputs == ["a", "b"]
