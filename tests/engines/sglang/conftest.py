"""GPUs and an installation for the tests of SGLang's plans."""

from __future__ import annotations

import sys

import pytest

from emberd import installs
from fake_nvml import GIB, Card, Nvml
from sglang_plans import set_installed


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """Two GPUs; the second has more free memory."""
    made = Nvml(cards=[Card("GPU-small", free=18 * GIB), Card("GPU-large", free=21 * GIB)])
    monkeypatch.setitem(sys.modules, "pynvml", made)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return made


@pytest.fixture
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU."""
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pinned version, at a place that does not exist."""
    set_installed(monkeypatch, installs.RECIPES["sglang"].version)
