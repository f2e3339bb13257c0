"""Durations: one parser, and every place that a duration is given in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from emberd import Embedder, SettingError, durations
from emberd.cache.urls import parse
from emberd.cli import output
from langchain_emberd import EmberdEmbeddings
from llama_index.embeddings.emberd import EmberdEmbedding

WRITTEN = {
    "90": 90,
    " 90 ": 90,
    "90s": 90,
    "90 S": 90,
    "5m": 300,
    "5min": 300,
    "1h30m": 5400,
    "1h 30m": 5400,
    "1.5h": 5400,
    "2d": 172_800,
    "2 d 4 h": 187_200,
    "1d2h3m4s": 93_784,
}
UNREADABLE = [
    "",
    " ",
    "soon",
    "-5m",
    "-1",
    "5 m 3",
    "30m1h",
    "5m5m",
    "5x",
    "h",
    "nan",
    "inf",
    "1e999",
]


@pytest.mark.parametrize(("text", "seconds"), WRITTEN.items())
def test_a_duration_is_read_into_seconds(text: str, seconds: int) -> None:
    assert durations.seconds(text) == seconds


def test_fractions_and_zero_are_read() -> None:
    assert (durations.seconds("0.5"), durations.seconds(".5"), durations.seconds("0")) == (
        0.5,
        0.5,
        0,
    )
    assert durations.seconds("1e3") == 1000


@pytest.mark.parametrize("text", UNREADABLE)
def test_a_text_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^"):
        durations.seconds(text)


@pytest.mark.parametrize("seconds", [1, 90, 119, 120, 1800, 3600, 11_100, 86_400, 187_200])
def test_durations_that_emberd_shows_can_be_given_back(seconds: int) -> None:
    assert durations.seconds(output.duration(seconds)) == seconds


def _environment(text: str, monkeypatch: pytest.MonkeyPatch) -> float | None:
    monkeypatch.setenv("EMBERD_IDLE_TIMEOUT", text)
    return Embedder().settings.idle_timeout


Give = Callable[[str, pytest.MonkeyPatch], float | None]
PLACES: dict[str, Give] = {
    "Embedder": lambda text, _: Embedder(idle_timeout=text).settings.idle_timeout,
    "replace": lambda text, _: Embedder().replace(idle_timeout=text).settings.idle_timeout,
    "environment": _environment,
    "LangChain": lambda text, _: EmberdEmbeddings(idle_timeout=text).idle_timeout,  # type: ignore[arg-type]
    "LangChain copy": lambda text, _: (
        EmberdEmbeddings().model_copy(update={"idle_timeout": text}).idle_timeout
    ),
    "LlamaIndex": lambda text, _: EmberdEmbedding(idle_timeout=text).idle_timeout,  # type: ignore[arg-type]
    "LlamaIndex copy": lambda text, _: (
        EmberdEmbedding().model_copy(update={"idle_timeout": text}).idle_timeout
    ),
    "cache": lambda text, _: parse(f"redis://h?ttl={text}").ttl_s,
}


@pytest.mark.parametrize("give", PLACES.values(), ids=PLACES)
def test_every_place_reads_the_same_forms(give: Give, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {text: give(text, monkeypatch) for text in WRITTEN} == WRITTEN
    assert give("never", monkeypatch) is None


@pytest.mark.parametrize("give", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("text", ["soon", "-5m", "0"])
def test_every_place_refuses_the_same_texts_and_shows_the_forms(
    give: Give, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((SettingError, ValidationError)) as caught:
        give(text, monkeypatch)
    assert "1h30m" in str(caught.value)


@pytest.mark.parametrize("field", ["timeout", "start_timeout"])
@pytest.mark.parametrize("kind", [EmberdEmbeddings, EmberdEmbedding])
def test_the_other_durations_of_the_integrations_may_be_texts(kind: Any, field: str) -> None:
    assert getattr(kind(**{field: "5m"}), field) == 300
