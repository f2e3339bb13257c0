"""Embeddings that bring their own server.

Most callers need only ``Embedder``. ``Manager`` finds, starts and stops servers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from emberd.endpoint import Endpoint
from emberd.errors import (
    AuthenticationError,
    BadReplyError,
    CollectionRowError,
    EmberdError,
    HubError,
    IdentityError,
    InstallError,
    InstructionError,
    LockTimeoutError,
    MissingKeyError,
    NoEngineError,
    PoisonTextError,
    QueryError,
    RejectedError,
    RequestError,
    RequestTimeoutError,
    ServerError,
    ServerMismatchError,
    ServerStoppedError,
    ServerUnavailableError,
    SettingError,
    StartError,
    StartTimeoutError,
    StateFolderError,
    TextError,
    TextTooLongError,
    VerifyError,
)
from emberd.prompts import TASKS
from emberd.settings import DEFAULT_MODEL, DEFAULT_RERANKER, UNSET, ServerSpec, Settings, Unset

if TYPE_CHECKING:
    from emberd.client.inputs import check_texts
    from emberd.client.vectors import ato_lists, to_lists
    from emberd.embedder import Embedder
    from emberd.manager import Progress, Server, ServerStatus
    from emberd.model_user import ModelInfo
    from emberd.prometheus import PrometheusCollector
    from emberd.reranker import RankedDocument, Reranker
    from emberd.stores.guard import guarded
    from emberd.verified_manager import Manager

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_RERANKER",
    "TASKS",
    "UNSET",
    "AuthenticationError",
    "BadReplyError",
    "CollectionRowError",
    "Embedder",
    "EmberdError",
    "Endpoint",
    "HubError",
    "IdentityError",
    "InstallError",
    "InstructionError",
    "LockTimeoutError",
    "Manager",
    "MissingKeyError",
    "ModelInfo",
    "NoEngineError",
    "PoisonTextError",
    "Progress",
    "PrometheusCollector",
    "QueryError",
    "RankedDocument",
    "RejectedError",
    "RequestError",
    "RequestTimeoutError",
    "Reranker",
    "Server",
    "ServerError",
    "ServerMismatchError",
    "ServerSpec",
    "ServerStatus",
    "ServerStoppedError",
    "ServerUnavailableError",
    "SettingError",
    "Settings",
    "StartError",
    "StartTimeoutError",
    "StateFolderError",
    "TextError",
    "TextTooLongError",
    "Unset",
    "VerifyError",
    "__version__",
    "ato_lists",
    "check_texts",
    "guarded",
    "to_lists",
]

# Imported at first use, so that ``import emberd`` stays cheap.
_LATE: Final = {
    "Embedder": "emberd.embedder",
    "Manager": "emberd.verified_manager",
    "ModelInfo": "emberd.model_user",
    "Progress": "emberd.manager",
    "PrometheusCollector": "emberd.prometheus",
    "RankedDocument": "emberd.reranker",
    "Reranker": "emberd.reranker",
    "Server": "emberd.manager",
    "ServerStatus": "emberd.manager",
    "ato_lists": "emberd.client.vectors",
    "check_texts": "emberd.client.inputs",
    "guarded": "emberd.stores.guard",
    "to_lists": "emberd.client.vectors",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
