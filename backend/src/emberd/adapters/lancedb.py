"""The class ``"emberd"`` of LanceDB's registry of embedding functions.

Needs the package ``lancedb``: ``pip install 'emberd[lancedb]'``. Importing this module registers
the class: a program that opens a table must import it.
"""

from __future__ import annotations

from typing import Any, ClassVar

from lancedb.embeddings import TextEmbeddingFunction, register
from pydantic import ConfigDict, PrivateAttr

from emberd.adapters.construction import embedder_from, restored, saved
from emberd.embedder import Embedder
from emberd.model_user import ModelInfo

_KEY = "api_key"


@register("emberd")
class EmberdTextEmbedding(TextEmbeddingFunction):
    """LanceDB's ``EmbeddingFunction``: the source column and queries get their own templates.

    Make it with ``get_registry().get("emberd").create(...)``, whose arguments are those of
    ``Embedder``. A table keeps in its metadata what determines the vectors (model, revision,
    dimensions, templates) as it is resolved now, and other arguments that are given, such as
    ``base_url``. A key is not kept: it is taken from ``EMBERD_API_KEY``, or given as a variable of
    the registry, ``api_key="$var:NAME"``.

    Construction opens no connection and starts nothing. LanceDB's ``max_retries`` has no effect,
    because emberd retries where that helps.

    Raises:
        SettingError: A value is invalid.
        IdentityError: What a table has kept gives other vectors here.
    """

    model_config = ConfigDict(extra="forbid")
    max_retries: ClassVar[int] = 0  # no field here

    _embedder: Embedder = PrivateAttr()

    def __init__(self, model: Any = None, **settings: Any) -> None:
        super().__init__()
        if "identity" in settings:
            self._embedder = restored({"model": model, **settings})
        else:
            self._embedder = embedder_from(model, settings, type(self).__name__)

    @staticmethod
    def sensitive_keys() -> list[str]:
        """Return the arguments that must be variables of the registry."""
        return [_KEY]

    @property
    def embedder(self) -> Embedder:
        """The embedder that this object uses."""
        return self._embedder

    @property
    def dimensions(self) -> int:
        """Length of the vectors, as ``ndims`` returns it."""
        return self.ndims()

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model without asking a server, as ``emberd.ModelInfo``."""
        return self._embedder.model_info

    def ndims(self) -> int:
        """Return the length of the vectors, as ``Embedder.dimensions``: nothing is embedded."""
        return self._embedder.dimensions

    def compute_query_embeddings(self, query: str, *_args: Any, **_kwargs: Any) -> list[Any]:
        """Return the vector of a query, in a list."""
        return list(self._embedder.embed_queries([query]))

    def compute_source_embeddings(self, texts: Any, *_args: Any, **_kwargs: Any) -> list[Any]:
        """Return the vectors of texts of the source column; None for a null."""
        given = list(self.sanitize_input(texts))
        vectors = iter(self._embedder.embed_documents([t for t in given if t is not None]))
        return [None if text is None else next(vectors) for text in given]

    def generate_embeddings(self, texts: Any, *_args: Any, **_kwargs: Any) -> list[Any]:
        """Return the vectors of documents."""
        return self.compute_source_embeddings(texts)

    # LanceDB would retry each error, also that of a text, and hide its type.
    compute_query_embeddings_with_retry = compute_query_embeddings
    compute_source_embeddings_with_retry = compute_source_embeddings

    def safe_model_dump(self) -> dict[str, Any]:
        """Return what a table keeps of this function."""
        given: dict[str, Any] = super().safe_model_dump()
        kept = saved(self._embedder, given)
        return {**kept, **({_KEY: given[_KEY]} if _KEY in given else {})}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EmberdTextEmbedding):
            return NotImplemented
        return self._embedder.identity == other._embedder.identity

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._embedder!r})"

    def __hash__(self) -> int:
        return hash((type(self), self._embedder.settings.model))
