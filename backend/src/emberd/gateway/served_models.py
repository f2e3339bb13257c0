"""The models that the gateway serves, and no others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from emberd.catalog import RERANK
from emberd.client import canary, usage
from emberd.counters import COUNTERS
from emberd.embedder import Embedder
from emberd.errors import ServerUnavailableError, SettingError, StartTimeoutError
from emberd.gateway import names
from emberd.gateway.names import Asked
from emberd.prompts import BARE
from emberd.reranker import RankedDocument, Reranker
from emberd.serving.bodies import RefusedError

if TYPE_CHECKING:
    from emberd.client.vectors import Floats

# Requests choose instructions and lengths, so what is kept for each choice is bounded.
_MOST_VARIANTS: Final = 64
_UNKNOWN_DIMENSIONS: Final = 4096
_PAUSE_S: Final = 2.0

_log = logging.getLogger("emberd.gateway")


class ServedEmbedder:
    """One embedding model.

    Args:
        embedder: Embeds with the defaults of the gateway.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._variants: OrderedDict[Asked, Embedder] = OrderedDict()

    @property
    def native_dimensions(self) -> int:
        """Length of a native vector, or a length that few models exceed."""
        return self._embedder.settings.known.dimensions or _UNKNOWN_DIMENSIONS

    async def embed(self, texts: Sequence[str], asked: Asked) -> tuple[Floats, int]:
        """Return the vectors of ``texts``, and how many tokens a server read for them.

        Raises:
            RefusedError: What is asked for does not suit the model.
            EmberdError: As ``Embedder.embed_documents``.
        """
        chosen = self._variant(asked)
        embed = chosen.aembed_queries if asked.role == "query" else chosen.aembed_documents
        with usage.counted() as used:
            try:
                vectors = await embed(texts)
            except SettingError as error:
                # If the request asks for neither, the gateway's own settings cannot be used.
                if asked.task is None and asked.dimensions is None:
                    raise
                raise RefusedError(str(error)) from error
        if canary.PROMPT_QUESTION in texts:
            is_query = asked.role == "query"
            template = chosen.query_template if is_query else chosen.document_template
            if template != BARE:
                raise RefusedError(
                    f"Yes: under this name, emberd's gateway embeds texts as {template!r:.200}."
                )
        return vectors, used.tokens

    def _variant(self, asked: Asked) -> Embedder:
        """Return the embedder of a task and a length, on the same server and connections."""
        changes = _changes(asked)
        if not changes:
            return self._embedder
        if (found := self._variants.get(asked)) is None:
            try:
                found = self._embedder.using(**changes)
            except SettingError as error:
                raise RefusedError(str(error)) from error
            self._variants[asked] = found
            if len(self._variants) > _MOST_VARIANTS:
                self._variants.popitem(last=False)
        self._variants.move_to_end(asked)
        return found


def _changes(asked: Asked) -> dict[str, Any]:
    """Return the settings that a request changes.

    Raises:
        RefusedError: The task does not apply to the role.
    """
    changes: dict[str, Any] = {}
    if asked.dimensions is not None:
        changes["dimensions"] = asked.dimensions
    if asked.truncate is not None:
        changes["truncate"] = asked.truncate
    if asked.task is None:
        return changes
    if asked.is_symmetric:
        if asked.role is not None:
            raise RefusedError(
                f"The task {asked.task!r:.120} applies to queries and documents: both get the same "
                f"template. Omit the role {asked.role!r}, and use this task for all texts."
            )
        return {**changes, "query_instruction": asked.task, "symmetric": True}
    if asked.role is None:
        raise RefusedError(
            f"The task {asked.task!r:.120} applies to queries, and documents are embedded without "
            f"it. Add the role: :query or :document in the name, or input_type."
        )
    if asked.role == "query":
        changes["query_instruction"] = asked.task
    return changes


class ServedReranker:
    """One reranker."""

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker

    async def rerank(
        self, query: str, documents: Sequence[str], top_n: int | None, asked: Asked
    ) -> tuple[list[RankedDocument], int]:
        """Return the ranked documents, and how many tokens a server read for them.

        Raises:
            RefusedError: What is asked for does not suit the model.
            EmberdError: As ``Reranker.rerank``.
        """
        if asked != Asked(task=asked.task):
            raise RefusedError(
                "A reranker has no role and no dimensions, and truncates only by EMBERD_TRUNCATE. "
                "Only a task can be given."
            )
        with usage.counted() as used:
            try:
                ranked = await self._reranker.arerank(query, documents, top_n, asked.task)
            except SettingError as error:
                if asked.task is None:
                    raise
                raise RefusedError(str(error)) from error
        return ranked, used.tokens


