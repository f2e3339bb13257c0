"""The interface of sentence-transformers 6 over ``emberd.Embedder``.

sentence-transformers itself is not needed, and torch only where a tensor is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from emberd import model_card
from emberd.adapters.construction import embedder_from, prefix_template
from emberd.embedder import Embedder
from emberd.errors import SettingError
from emberd.model_user import ModelInfo
from emberd.prompts import BARE

if TYPE_CHECKING:
    from emberd.client.vectors import Floats

_QUERY: Final = "query"
_DOCUMENT: Final = "document"
_SIMILARITIES: Final = ("cosine", "dot", "euclidean", "manhattan")


class EmberdSentenceTransformer:
    """``SentenceTransformer`` for code that calls its methods, with the vectors of a server.

    ``encode``, ``encode_query``, ``encode_document``, ``similarity`` and their like have the
    arguments and results of sentence-transformers 6. What a server cannot do raises a
    ``SettingError``: it is never ignored. These differ:

    * A text that is too long is refused, unless ``truncate=True`` is given.
    * ``similarity`` returns NumPy arrays, or tensors if it is given one.
    * There is no model in this process: no modules, tokenizer, ``device`` or training.

    Args:
        model_name_or_path: Name on the hub, a folder, or an ``Embedder``, whose dimensions and
            templates then apply; by default as for ``Embedder``.
        prompts: Prompts by name; they replace those that the model's files give the same name.
        default_prompt_name: The prompt of ``encode`` if none is named; by default what the model's
            files say, else none.
        similarity_fn_name: ``"cosine"``, ``"dot"``, ``"euclidean"`` or ``"manhattan"``; by default
            what the model's files say, else cosine.
        truncate_dim: Length to which vectors are cut. As in sentence-transformers, and unlike with
            ``dimensions`` of an ``Embedder``, they are then not normalised again, unless
            ``normalize_embeddings=True`` is given to ``encode``.
        **settings: Any argument of ``Embedder``.

    Raises:
        SettingError: A value is invalid, or an argument has no effect on a server.
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | Embedder | None = None,
        *,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: str | None = None,
        truncate_dim: int | None = None,
        **settings: Any,
    ) -> None:
        self._embedder = embedder_from(model_name_or_path, settings, type(self).__name__)
        for name, prompt in (prompts or {}).items():
            prefix_template(prompt, f"prompts[{name!r}]")
        if similarity_fn_name not in (None, *_SIMILARITIES):
            raise SettingError(
                f"similarity_fn_name={similarity_fn_name!r} must be one of "
                f"{', '.join(_SIMILARITIES)}."
            )
        self.truncate_dim = _checked_length(truncate_dim)
        self._given_prompts = dict(prompts or {})
        self._given_default = default_prompt_name
        self._similarity_fn_name = similarity_fn_name

    @property
    def embedder(self) -> Embedder:
        """The embedder that this object uses."""
        return self._embedder

    @property
    def dimensions(self) -> int:
        """Length of the vectors; raises as ``Embedder.dimensions``."""
        return self.get_embedding_dimension()

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model without asking a server, as ``emberd.ModelInfo``.

        Its ``dimensions`` are those of the vectors that ``truncate_dim`` cuts.
        """
        info, length = self._embedder.model_info, self.truncate_dim
        if length is None:
            return info
        native = info.native_dimensions
        return replace(info, dimensions=None if native is None else min(length, native))

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts by name, as far as they are what comes before a text."""
        end = len(BARE)
        return {
            name: template[:-end]
            for name, template in self._templates().items()
            if template.endswith(BARE)
        }

    @property
    def default_prompt_name(self) -> str | None:
        """The prompt of ``encode`` if none is named."""
        if self._given_default is not None:
            return self._given_default
        default = self._described().get("default_prompt_name")
        return default if isinstance(default, str) else None

    def encode(  # noqa: PLR0917 - the library's order
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        **others: Any,
    ) -> Any:
        """Return the vectors of texts that are neither queries nor documents of a search.

        Args:
            inputs: One text, or several; ``sentences=`` is its old name.
            prompt_name: One of ``prompts``; None for ``default_prompt_name``, else no prompt.
            prompt: What comes before each text, instead of a named prompt.
            batch_size: Maximum number of texts in one request; None for the embedder's.
            show_progress_bar: Show a progress bar; None for the embedder's setting.
            output_value: Only ``"sentence_embedding"``.
            precision: Only ``"float32"``.
            convert_to_numpy: Return a NumPy array.
            convert_to_tensor: Return a tensor of torch, on the CPU. If neither, a list of tensors.
            device: Only None: the server decides.
            normalize_embeddings: Normalise vectors again that ``truncate_dim`` has cut; others have
                norm one in any case.
            truncate_dim: Instead of that of this object.
            pool: Only None.
            chunk_size: Only None.
            **others: Nothing else is accepted.

        Returns:
            One vector for a single text, else one row for each.

        Raises:
            SettingError: There is no such prompt, or an argument has no effect on a server.
            EmberdError: The texts cannot be embedded; see ``Embedder.embed_documents``.
        """
        inputs = others.pop("sentences", None) if inputs is None else inputs
        _refuse(
            output_value=(output_value, "sentence_embedding"),
            precision=(precision, "float32", None),
            device=(device, None),
            pool=(pool, None),
            chunk_size=(chunk_size, None),
            **{name: (value, None) for name, value in others.items()},
        )
        is_one = isinstance(inputs, str)
        texts = [inputs] if is_one else inputs.tolist() if hasattr(inputs, "tolist") else inputs
        length = self.truncate_dim if truncate_dim is None else _checked_length(truncate_dim)
        embedder = self._using(
            self._template(prompt_name, prompt), batch_size, show_progress_bar, length
        )
        vectors = embedder.embed_documents(texts)[:, :length]
        if normalize_embeddings and length is not None:
            vectors = _normalized(vectors)
        # The library returns an empty array without rows for no texts.
        found: Any = vectors if len(vectors) else vectors.reshape(-1)
        if convert_to_tensor or not convert_to_numpy:
            tensors = _torch().from_numpy(found.copy())
            found = tensors if convert_to_tensor else list(tensors)
        return found[0] if is_one else found

    def encode_query(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *rest: Any,
        **more: Any,
    ) -> Any:
        """Return the vectors of queries: ``encode`` with the prompt ``"query"``."""
        name = _QUERY if prompt_name is None and prompt is None else prompt_name
        return self.encode(inputs, name, prompt, *rest, **more)

    def encode_document(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        *rest: Any,
        **more: Any,
    ) -> Any:
        """Return the vectors of documents: ``encode`` with the prompt ``"document"``."""
        name = _DOCUMENT if prompt_name is None and prompt is None else prompt_name
        return self.encode(inputs, name, prompt, *rest, **more)

    @property
    def similarity_fn_name(self) -> str:
        """How ``similarity`` compares vectors."""
        if self._similarity_fn_name is None:
            said = self._described().get("similarity_fn_name")
            self._similarity_fn_name = said if said in _SIMILARITIES else _SIMILARITIES[0]
        return self._similarity_fn_name

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarity of each vector of the one with each of the other, ``(n, m)``."""
        return _compared(_MATRIX[self.similarity_fn_name], embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarity of each vector of the one with that in its place, ``(n,)``."""
        return _compared(_PAIRS[self.similarity_fn_name], embeddings1, embeddings2)

    def get_embedding_dimension(self) -> int:
        """Return the length of the vectors; raises as ``Embedder.dimensions``."""
        if self.truncate_dim is None:
            return self._embedder.dimensions
        return min(self.truncate_dim, self._embedder.using(dimensions=None).dimensions)

    def get_sentence_embedding_dimension(self) -> int:
        """Return the length of the vectors; the old name of ``get_embedding_dimension``."""
        return self.get_embedding_dimension()

    @property
    def max_seq_length(self) -> int | None:
        """Longest text, in tokens; None if not known. It cannot be set."""
        return self._embedder.model_info.context_tokens

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        if value != self.max_seq_length:
            raise SettingError(
                f"max_seq_length={value!r} cannot be set, because the server has the model. Pass "
                f"truncate=True to have longer texts cut to its limit of {self.max_seq_length} "
                f"tokens, or split them."
            )

    def get_max_seq_length(self) -> int | None:
        """Return the longest text, in tokens; None if not known."""
        return self.max_seq_length

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Cut vectors to ``truncate_dim`` in this block; other threads see it too."""
        before, self.truncate_dim = self.truncate_dim, _checked_length(truncate_dim)
        try:
            yield
        finally:
            self.truncate_dim = before

    def _template(self, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prefix_template(prompt, "prompt")
        name = self.default_prompt_name if prompt_name is None else prompt_name
        if name is None:
            return BARE
        templates = self._templates()
        if name not in templates:
            raise SettingError(
                f"prompt_name={name!r} is none of the prompts of {self._embedder.settings.model}: "
                f"{', '.join(templates)}. Name one of them, or pass prompt= with the text itself."
            )
        return templates[name]

    def _templates(self) -> dict[str, str]:
        embedder = self._embedder
        named = self._described().get("prompts")
        templates = {
            name: prefix_template(prompt, f"the prompt {name!r} of {embedder.settings.model}")
            for name, prompt in (named.items() if isinstance(named, dict) else ())
            if isinstance(prompt, str)
        }
        templates[_QUERY] = embedder.query_template
        templates[_DOCUMENT] = embedder.document_template
        own = {name: prefix_template(text, name) for name, text in self._given_prompts.items()}
        return templates | own

    def _described(self) -> dict[str, Any]:
        settings = self._embedder.settings
        _ = self._embedder.query_template  # fetches the files that describe the model
        return model_card.read_saved_settings(settings.model, settings.revision)

    def _using(
        self, template: str, batch_size: int | None, progress: bool | None, length: int | None
    ) -> Embedder:
        changes: dict[str, Any] = {
            "symmetric": False,
            "query_instruction": template,
            "document_instruction": template,
        }
        if batch_size is not None:
            changes["batch_size"] = batch_size
        if progress is not None:
            changes["show_progress"] = bool(progress)
        if length is not None:
            changes["dimensions"] = None
        return self._embedder.using(**changes)


def _checked_length(length: Any) -> int | None:
    if length is None or (isinstance(length, int) and not isinstance(length, bool) and length > 0):
        return length
    raise SettingError(f"truncate_dim={length!r} must be an integer of at least 1, or None.")


def _refuse(**given: tuple[Any, ...]) -> None:
    """Raise for each argument whose value is none of those after it."""
    for name, (value, *accepted) in given.items():
        if not any(value is each or value == each for each in accepted):
            raise SettingError(
                f"{name}={value!r} has no effect on a server. Leave it out."
                if accepted == [None]
                else f"{name}={value!r} is not available from a server, only {accepted[0]!r}. "
                f"For other precisions, pass the vectors to "
                f"sentence_transformers.util.quantize_embeddings."
            )


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise SettingError(
            "Tensors need torch, which is not installed. Install it, or leave convert_to_tensor "
            "and convert_to_numpy out for NumPy arrays."
        ) from None
    return torch


def _normalized(vectors: Any) -> Any:
    import numpy as np

    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


def _compared(compare: Callable[[Floats, Floats], Floats], one: Any, other: Any) -> Any:
    import numpy as np

    given_tensor = any(hasattr(each, "detach") for each in (one, other))
    rows = [
        np.atleast_2d(each.detach().float().cpu().numpy())
        if hasattr(each, "detach")
        else np.atleast_2d(np.asarray([np.asarray(row, np.float32) for row in each], np.float32))
        if isinstance(each, list)
        else np.atleast_2d(np.asarray(each, np.float32))
        for each in (one, other)
    ]
    found = compare(*rows)
    return _torch().from_numpy(found) if given_tensor else found


def _distances(one: Any, other: Any, order: int) -> Any:
    import numpy as np

    # Row by row: all differences at once would be as many vectors as there are pairs.
    rows = [np.linalg.norm(other - row, ord=order, axis=1) for row in one]
    return -np.stack(rows) if rows else np.zeros((0, len(other)), np.float32)


def _pair_distances(one: Any, other: Any, order: int) -> Any:
    import numpy as np

    return -np.linalg.norm(one - other, ord=order, axis=1)


_MATRIX: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "cosine": lambda one, other: _normalized(one) @ _normalized(other).T,
    "dot": lambda one, other: one @ other.T,
    "euclidean": lambda one, other: _distances(one, other, 2),
    "manhattan": lambda one, other: _distances(one, other, 1),
}
_PAIRS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "cosine": lambda one, other: (_normalized(one) * _normalized(other)).sum(axis=1),
    "dot": lambda one, other: (one * other).sum(axis=1),
    "euclidean": lambda one, other: _pair_distances(one, other, 2),
    "manhattan": lambda one, other: _pair_distances(one, other, 1),
}
