"""A server's vectors beside reference vectors: what is needed, what is computed, what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints_made
from emberd import fidelity
from emberd.errors import (
    BadReplyError,
    NoEngineError,
    RequestError,
    RequestTimeoutError,
    ServerUnavailableError,
    SettingError,
    TextTooLongError,
    VerifyError,
)
from emberd.fidelity import Compared, Comparison, Embed, Outcome, ReferenceVectors, Sample
from emberd.installs import Interpreter
from emberd.prompts import Role
from emberd.settings import Settings
from emberd.system import capacity
from stubs import reference as stub

BARE: dict[str, str] = {"query_instruction": "", "document_instruction": ""}
WEIGHTS = {"a.weight": (10, 20), "lm_head.weight": (1000, 1000)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    checkpoints_made.write(made, tensors=WEIGHTS)
    checkpoints_made.write_modules(made)
    with (made / "model.safetensors").open("ab") as file:
        file.truncate(3_000_000)
    return made


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings.resolve(model=str(folder), **BARE)


@pytest.fixture
def interpreter(tmp_path: Path) -> Interpreter:
    return Interpreter(str(stub.interpreter(tmp_path)), "5.0", "", "a stub")


# ---------------------------------------------------------------- what is needed


def test_pooling_and_size_come_from_the_files(settings: Settings) -> None:
    """An embedding does not use the head of a language model."""
    found = fidelity.find_checkpoint(settings)
    assert (found.pooling, found.float32_bytes) == ("lasttoken", 800)


@pytest.mark.parametrize("mode", ["cls", "mean"])
def test_another_declared_pooling_is_computed_too(
    folder: Path, settings: Settings, mode: str
) -> None:
    pooling = {"embedding_dimension": 64, "pooling_mode": mode}
    checkpoints_made.write_modules(folder, pooling=pooling)
    assert fidelity.find_checkpoint(settings).pooling == mode
    with pytest.raises(SettingError, match="pooling='lasttoken'"):
        fidelity.find_checkpoint(settings, "lasttoken")


def test_an_undeclared_pooling_must_be_given(folder: Path, settings: Settings) -> None:
    (folder / "modules.json").unlink()
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(SettingError, match="Give pooling="):
        fidelity.find_checkpoint(settings)
    assert fidelity.find_checkpoint(settings, "mean").pooling == "mean"


def test_a_model_with_a_pooling_that_is_not_computed_is_refused(
    folder: Path, settings: Settings
) -> None:
    pooling = {"embedding_dimension": 64, "pooling_mode": "max"}
    checkpoints_made.write_modules(folder, pooling=pooling)
    with pytest.raises(VerifyError, match="pools by max"):
        fidelity.find_checkpoint(settings)


@pytest.mark.parametrize("model", ["emberd/demo", "no/such-model", "/no/such/folder"])
def test_a_model_without_weights_here_is_refused(model: str) -> None:
    with pytest.raises(SettingError, match="weights"):
        fidelity.find_checkpoint(Settings.resolve(model=model, **BARE))


def test_damaged_weights_are_refused(folder: Path, settings: Settings) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(SettingError, match="no readable header"):
        fidelity.find_checkpoint(settings)


def test_too_little_memory_is_an_error_with_the_size(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = fidelity.find_checkpoint(settings)
    monkeypatch.setattr(capacity, "free_memory", lambda: 880)
    fidelity.check_memory(checkpoint)
    monkeypatch.setattr(capacity, "free_memory", lambda: 879)
    with pytest.raises(VerifyError, match=r"take 0\.0 GiB in float32"):
        fidelity.check_memory(checkpoint)


def test_an_environment_without_transformers_is_an_error_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("EMBERD_TRANSFORMERS_PYTHON", "EMBERD_SGLANG_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("EMBERD_ENGINES", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoEngineError, match="emberd engine install transformers"):
        fidelity.find_interpreter()


# ---------------------------------------------------------------- the reference


def test_texts_without_tokens_are_left_out_and_long_ones_are_as_long_as_the_model_takes(
    settings: Settings, interpreter: Interpreter
) -> None:
    doing: list[str] = []
    checkpoint = fidelity.find_checkpoint(settings)
    found = fidelity.compute(checkpoint, interpreter, settings, 9_999, doing.append)
    assert "" not in [each.text for each in found.samples]
    assert max(found.tokens) == 4096 - 1  # positions of the model's configuration
    assert found.exact.shape == found.rounded.shape == (len(found.samples), 8)
    assert doing == ["computing"]
    shorter = fidelity.compute(checkpoint, interpreter, settings, 400)
    assert max(shorter.tokens) == 400


@pytest.mark.parametrize(
    ("fault", "says"),
    [("error", "no such file"), ("dies", "the last line of its output"), ("killed", "memory")],
)
def test_a_failed_reference_is_an_error_with_the_reason(
    settings: Settings,
    interpreter: Interpreter,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    says: str,
) -> None:
    monkeypatch.setenv("STUB_REFERENCE", fault)
    checkpoint = fidelity.find_checkpoint(settings)
    with pytest.raises(VerifyError, match=says):
        fidelity.compute(checkpoint, interpreter, settings, 400)


# ---------------------------------------------------------------- the comparison

SAMPLES = (
    Sample("a", "one"),
    Sample("a", "two"),
    Sample("b", "three"),
    Sample("c", "four", "query"),
)
_ANGLE = 0.01  # of the reference in bfloat16: 1 - cosine is 5e-5


def _turned(angle: float) -> list[float]:
    return [math.cos(angle), math.sin(angle), 0.0]


REFERENCE = ReferenceVectors(
    samples=SAMPLES,
    tokens=(1, 2, 3, 4),
    exact=np.array([_turned(i) for i in range(len(SAMPLES))]),
    rounded=np.array([_turned(i + _ANGLE) for i in range(len(SAMPLES))]),
    versions={},
)
_NUMBER = {each.text: i for i, each in enumerate(SAMPLES)}


def _embed(change: Callable[[str, int], Any] = lambda text, count: 0.0) -> Embed:
    """Return a server: vectors turned by what ``change`` returns, or the errors that it returns."""

    def embed(texts: Sequence[str], role: Role) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for text in texts:
            assert next(each.role for each in SAMPLES if each.text == text) == role
            found = change(text, len(texts))
            if not isinstance(found, RequestError):
                found = np.array(_turned(_NUMBER[text] + found), np.float32)
            outcomes.append(found)
        return outcomes

    return embed


def _wrong(found: Comparison) -> list[str]:
    return [each.sample.text for each in found.texts if not each.is_good]


def _of(found: Comparison, text: str) -> Compared:
    return found.texts[_NUMBER[text]]


def test_a_vector_may_be_twice_as_far_as_bfloat16_and_a_little_more() -> None:
    found = fidelity.compare(_embed(), REFERENCE)
    assert found.is_good
    assert found.floor == pytest.approx(_ANGLE**2 / 2, rel=1e-3)
    assert found.bound == pytest.approx(2 * found.floor + fidelity.TOLERANCE)
    just = math.acos(1 - found.bound)
    assert fidelity.compare(_embed(lambda text, count: 0.99 * just), REFERENCE).is_good
    beyond = fidelity.compare(_embed(lambda text, count: 1.01 * just), REFERENCE)
    assert len(_wrong(beyond)) == len(SAMPLES)


def test_a_server_in_float32_may_not_be_as_far_as_one_in_bfloat16() -> None:
    embed = _embed(lambda text, count: 1.8 * _ANGLE)
    assert fidelity.compare(embed, REFERENCE).is_good
    assert not fidelity.compare(embed, REFERENCE, "float32").is_good


def test_a_fault_of_texts_alone_and_one_of_texts_together_are_both_found() -> None:
    alone = fidelity.compare(_embed(lambda text, n: 0.5 * (text == "four")), REFERENCE)
    assert _wrong(alone) == ["four"]
    together = fidelity.compare(_embed(lambda text, n: 0.5 * (n > 1)), REFERENCE)
    assert _wrong(together) == ["one", "two", "three"]
    assert _of(together, "one").alone == pytest.approx(1)
    assert _of(together, "one").lowest == pytest.approx(math.cos(0.5))


def test_nan_is_wrong() -> None:
    found = fidelity.compare(_embed(lambda text, n: math.nan if text == "two" else 0), REFERENCE)
    assert _wrong(found) == ["two"]
    assert math.isnan(_of(found, "two").lowest or 0)


def test_a_refused_text_is_reported_and_is_no_wrong_vector() -> None:
    refusal = TextTooLongError("too long", index=0, tokens=9, limit=8)
    found = fidelity.compare(_embed(lambda text, n: refusal if text == "one" else 0), REFERENCE)
    assert found.is_good
    assert (_of(found, "one").is_refused, _of(found, "one").error) == (True, "too long")
    nothing = fidelity.compare(_embed(lambda text, n: refusal), REFERENCE)
    assert not nothing.is_good


def test_an_invalid_reply_is_wrong_and_the_other_texts_go_on() -> None:
    bad = BadReplyError("NaN")
    found = fidelity.compare(_embed(lambda text, n: bad if text == "one" else 0), REFERENCE)
    assert _wrong(found) == ["one"]
    assert not _of(found, "one").is_refused


@pytest.mark.parametrize("off_by", [0.0, 0.5])
def test_a_missing_answer_is_no_wrong_vector_unless_another_one_is_wrong(off_by: float) -> None:
    slow = RequestTimeoutError("no answer in time")

    def change(text: str, count: int) -> Any:
        return (slow if count > 1 else off_by) if text == "one" else 0.0

    found = fidelity.compare(_embed(change), REFERENCE)
    assert not found.is_good
    assert _of(found, "one").is_unanswered is (off_by == 0)
    assert not _of(found, "two").is_unanswered


def test_a_server_that_is_gone_ends_the_comparison() -> None:
    gone = ServerUnavailableError("gone")
    asked = []

    def change(text: str, count: int) -> RequestError:
        asked.append(text)
        return gone

    with pytest.raises(ServerUnavailableError):
        fidelity.compare(_embed(change), REFERENCE)
    assert len(asked) == 3


def test_cut_vectors_are_compared_with_the_head_of_the_reference() -> None:
    whole = _embed()

    def cut(texts: Sequence[str], role: Role) -> list[Outcome]:
        heads = [row[:1] for row in whole(texts, role) if not isinstance(row, RequestError)]
        return [head / np.linalg.norm(head) for head in heads]

    assert fidelity.compare(cut, REFERENCE).is_good
