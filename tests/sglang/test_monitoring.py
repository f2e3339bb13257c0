"""SGLang's own metrics, as docs/monitoring uses them: their names, and that they need no key."""

from __future__ import annotations

import re

import httpx
from prometheus_client.parser import text_string_to_metric_families

from emberd import Embedder
from source_tree import ROOT

_FOLDER = ROOT / "docs" / "monitoring"


def test_the_server_has_the_metrics_of_dashboard_and_alerts_without_a_key(
    embedder: Embedder,
) -> None:
    embedder.embed_documents(["one", "two", "three"])
    endpoint = embedder.endpoint()
    assert endpoint.api_key
    reply = httpx.get(f"{endpoint.url}/metrics", trust_env=False, timeout=30)
    assert reply.status_code == 200
    samples = [
        sample for family in text_string_to_metric_families(reply.text) for sample in family.samples
    ]
    files = [_FOLDER / name for name in ("grafana-dashboard.json", "alerts.yml")]
    used = {
        name
        for file in files
        for name in re.findall(r"sglang:\w+", file.read_text(encoding="utf-8"))
    }
    assert used
    assert used - {sample.name for sample in samples} == set()
    for name in used:
        labels = [sample.labels for sample in samples if sample.name == name]
        assert all("model_name" in each for each in labels), name
    assert endpoint.api_key not in reply.text
    read = sum(each.value for each in samples if each.name == "sglang:prompt_tokens_total")
    assert read > 0
