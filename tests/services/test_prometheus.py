"""docs/monitoring on a real Prometheus: configuration, alert rules, each panel of the dashboard.

With -s it prints each panel with its values.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import prometheus_client
import psutil
import pytest

import emberd
import waiting
from emberd.engines import gpu_usage
from emberd.errors import StartError
from emberd.verified_manager import Manager
from fake_reranker import MODEL as RERANKER
from fake_reranker import FakeReranker
from foreign import SPEC, foreign
from gateways import Running, serving
from homes import Stub, home, server_of, stub
from ports import free_port
from services.conftest import Start
from services.running import program
from source_tree import ROOT

__all__ = ["foreign", "home", "stub"]

FOLDER: Final = ROOT / "docs" / "monitoring"
DASHBOARD: Final = json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
INTERVAL: Final = "3m"
FAILURES: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    ("Requests", {"status": "400"}),
    ("Refused", {"reason": "key"}),
    ("Retries", {"outcome": "broken"}),
    ("Cache hits", {"model": "emberd/demo"}),
    ("Cache errors", {}),
    ("Lost servers", {"model": "emberd/demo"}),
    ("Starts", {"outcome": "failed"}),
    ("Failed starts by phase", {}),
    ("Ends", {"reason": "crashed"}),
    ("Adopted servers", {"model": "other"}),
)
"""Panels with labels of a series that the run must have raised."""
GIB: Final = 1 << 30
RUN_S: Final = 20.0


def promtool(*arguments: str) -> str:
    """Run promtool in docs/monitoring; return what it prints."""
    done = subprocess.run(
        [program("promtool"), *arguments], cwd=FOLDER, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_configuration_and_the_alert_rules_are_valid() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yml")
    assert "SUCCESS" in promtool("check", "rules", "alerts.yml")


def test_each_alert_fires_when_it_should() -> None:
    promtool("test", "rules", "alerts.test.yml")
    rules = re.findall(r"- alert: (\w+)", (FOLDER / "alerts.yml").read_text(encoding="utf-8"))
    tests = (FOLDER / "alerts.test.yml").read_text(encoding="utf-8")
    fired = re.findall(r"alertname: (\w+)\n\s+eval_time: \w+\n\s+exp_alerts", tests)
    assert sorted(rules) == sorted(set(fired))


def test_names_of_emberds_metrics_in_rules_and_panels_exist(home: Path) -> None:
    registry = prometheus_client.CollectorRegistry()
    registry.register(emberd.PrometheusCollector(home))
    families = {family.name for family in registry.collect()}
    text = json.dumps(DASHBOARD) + (FOLDER / "alerts.yml").read_text(encoding="utf-8")
    used = set(re.findall(r"\bemberd_(?:client|cache|server|servers)\w*", text))
    assert used
    endings = "", "_total", "_bucket", "_count", "_sum"
    known = {f"{name}{ending}" for name in families for ending in endings}
    assert used - known == set()


# ---------------------------------------------------------------- a run with failures in it


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        """Return the data of a reply of its API."""
        reply = httpx.get(f"{self.url}/api/v1/{path}", params=query, trust_env=False, timeout=30)
        assert reply.status_code == 200, reply.text
        return reply.json()["data"]

    def values(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the current samples of an expression, without those that are not numbers."""
        found = self.get("query", query=expression)["result"]
        values = [(each["metric"], float(each["value"][1])) for each in found]
        return [(labels, value) for labels, value in values if not math.isnan(value)]


