"""The canary: vectors of a few texts that do not fit together, and printed similarities."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from emberd.catalog import Model
from emberd.client import canary
from emberd.client.verify import verify
from emberd.errors import ServerMismatchError, ServerUnavailableError
from emberd.settings import ServerSpec
from fake_server import MODEL, QWEN, FakeServer

Rows = npt.NDArray[np.float32]


class Faulty(FakeServer):
    """A server whose vectors of a whole request are changed before they are sent."""

    change: Callable[[Rows], Rows] = staticmethod(lambda rows: rows)

    def _reply(self, body: dict[str, Any], inputs: list[Any]) -> dict[str, Any]:
        whole = super()._reply({**body, "encoding_format": "float"}, inputs)
        rows = np.array([entry["embedding"] for entry in whole["data"]], np.float32)
        for entry, row in zip(whole["data"], type(self).change(rows), strict=True):
            entry["embedding"] = row.tolist()
        return whole


def _unit(rows: Rows) -> Rows:
    scaled: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def _swap_equal_lengths(rows: Rows) -> Rows:
    return rows[[1, 0, *range(2, len(rows))]] if len(rows) > 1 else rows


def _lean(rows: Rows) -> Rows:
    """Let each text of a batch lean to the first by a cosine of 0.99, as a wrong mask does."""
    return _unit(rows + 0.14 * rows[:1]) if len(rows) > 1 else rows


FAULTS: dict[str, Callable[[Rows], Rows]] = {
    "the mean of the batch": lambda rows: _unit(np.tile(rows.mean(axis=0), (len(rows), 1))),
    "reversed": lambda rows: rows[::-1],
    "two texts of equal length swapped": _swap_equal_lengths,
    "padding that is read": _lean,
    "one vector for all texts": lambda rows: np.full_like(rows, 0.25),
    "not a number in batches": lambda rows: rows * (math.nan if len(rows) > 1 else 1),
    "not normalised in batches": lambda rows: rows * (2 if len(rows) > 1 else 1),
    "cut in batches": lambda rows: _unit(rows[:, :8]) if len(rows) > 1 else rows,
}


def _serve(change: Callable[[Rows], Rows], **knobs: Any) -> FakeServer:
    made = type("Changed", (Faulty,), {"change": staticmethod(change)})
    server: FakeServer = made(**knobs)
    return server


@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS)
def test_vectors_that_do_not_fit_together_are_a_mismatch(change: Callable[[Rows], Rows]) -> None:
    with _serve(change) as server, pytest.raises(ServerMismatchError) as caught:
        verify(server.url, None, ServerSpec(model=MODEL))
    assert server.url in str(caught.value)


def test_noise_of_bfloat16_is_accepted() -> None:
    random = np.random.default_rng(7)

    def shake(rows: Rows) -> Rows:
        return _unit(rows + random.normal(0, 0.05 / 4, rows.shape).astype(np.float32))

    with _serve(shake) as server:
        found = verify(server.url, None, ServerSpec(model=MODEL))
    assert len(found.canary) == 6


def test_other_vectors_than_the_model_card_prints_are_a_mismatch() -> None:
    """The reflected vectors fit together, but have other similarities."""

    def reflect(rows: Rows) -> Rows:
        changed = rows.copy()
        changed[:, 0] = abs(changed[:, 0]) + 0.3
        return _unit(changed)

    with _serve(reflect, model=QWEN, dimensions=1024) as server:
        with pytest.raises(ServerMismatchError):
            verify(server.url, None, ServerSpec(model=QWEN))


@pytest.mark.parametrize("name", ["/models/Qwen3-Embedding-0.6B", "folder"])
def test_printed_similarities_do_not_hold_for_a_folder_of_that_name(
    name: str, tmp_path: Path
) -> None:
    """It may hold a fine-tuned model."""
    if name == "folder":
        folder = tmp_path / "Qwen3-Embedding-0.6B"
        folder.mkdir()
        name = str(folder)
    with FakeServer(model=QWEN, dimensions=1024, weights=1) as server:
        assert verify(server.url, None, ServerSpec(model=name)).dimensions == 1024
        with pytest.raises(ServerMismatchError):
            verify(server.url, None, ServerSpec(model=QWEN))


@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS)
def test_faults_are_found_with_a_small_batch_size_too(change: Callable[[Rows], Rows]) -> None:
    with _serve(change, most_texts=2) as server:
        with pytest.raises(ServerMismatchError) as caught:
            verify(server.url, None, ServerSpec(model=MODEL), batch_size=2)
        assert "at most" not in str(caught.value)


@pytest.mark.parametrize(
    ("batch_size", "together"), [(None, [6]), (256, [6]), (4, [4, 2]), (2, [2, 2, 2]), (1, [])]
)
def test_no_request_has_more_texts_than_the_batch_size(
    batch_size: int | None, together: list[int]
) -> None:
    with FakeServer(most_texts=batch_size) as server:
        found = verify(server.url, None, ServerSpec(model=MODEL), batch_size=batch_size)
        assert [len(inputs) for inputs in server.embedded] == [1] * 6 + together
    assert len(found.canary) == 6


def test_a_limit_of_the_rate_between_two_batches_leaves_the_first_to_compare() -> None:
    with _serve(_swap_equal_lengths, limit_after=7) as server:
        with pytest.raises(ServerMismatchError, match="wrong order"):
            verify(server.url, None, ServerSpec(model=MODEL), batch_size=2)
        assert len(server.embedded) == 8


@pytest.mark.parametrize("answered", range(1, 8))
def test_a_limit_of_the_rate_leaves_fewer_texts_to_compare(answered: int) -> None:
    with FakeServer() as server:
        server.limit_after = answered
        found = verify(server.url, None, ServerSpec(model=MODEL))
    assert len(found.canary) == min(answered, 6)
    # With seven, all were answered: each alone, and all of them together.
    assert bool(found.notes) == (answered < 7)


def test_a_server_that_becomes_busy_during_the_canary_is_unavailable() -> None:
    with FakeServer() as server:
        server.limit_after, server.status_of_limit = 3, 503
        with pytest.raises(ServerUnavailableError):
            verify(server.url, None, ServerSpec(model=MODEL))


def test_texts_of_the_pair_have_equal_length() -> None:
    one, other, *_ = canary.texts(Model(MODEL))
    assert len(one) == len(other)
