"""What docs/serve.openapi.json and docs/serve.md say of the gateway is what there is."""

from __future__ import annotations

import json
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route

from emberd import gateway
from emberd.gateway import api_bodies, names
from emberd.gateway.api import Gateway
from emberd.gateway.served_models import ServedModels
from emberd.serving.bodies import FORMATS
from emberd.serving.connections import Connections
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


def test_all_error_codes_are_in_the_table() -> None:
    codes = {code for _, _, code in api_bodies._STATUSES if code}
    assert [code for code in codes if f"`{code}`" not in PAGE] == []
