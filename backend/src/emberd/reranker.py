"""The reranker: how well each of some documents answers a query."""

from __future__ import annotations

import contextlib
import inspect
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from emberd.client.event_loops import Steps, finish, in_slices
from emberd.endpoint import Secret
from emberd.errors import InstructionError, QueryError, SettingError
from emberd.model_user import FIELDS, ModelUser, common_url
from emberd.prompts import TASKS, Frame, plain, rerank_frame, task_in_words
from emberd.settings import UNSET, RerankSettings, Unset

if TYPE_CHECKING:
    from emberd.client.vectors import Floats
    from emberd.verified_manager import Manager

_RANKED_A_STEP: Final = 1024


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document that was scored.

    Attributes:
        index: Its place in the documents.
        score: How well it answers the query, 0 to 1.
    """

    index: int
    score: float


class Reranker(ModelUser):
    """Scores of documents for a query, by Qwen3-Reranker.

    At the first use a server for the model is found, or started if there is none; it is another one
    than that of an ``Embedder``. Instances can be shared by threads, event loops and forked
    children, and pickled; pickles contain neither keys nor clients.

    A special token of the model, such as ``<|im_end|>``, is read as that token in a query or a
    document too, as by Qwen's own code: a document from a source that you do not trust may contain
    one to influence its score.

    Args:
        model: Name on the hub, or a folder; ``EMBERD_RERANK_MODEL``, else Qwen/Qwen3-Reranker-4B.
        instruction: What makes a document relevant: a task in words, or the name of a task in
            ``emberd.TASKS``; None for the model's default, which is web search unless its files
            have another one. A blank one is an error.
        base_url: A server to use; emberd then starts none. ``EMBERD_RERANK_BASE_URL``.
        api_key: Its key; ``EMBERD_RERANK_API_KEY``.
        revision: Commit of the model on the hub; ``EMBERD_RERANK_REVISION``.
        quantization: As for ``Embedder``, like the following ones, which have the same variables.
        engine: Which engine may serve.
        device: ``"cuda"`` or ``"cpu"``.
        context_tokens: Longest prompt that must fit, in tokens: instruction, query and document,
            and about 70 more.
        deterministic: A pair gets the same score, to the bit, alone and in any batch.
        batch_size: Maximum number of documents in one request.
        max_concurrency: Maximum number of requests in flight in this process.
        timeout: Time limit of one request: seconds, or a text such as ``"90s"``.
        start_timeout: How long to wait for a server to start, in the same form.
        idle_timeout: Time without use after which a started server stops, in the same form; None
            or ``"never"`` to keep it running.
        truncate: Cut documents whose prompt is too long instead of refusing them.
        manager: Finds and starts servers, instead of a default ``Manager``.
        client: An ``openai.OpenAI`` to use; emberd then uses its server and starts none.
        async_client: The same as ``openai.AsyncOpenAI``, for the asynchronous methods.

    Raises:
        SettingError: A value is invalid, or the model is not a reranker; the text says why.
    """

    _instruction: str | None

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        instruction: str | None = None,
        base_url: str | None = None,
        api_key: str | Secret | None = None,
        revision: str | None = None,
        quantization: str | None = None,
        engine: str | None = None,
        device: str | None = None,
        context_tokens: int | None = None,
        deterministic: bool | None = None,
        batch_size: int | None = None,
        max_concurrency: int | None = None,
        timeout: float | str | None = None,
        start_timeout: float | str | None = None,
        idle_timeout: float | str | Unset | None = UNSET,
        truncate: bool | None = None,
        manager: Manager | None = None,
        client: Any = None,
        async_client: Any = None,
    ) -> None:
        arguments = locals()
        given = {name: arguments[name] for name in _SETTINGS}
        given["base_url"] = common_url(base_url, client, async_client)
        self._instruction = _checked(instruction)
        self._build(RerankSettings.resolve(**given), manager, client, async_client)

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        top_n: int | None = None,
        instruction: str | None = None,
    ) -> list[RankedDocument]:
        """Return the documents in the order of their scores, the best first.

        Args:
            query: The query.
            documents: Any number of texts; a blank one is scored like any other.
            top_n: How many to return; None for all.
            instruction: Instead of that of this object, for this call.

        Raises:
            SettingError: ``top_n`` or ``instruction`` is invalid.
            QueryError: ``query`` is not a text, or cannot be encoded.
            TextError: A document cannot be scored; ``index`` is its place in ``documents``.
            HubError: No instruction is given, and the files that may name the model's default
                cannot be fetched.
            ServerError: No server is available.
            RequestError: The server refused the request, failed, or sent an invalid reply.
        """
        most = _count(top_n)
        return finish(_ranked(self.scores(query, documents, instruction), most))

    def scores(
        self, query: str, documents: Iterable[str], instruction: str | None = None
    ) -> Floats:
        """Return the score of each document, ``(n,)`` float32, in the order of the documents.

        A score is the probability that the model answers "yes", against "no", to whether the
        document is relevant. Arguments and errors are those of ``rerank``.
        """
        task = self._check(query, instruction)
        client = self._client()
        if task is None and self._settings.awaits_card:
            self._handle.wait("card", self._settings.obtain_card)
        scores: Floats = client.embed(documents, self._frame(query, task))
        return scores.reshape(-1)

    async def arerank(
        self,
        query: str,
        documents: Iterable[str],
        top_n: int | None = None,
        instruction: str | None = None,
    ) -> list[RankedDocument]:
        """Like ``rerank``, on the running event loop."""
        most = _count(top_n)
        return await in_slices(_ranked(await self.ascores(query, documents, instruction), most))

    async def ascores(
        self, query: str, documents: Iterable[str], instruction: str | None = None
    ) -> Floats:
        """Like ``scores``, on the running event loop."""
        task = self._check(query, instruction)
        client = await self._aclient()
        if task is None and self._settings.awaits_card:
            await self._handle.run("card", self._settings.obtain_card)
        scores: Floats = await client.embed(documents, self._frame(query, task))
        return scores.reshape(-1)

    @property
    def instruction(self) -> str | None:
        """What makes a document relevant; None for the model's default."""
        return self._instruction

    @property
    def default_instruction(self) -> str | None:
        """The model's default for ``instruction``; None if files that name it must be fetched."""
        settings = self._settings
        return None if settings.awaits_card else settings.known.query_task or TASKS["web"]

    def replace(self, **changes: Any) -> Self:
        """Return another reranker with some settings changed; the environment is not read.

        It uses the same manager, and the same given clients unless its server is another. With
        ``base_url`` on another origin, it has no key unless ``api_key`` is given too. With only
        another ``instruction``, it uses the same server and connections.

        Args:
            **changes: Any of the arguments of this class but ``manager`` and the clients. None is
                a value here; it does not mean "not given".

        Raises:
            SettingError: A value is invalid; the text names it.
        """
        changes = dict(changes)
        instruction = _checked(changes.pop("instruction", self._instruction))
        if unknown := sorted(changes.keys() - _SETTINGS):
            raise SettingError(
                f"Unknown setting {unknown[0]!r}. Known are: "
                f"{', '.join(sorted({*_SETTINGS, 'instruction'}))}."
            )
        other = super().replace(**changes)
        other._instruction = instruction
        return other

    def __repr__(self) -> str:
        shown = super().__repr__()
        return (
            shown
            if self.instruction is None
            else f"{shown[:-1]}, instruction={self.instruction!r})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "instruction": self._instruction}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._instruction = state["instruction"]
        super().__setstate__(state)

    def _frame(self, query: str, task: str | None) -> Frame:
        return rerank_frame(query, task, default=self._settings.known.query_task)

    def _check(self, query: str, instruction: str | None) -> str | None:
        """Return the instruction of a call; None for the model's default."""
        task = self._instruction if instruction is None else _checked(instruction)
        if not isinstance(query, str):
            raise QueryError(
                f"The query is of type {type(query).__name__}, not str: {query!r:.80}. Convert it."
            )
        try:
            query.encode()
        except UnicodeEncodeError as error:
            raise QueryError(
                f"The query holds the lone surrogate {error.object[error.start]!r} and cannot be "
                f"encoded. Read its source with its real encoding."
            ) from None
        return task


# Those of the settings that concern scores.
_SETTINGS: Final = frozenset(
    {field.name for field in FIELDS} & inspect.signature(Reranker).parameters.keys()
)


def _checked(given: Any) -> str | None:
    instruction: str | None = given
    if not isinstance(instruction, str | None):
        raise SettingError(f"instruction={instruction!r} must be a string, or None.")
    if instruction is not None:
        instruction = plain(instruction)
        if not instruction.strip():
            raise InstructionError(
                f"instruction={instruction!r} is blank. Omit it for the default, or give a task in "
                f"a sentence."
            )
        task_in_words("instruction", instruction)
    return instruction


def _count(top_n: Any) -> int | None:
    if top_n is None:
        return None
    if not isinstance(top_n, bool):
        with contextlib.suppress(TypeError):
            if (count := operator.index(top_n)) >= 1:  # an integer of numpy too
                return count
    raise SettingError(f"top_n={top_n!r} must be an integer of at least 1, or None for all.")


def _ranked(scores: Floats, top_n: int | None) -> Steps[list[RankedDocument]]:
    # Documents with equal scores stay in their order.
    order = (-scores).argsort(kind="stable")[:top_n]
    ranked: list[RankedDocument] = []
    for start in range(0, len(order), _RANKED_A_STEP):
        part = order[start : start + _RANKED_A_STEP]
        ranked += map(RankedDocument, part.tolist(), scores[part].tolist())
        yield
    return ranked