@contextmanager
def scraping(folder: Path, gateways: list[str], servers: list[str]) -> Iterator[Prometheus]:
    """Run Prometheus with the configuration of the docs, other addresses and short periods."""
    text = (FOLDER / "prometheus.yml").read_text(encoding="utf-8")
    replaced = {
        '["127.0.0.1:7475"]': json.dumps(gateways),
        '["127.0.0.1:30000", "127.0.0.1:30001"]': json.dumps(servers),
        "- alerts.yml": f"- {FOLDER}/alerts.yml",
        "15s": "1s",
    }
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    config, port = folder / "prometheus.yml", free_port()
    config.write_text(text)
    command = [program("prometheus"), f"--config.file={config}"]
    command += [f"--storage.tsdb.path={folder}/tsdb", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        found = Prometheus(port)

        def is_ready() -> bool:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            with suppress(httpx.TransportError):
                ready = httpx.get(f"{found.url}/-/ready", trust_env=False)
                return ready.status_code == 200
            return False

        waiting.until(is_ready, 60)
        yield found
    finally:
        process.terminate()
        process.wait(30)


def load(gateway: Running, seconds: float) -> None:
    """Send what a gateway gets in a day, for some seconds: also what is wrong."""
    until = time.monotonic() + seconds
    number = 0
    with ThreadPoolExecutor(16) as pool:
        while number < 2 or time.monotonic() < until:  # twice, so that the cache has a text
            number += 1
            texts = [f"text {number} {each}" for each in range(16)]
            list(pool.map(lambda text: gateway.post(model="demo:query", input=text), texts))
            gateway.post(model="demo", input=["always the same"])
            gateway.post(model="demo", input=[])  # a bad request
            gateway.post(model="not/served", input="x")
            gateway.post("/v1/rerank", model=RERANKER, query=f"{number}", documents=["a", "b"])
            with gateway.tcp(key="wrong") as client:
                client.get("/v1/models")


def engine_of(manager: Manager) -> psutil.Process:
    """Return the process of the demo server."""
    own = next(each for each in manager.status() if each.spec.model == "emberd/demo")
    found = server_of(psutil.Process(own.supervisor_pid))
    assert found is not None
    return found


@pytest.mark.timeout(400)
def test_each_query_of_the_dashboard_has_data_after_a_run_with_failures(
    home: Path,
    stub: Stub,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    port, redis = free_port(), start("redis")
    manager = Manager(home)
    monkeypatch.setattr(gpu_usage, "memory_of", lambda *_: 5 * GIB)
    with ExitStack() as stack:
        stack.callback(manager.stop)
        scores = stack.enter_context(FakeReranker())
        variables = {
            "EMBERD_MODEL": "emberd/demo",
            "EMBERD_PORT": str(port),
            "EMBERD_RERANK_MODEL": RERANKER,
            "EMBERD_RERANK_BASE_URL": scores.url,
        }
        gateway = stack.enter_context(serving(home, "--cache", redis.url, environment=variables))
        # A program with its own metrics, here also a stand-in for the memory of a GPU.
        registry = prometheus_client.CollectorRegistry()
        registry.register(emberd.PrometheusCollector(home))
        exporter, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry)
        stack.callback(thread.join)
        stack.callback(exporter.server_close)
        stack.callback(exporter.shutdown)
        own = f"127.0.0.1:{exporter.server_port}"
        prometheus = stack.enter_context(
            scraping(tmp_path, [gateway.url.removeprefix("http://"), own], [f"127.0.0.1:{port}"])
        )
        manager.ensure(stub(claims="GPU-1", takes=6 * GIB, has=40 * GIB))
        with pytest.raises(StartError):
            manager.ensure(stub("broken", faults="dies-at-start"))
        request.getfixturevalue("foreign")()
        manager.ensure(SPEC)

        load(gateway, RUN_S / 2)
        # Suspended, so that a request is in flight for certain when it is killed.
        engine = engine_of(manager)
        engine.suspend()
        body = {"model": "demo", "input": "in flight"}
        crashing = threading.Thread(target=lambda: gateway.post(**body))
        crashing.start()
        waiting.until(lambda: gateway.metrics()["emberd_gateway_requests_in_flight"] > 0)
        time.sleep(0.5)  # until it has reached the server
        engine.kill()
        crashing.join()
        reply = gateway.post(model="demo", input="after the crash")
        assert reply.status_code == 200, reply.text
        redis.kill()
        load(gateway, RUN_S / 2)

        empty, lines = [], []
        shown: dict[str, list[tuple[dict[str, str], float]]] = {}
        for panel in PANELS:
            for target in panel["targets"]:
                expression = target["expr"].replace("$__rate_interval", INTERVAL)
                expression = expression.replace("$model", ".*")
                found = prometheus.values(expression)
                lines += list(_shown(panel["title"], target["legendFormat"], found))
                shown.setdefault(panel["title"], []).extend(found)
                if not found:
                    empty.append(f"{panel['title']}: {expression}")
        print("\n".join(lines))
        assert empty == []
        for title, labels in FAILURES:
            values = [value for own, value in shown[title] if labels.items() <= own.items()]
            assert max(values, default=0) > 0, (title, labels, shown[title])
        alerts = prometheus.get("alerts")["alerts"]
        firing = {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}
        print("firing:", ", ".join(sorted(firing)))
        assert "EmberdServerCrashed" in firing
        up = [(labels["job"], value) for labels, value in prometheus.values("up")]
        assert sorted(up) == [("emberd", 1), ("emberd", 1), ("sglang", 1)]
        targets = prometheus.get("targets")["activeTargets"]
        assert [each["health"] for each in targets] == ["up"] * len(up)


def _shown(title: str, legend: str, found: list[tuple[dict[str, str], float]]) -> Iterator[str]:
    """Yield a line for each series of a panel."""
    for labels, value in sorted(found, key=str):
        name = legend
        for label in re.findall(r"{{(\w+)}}", legend):
            name = name.replace(f"{{{{{label}}}}}", labels.get(label, "").partition("?")[0])
        yield f"{title:30} {name:45} {value:.4g}"