Served = ServedEmbedder | ServedReranker


class ServedModels:
    """All models of the gateway, by their names.

    Args:
        users: An embedder or a reranker for each model.

    Raises:
        SettingError: Two of them have the same model, or names that differ only in case.
    """

    def __init__(self, users: Sequence[Embedder | Reranker]) -> None:
        self._users = users
        self._served: dict[str, Served] = {}
        self._since = int(time.time())
        for user in users:
            name, task = user.settings.model, user.settings.task
            # Before the first use, so that a failure of it is an increase too.
            COUNTERS.begin(name, task, caches=user.settings.cache is not None)
            same = next((each for each in self._served if each.casefold() == name.casefold()), None)
            if same == name:
                raise SettingError(f"The model {name} is given twice. Give each model once.")
            if same is not None:
                raise SettingError(
                    f"The names of the models {same} and {name} differ only in case, which names "
                    f"in requests do not distinguish. Rename a folder, or serve one of them."
                )
            self._served[name] = (
                ServedReranker(user) if isinstance(user, Reranker) else ServedEmbedder(user)
            )
        shorts = [_short(name) for name in self._served]
        self._names = {name.casefold(): name for name in self._served}
        for name, short in zip(self._served, shorts, strict=True):
            if shorts.count(short) == 1:  # otherwise only the whole names are clear
                self._names.setdefault(short, name)

    @property
    def tasks(self) -> dict[str, str]:
        """What each model does, by its name."""
        return {user.settings.model: user.settings.task for user in self._users}

    def embedder(self, given: str) -> tuple[str, ServedEmbedder, Asked]:
        """Return the embedding model that a name means, and what else the name asks for.

        Raises:
            RefusedError: There is none.
        """
        name, asked = names.split(given, self._names)
        served = self._served[name]
        if isinstance(served, ServedEmbedder):
            return name, served, asked
        raise RefusedError(f"{name} is a reranker. Send the request to /v1/rerank.")

    def reranker(self, given: str) -> tuple[str, ServedReranker, Asked]:
        """Do as ``embedder``, for a reranker."""
        name, asked = names.split(given, self._names)
        served = self._served[name]
        if isinstance(served, ServedReranker):
            return name, served, asked
        raise RefusedError(f"{name} embeds texts, and a reranker is needed.")

    def users(self) -> Iterator[tuple[str, Embedder | Reranker]]:
        """Yield the shortest name of each model, and what uses it."""
        for user in self._users:
            name = user.settings.model
            short = _short(name)
            yield (short if self._names.get(short) == name else name), user

    def entries(self) -> Iterator[dict[str, Any]]:
        """Yield the models as ``/v1/models`` lists them: a name for each role."""
        for name, user in self.users():
            roles = ("",) if user.settings.task == RERANK else ("", ":query", ":document")
            for role in roles:
                yield self.entry(f"{name}{role}")

    def entry(self, given: str) -> dict[str, Any]:
        """Return what ``/v1/models`` says of one name.

        Raises:
            RefusedError: No served model has it.
        """
        name, _ = names.split(given, self._names)
        known = next(user.settings for user in self._users if user.settings.model == name).known
        is_reranker = isinstance(self._served[name], ServedReranker)
        return {
            "id": given,
            "object": "model",
            "created": self._since,
            "owned_by": "emberd-gateway",  # clients of emberd then send texts as they are
            "root": name,
            "task": "rerank" if is_reranker else "embed",
            "dimensions": None if is_reranker else known.dimensions,
            "max_model_len": known.context_tokens,
        }

    async def preload(self) -> None:
        """Find or start the server of each model, one after another.

        A given server that does not answer is asked until it does: it is started by others, such
        as in another pod, and maybe later.

        Raises:
            EmberdError: One cannot be started or used.
        """
        for user in self._users:
            _log.info("starting the server of %s", user.settings.model)
            while True:
                try:
                    server = await user.aensure()
                except StartTimeoutError as error:
                    _log.warning("%s", error)  # it continues to start
                except ServerUnavailableError as error:
                    if user.settings.base_url is None:
                        raise
                    _log.warning("%s", error)
                    await asyncio.sleep(_PAUSE_S)
                else:
                    break
            _log.info("%s is served: %s", user.settings.model, server.reason)

    async def close(self) -> None:
        """Close all connections to servers."""
        for user in self._users:
            await user.aclose()


def _short(name: str) -> str:
    return PurePath(name).name.casefold()
