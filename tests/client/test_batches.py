from __future__ import annotations

from dataclasses import replace

from emberd.client.batches import (
    BATCH_TOKENS,
    WINDOW_TEXTS,
    Batch,
    make_batches,
    most_tokens,
)
from emberd.client.inputs import Input, PreparedTexts
from emberd.endpoint import Endpoint


def _prepared(*inputs: Input) -> PreparedTexts:
    return PreparedTexts(list(inputs), [len(given) for given in inputs])


def test_every_text_is_in_one_batch() -> None:
    prepared = _prepared(*("x" * (number * 37 % 101) for number in range(1000)))
    batches = list(make_batches(prepared, 7))
    assert sorted(index for batch in batches for index in batch.indices) == list(range(1000))


def test_no_batch_has_more_texts_than_asked() -> None:
    sizes = {len(batch.indices) for batch in make_batches(_prepared(*["x"] * 20), 8)}
    assert sizes == {8, 4}


def test_no_batch_has_more_tokens_than_one_prefill_unless_a_text_alone_does() -> None:
    long, short = "x" * (4 * BATCH_TOKENS + 8), "x" * BATCH_TOKENS
    batches = list(make_batches(_prepared(long, *[short] * 6), 64))
    assert [len(batch.indices) for batch in batches] == [1, 3, 3]


def test_a_request_to_a_server_on_a_cpu_has_fewer_tokens() -> None:
    on_gpu = Endpoint("http://localhost:1", "m", 8)
    on_cpu = replace(on_gpu, on_cpu=True)
    assert most_tokens(on_cpu) < most_tokens(on_gpu) == BATCH_TOKENS
    texts = _prepared(*["x" * 4 * (most_tokens(on_cpu) // 2 - 1)] * 6)
    batches = list(make_batches(texts, 64, most_tokens(on_cpu)))
    assert [len(batch.indices) for batch in batches] == [2, 2, 2]


def test_strings_and_token_ids_never_share_a_batch() -> None:
    batches = list(make_batches(_prepared("a", [7], "b", [7], "c"), 64))
    assert [batch.indices for batch in batches] == [(0, 2, 4), (1, 3)]


def test_a_text_that_is_cut_to_token_ids_while_batches_are_taken_is_in_one() -> None:
    prepared = _prepared("a", "b", [7])
    batches = make_batches(prepared, 1)
    taken = [next(batches)]
    prepared.inputs[0] = [7, 7]
    taken += batches
    assert sorted(index for batch in taken for index in batch.indices) == [0, 1, 2]


def test_texts_of_one_length_go_together() -> None:
    prepared = _prepared("x" * 400, "y", "x" * 404, "z")
    assert [batch.indices for batch in make_batches(prepared, 2)] == [(2, 0), (1, 3)]


def test_sorting_stays_within_a_window_of_batches() -> None:
    """So that progress goes through the list from front to back."""
    count = 2 * WINDOW_TEXTS
    batches = list(make_batches(_prepared(*("x" * 4 * number for number in range(count))), 1))
    assert {index for batch in batches[:WINDOW_TEXTS] for index in batch.indices} == set(
        range(WINDOW_TEXTS)
    )


def test_halves_hold_all_texts_and_remember() -> None:
    first, second = Batch((5, 3, 9), crash_count=2).halves(exclusive=True)
    assert (first.indices, second.indices) == ((5,), (3, 9))
    assert (first.crash_count, second.exclusive) == (2, True)
