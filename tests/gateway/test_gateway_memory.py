"""The memory budget of requests in flight."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from emberd.gateway import api
from emberd.gateway.api import Gateway
from emberd.gateway.served_models import ServedModels
from emberd.serving.bodies import RefusedError
from emberd.serving.connections import Connections
from fake_server import QWEN, FakeServer
from gateways import serving

SHORT = "qwen3-embedding-0.6b"
MIB = 1024 * 1024


def test_a_request_beyond_the_budget_is_refused_and_one_always_fits() -> None:
    gateway = Gateway(ServedModels([]), Connections())
    most = api.MOST_MEMORY_BYTES
    with gateway.reserved(2 * most):
        with pytest.raises(RefusedError) as refused, gateway.reserved(1):
            pass
        assert refused.value.status == 503
    with gateway.reserved(most - 1), gateway.reserved(1):
        pass
    with gateway.reserved(most):
        pass


def test_large_requests_at_once_are_answered_or_refused_within_the_budget(tmp_path: Path) -> None:
    """Without the budget, the replies of ten requests of 2,048 texts would take 1.2 GB."""
    texts = ["x"] * 2048
    with FakeServer(model=QWEN, dimensions=1024, latency_s=0.5) as server:
        with serving(tmp_path / "home", QWEN, environment={"EMBERD_BASE_URL": server.url}) as own:
            own.post(model=SHORT, input="warm")
            with ThreadPoolExecutor(10) as pool:
                pending = [pool.submit(own.post, model=SHORT, input=texts) for _ in range(10)]
                replies = [each.result() for each in pending]
            assert own.metrics()["emberd_gateway_reserved_bytes"] == 0
            peak = _peak_bytes(own.process.pid)
    statuses = [reply.status_code for reply in replies]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 1
    assert all("retry-after" in reply.headers for reply in replies if reply.status_code == 503)
    assert peak < api.MOST_MEMORY_BYTES + 300 * MIB


def _peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had at once."""
    assert psutil.pid_exists(pid)
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
