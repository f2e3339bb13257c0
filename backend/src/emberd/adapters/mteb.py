"""An encoder for MTEB over ``emberd.Embedder``: the quality of the server that you use.

Needs the package ``mteb``, version 2: ``pip install 'emberd[mteb]'``.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, Final

from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType

from emberd import model_card
from emberd.adapters.construction import embedder_from, prefix_template
from emberd.embedder import Embedder
from emberd.errors import SettingError
from emberd.model_user import ModelInfo
from emberd.prompts import Role

_LOG: Final = logging.getLogger("emberd")
_ROLES: Final[tuple[Role, Role]] = ("query", "document")


class EmberdEncoder(AbsEncoder):
    """A model for ``mteb.evaluate``, whose vectors a server gives.

    Each text is sent in the template that suits the task, the first of these that there is:

    1. A prompt of ``prompts``, else of the model's files, for the task's name or type.
    2. The template of documents, for documents.
    3. If the model takes tasks, as Qwen3-Embedding does: the instruction that MTEB has for the
       task, in the model's form. It is put before queries, and before all texts of tasks without
       queries, such as STS, classification and clustering. If ``query_instruction`` is given, that
       is used for all queries instead.
    4. The template of queries, for queries.
    5. The template of documents, as with ``Embedder(symmetric=True)``.

    The log ``emberd`` shows at level INFO which template a task gets. Texts that are too long are
    cut, as other models of MTEB do. MTEB keeps results under the model's name and a revision that
    changes with the model's files, the dimensions, the templates and ``prompts``.

    Args:
        model_name: Name on the hub, a folder, or an ``Embedder``, which then decides whether texts
            are cut; by default as for ``Embedder``.
        revision: Commit, branch or tag on the hub.
        device: ``"cuda"`` or ``"cpu"``; None for any.
        prompts: What comes before each text, by name or type of a task, or ``"NAME-query"`` and
            ``"NAME-document"``, as elsewhere in MTEB.
        **settings: Any argument of ``Embedder``.

    Raises:
        SettingError: A value is invalid.
    """

    def __init__(
        self,
        model_name: str | os.PathLike[str] | Embedder | None = None,
        revision: str | None = None,
        *,
        device: str | None = None,
        prompts: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        settings |= {
            name: value
            for name, value in {"revision": revision, "device": device}.items()
            if value is not None
        }
        if not isinstance(model_name, Embedder):
            settings.setdefault("truncate", True)
        self.embedder = embedder_from(model_name, settings, type(self).__name__)
        self._given_prompts = {
            name: prefix_template(prompt, f"prompts[{name!r}]")
            for name, prompt in (prompts or {}).items()
        }
        self._meta: ModelMeta | None = None

    @property
    def dimensions(self) -> int:
        """Length of the vectors; raises as ``Embedder.dimensions``."""
        return self.embedder.dimensions

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model without asking a server, as ``emberd.ModelInfo``."""
        return self.embedder.model_info

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """What MTEB shows of the model, and keeps its results under."""
        if self._meta is None:
            info, settings = self.embedder.model_info, self.embedder.settings
            name = settings.model
            if name.count("/") != 1 or os.path.isabs(name):
                name = f"local/{PurePath(name).name}"
            # A given instruction replaces those of the tasks, also if it equals the default.
            given = (settings.query_instruction, sorted(self._given_prompts.items()))
            identity = hashlib.sha256(f"{self.embedder.identity} {given}".encode()).hexdigest()
            self._meta = ModelMeta.create_empty(
                {
                    "name": name,
                    "revision": f"emberd-{identity[:12]}",
                    "embed_dim": info.dimensions,
                    "max_tokens": info.context_tokens,
                    "similarity_fn_name": ScoringFunction.COSINE,
                    "use_instructions": info.query_template != info.document_template,
                }
            )
        return self._meta

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,  # noqa: ARG002 - MTEB's signature
        hf_subset: str,  # noqa: ARG002
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Return the vectors of texts, ``(n, dimensions)``.

        Args:
            inputs: Batches with ``"text"``.
            task_metadata: The task.
            hf_split: Has no effect.
            hf_subset: Has no effect.
            prompt_type: Whether the texts are queries or documents; None for neither.
            **kwargs: ``batch_size`` has no effect, because emberd fills its requests itself;
                ``show_progress_bar``; ``precision`` must be ``"float32"``.

        Raises:
            SettingError: Another precision is asked for.
            EmberdError: The texts cannot be embedded.
        """
        if (precision := kwargs.get("precision")) not in (None, "float32"):
            raise SettingError(f"precision={precision!r} is not available, only 'float32'.")
        role: Role | None = None if prompt_type is None else PromptType(prompt_type).value
        template = self._template(task_metadata, role)
        _LOG.info("MTEB task %s, %s: %r", task_metadata.name, role or "all texts", template)
        embedder = self.embedder.using(
            symmetric=False,
            query_instruction=template,
            document_instruction=template,
            show_progress=bool(kwargs.get("show_progress_bar", False)),
        )
        return embedder.embed_documents([text for batch in inputs for text in batch["text"]])

    def _template(self, task_metadata: Any, role: Role | None) -> str:
        embedder = self.embedder
        prompts = self._prompts()
        kind = None if role is None else PromptType(role)
        if (named := get_prompt_name(prompts, task_metadata, kind)) is not None:
            return prompts[named]
        settings = embedder.settings
        form = settings.known.instruction_form
        if role != "document" and form is not None and settings.query_instruction is None:
            instruction: Any = self.get_instruction(task_metadata, kind)
            if isinstance(instruction, Mapping):  # of a task with a prompt of queries, but no roles
                instruction = next(iter(instruction.values()), None)
            if instruction:
                return form.replace("{task}", instruction)
        return embedder.query_template if role == "query" else embedder.document_template

    def _prompts(self) -> dict[str, str]:
        """Return the templates by what MTEB calls them, without those of the two roles."""
        settings = self.embedder.settings
        _ = self.embedder.query_template  # fetches the files that describe the model
        named = model_card.read_saved_settings(settings.model, settings.revision).get("prompts")
        found = {
            name: prefix_template(prompt, f"the prompt {name!r} of {settings.model}")
            for name, prompt in (named.items() if isinstance(named, dict) else ())
            if name not in _ROLES and isinstance(prompt, str)
        }
        return found | self._given_prompts
