"""What docs/serve.openapi.json and docs/serve.md say of the gateway is what there is."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from emberd import gateway
from emberd.gateway import access, api, api_bodies, names
from emberd.gateway.api import Gateway
from emberd.gateway.api_bodies import ErrorReply
from emberd.gateway.served_models import ServedModels
from emberd.serving.bodies import FORMATS
from emberd.serving.connections import Connections
from gateway.conftest import Faked
from source_tree import ROOT

SCHEMA: Any = json.loads((ROOT / "docs/serve.openapi.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs/serve.md").read_text(encoding="utf-8")


def _fields(name: str) -> Any:
    return SCHEMA["components"]["schemas"][name]["properties"]


def _paths() -> set[str]:
    app = Gateway(ServedModels([]), Connections()).app([], [])._app  # type: ignore[attr-defined]
    assert isinstance(app, Starlette)
    return {route.path.replace(":path", "") for route in app.routes if isinstance(route, Route)}


def test_all_routes_are_described() -> None:
    aliases = {"/v2/rerank", "/rerank"}
    assert set(SCHEMA["paths"]) == _paths() - aliases - {"/", "/metrics"}
    assert [path for path in _paths() if path.replace("{name}", "NAME") not in PAGE] == []


def test_limits_and_values_are_those_of_the_code() -> None:
    embedding, ranking = _fields("EmbeddingRequest"), _fields("RerankRequest")
    assert embedding["input"]["oneOf"][1]["maxItems"] == api_bodies.MOST_TEXTS
    assert ranking["documents"]["maxItems"] == api_bodies.MOST_DOCUMENTS
    assert embedding["encoding_format"]["enum"] == [*FORMATS, None]
    for fields in (embedding, ranking):
        assert fields["model"]["maxLength"] == names._MOST_NAME_CHARACTERS
        assert fields["task"]["maxLength"] == names._MOST_TASK_CHARACTERS
    assert set(embedding["input_type"]["enum"]) == {*names._INPUT_TYPES, None}
    assert f"http://{gateway.DEFAULT_HOST}:{gateway.DEFAULT_PORT}/v1" in PAGE
    assert f"{api_bodies.MOST_TEXTS:,} strings" in PAGE


def _table() -> set[tuple[int, str]]:
    """Return status and code of the rows of the table of errors."""
    rows = re.findall(r"^\| ([\d, ]+) \| (?:`(\w+)`)? ?\|", PAGE, re.MULTILINE)
    return {(int(each), code) for statuses, code in rows for each in statuses.split(",")}


def _saying(status: int, code: str | None = None) -> tuple[int, str]:
    error = ErrorReply.saying("", status, code).body["error"]
    return status, error["code"] or ""


def test_the_table_has_all_errors_and_no_others() -> None:
    kinds = [(status, code) for _, status, code in api_bodies._STATUSES]
    refusals = [each for each in vars(access).values() if isinstance(each, access._Refusal)]
    raised = {
        *(_saying(status, code) for status, code in kinds),
        *(_saying(each.status, each.reason) for each in refusals),
        *(_saying(status, api.NO_ROUTE) for status in (404, 405)),
        # RefusedError without another status, for no served model, by exchange and by the budget.
        *(_saying(status) for status in (400, 404, 408, 413, 503)),
        (ErrorReply.of(RuntimeError("")).status, ""),
    }
    assert len(refusals) == 4
    assert _table() == raised


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/embeddings", 405)]
)
def test_a_route_that_does_not_exist_has_the_code_of_the_table(
    faked: Faked, method: str, path: str, status: int
) -> None:
    with faked.running.client() as client:
        reply = client.request(method, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, api.NO_ROUTE)
