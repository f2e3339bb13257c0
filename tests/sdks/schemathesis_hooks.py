"""Leaves out valid inputs of ``docs/serve.openapi.json`` that are refused on purpose.

schemathesis imports this module (``SCHEMATHESIS_HOOKS``). JSON Schema cannot say which values of
two fields, or of a field and the path, contradict each other, what depends on the served model, and
what is a task in words.
"""

from __future__ import annotations

import re
from typing import Any, Final

import schemathesis

_NEGATIVE: Final = schemathesis.GenerationMode.NEGATIVE
_MODELS: Final = {"/v1/embeddings": "embedding", "/v1/rerank": "reranker"}
# With one of them, a task says what the queries look for.
_ROLES: Final = frozenset({"query", "search_query", "document", "passage", "search_document"})
# One word must be the name of a task, and what looks like a prefix or a template is refused.
_IN_WORDS: Final = re.compile(r"\w+( \w+)+")
_LENGTHS: Final = range(32, 1024 + 1)  # of vectors of Qwen3-Embedding-0.6B


@schemathesis.hook  # type: ignore[untyped-decorator]  # the package is not in this environment
def filter_case(_: Any, case: Any) -> bool:
    """Return whether a request is to be sent."""
    kind, body = _MODELS.get(case.operation.path), case.body
    if kind is None or case.meta is None or case.meta.generation.mode is _NEGATIVE:
        return True
    if not isinstance(body, dict):
        return True
    name, task, length = str(body.get("model")).casefold(), body.get("task"), body.get("dimensions")
    if any(other in name for other in {*_MODELS.values()} - {kind}):
        return False  # a served model on the route of the other kind
    if task is not None:
        has_role = kind == "reranker" or body.get("input_type") in _ROLES
        if not (has_role and _IN_WORDS.fullmatch(task)):
            return False
    return length is None or length in _LENGTHS
