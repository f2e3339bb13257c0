"""An embedding function for Chroma over ``emberd.Embedder``.

Needs the package ``chromadb``, version 1.5 or later: ``pip install 'emberd[chroma]'``. Importing
this module registers the function: a program that opens a collection must import it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Self

from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from emberd.adapters.construction import IDENTITY, embedder_from, restored, saved
from emberd.embedder import Embedder
from emberd.errors import SettingError
from emberd.model_user import ModelInfo

_SPACES: Final[list[Space]] = ["cosine", "l2", "ip"]


@register_embedding_function
class EmberdEmbeddingFunction(EmbeddingFunction[Documents]):
    """Chroma's ``EmbeddingFunction``: documents and queries get the templates of their roles.

    A collection keeps the function's configuration: model, revision, dimensions and templates as
    they are resolved now. A later process that opens the collection without an
    ``embedding_function``, and with other variables in its environment, gets the same function. The
    key of a server is not kept; it is taken from ``EMBERD_API_KEY``.

    Chroma does not compare the configuration with a function that is passed for an existing
    collection: open that without one, or with ``emberd.guarded``.

    Construction starts nothing. It reads the files that describe the model, which are fetched from
    the hub if they are not on this machine.

    Args:
        model: Name on the hub, a folder, or an ``Embedder``; by default as for ``Embedder``.
        **settings: Any argument of ``Embedder``. Those that do not determine vectors, such as
            ``base_url``, are kept with the collection too, if they are given here.

    Raises:
        SettingError: A value is invalid.
        HubError: The files that describe the model cannot be fetched.
    """

    def __init__(
        self, model: str | os.PathLike[str] | Embedder | None = None, **settings: Any
    ) -> None:
        embedder = embedder_from(model, settings, type(self).__name__)
        self._set_up(embedder, saved(embedder, settings))

    @property
    def embedder(self) -> Embedder:
        """The embedder that this object uses."""
        return self._embedder

    @property
    def dimensions(self) -> int:
        """Length of the vectors; raises as ``Embedder.dimensions``."""
        return self._embedder.dimensions

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model without asking a server, as ``emberd.ModelInfo``."""
        return self._embedder.model_info

    @property
    def identity(self) -> str:
        """What determines the vectors, as a short text."""
        return self._embedder.identity

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma's name
        """Return the vectors of documents."""
        return list(self._embedder.embed_documents(input))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002
        """Return the vectors of queries."""
        return list(self._embedder.embed_queries(input))

    @staticmethod
    def name() -> str:
        """Return the name under which a collection keeps this function."""
        return "emberd"

    def default_space(self) -> Space:
        """Return the distance of collections that name none."""
        return _SPACES[0]

    def supported_spaces(self) -> list[Space]:
        """Return the distances that suit the vectors, whose norm is one: all of them."""
        return list(_SPACES)

    def get_config(self) -> dict[str, Any]:
        """Return what a collection keeps of this function."""
        return dict(self._config)

    @staticmethod
    def build_from_config(config: Mapping[str, Any]) -> EmberdEmbeddingFunction:
        """Return the function with the configuration that a collection has kept.

        Raises:
            SettingError: It is not such a configuration.
            IdentityError: It gives other vectors here: a folder holds another model now.
        """
        made = object.__new__(EmberdEmbeddingFunction)
        return made._set_up(restored(config), dict(config))

    def validate_config_update(
        self, old_config: Mapping[str, Any], new_config: Mapping[str, Any]
    ) -> None:
        """Raise if a changed configuration would give other vectors than those of the collection.

        Raises:
            IdentityError: It would.
        """
        restored(new_config).check_identity(str(old_config.get(IDENTITY)))

    @staticmethod
    def validate_config(config: Mapping[str, Any]) -> None:
        """Raise if this is no configuration of this function.

        Raises:
            SettingError: It is none; the text names the value.
        """
        if not isinstance(config.get(IDENTITY), str):
            raise SettingError(
                f"The configuration of a collection has no {IDENTITY}: {dict(config)!r:.200}. Use "
                f"what EmberdEmbeddingFunction.get_config() returns."
            )
        restored(config)

    def _set_up(self, embedder: Embedder, config: dict[str, Any]) -> Self:
        self._embedder = embedder
        self._config = config
        return self
