"""``EmberdRerank``: LlamaIndex's ``BaseNodePostprocessor`` over ``emberd.Reranker``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Self

from llama_index.core.bridge.pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    model_validator,
)
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from emberd import (
    DEFAULT_RERANKER,
    Endpoint,
    ModelInfo,
    RankedDocument,
    Reranker,
    SettingError,
    Settings,
)
from llama_index.postprocessor.emberd.construction import (
    RERANKER,
    SETTINGS,
    invalid,
    reranker_of,
    secret,
    shown,
)

_dispatcher = get_dispatcher(__name__)

_DEFAULT: Final = Settings()  # does not read the environment
_RETRIEVAL_SCORE: Final = "retrieval_score"  # the key that SentenceTransformerRerank uses

Nodes = list[NodeWithScore]


def _setting(name: str, description: str) -> Any:
    return Field(default=getattr(_DEFAULT, name), frozen=True, description=description)


class EmberdRerank(BaseNodePostprocessor):
    """A node postprocessor that orders nodes by how well they answer the query.

    Qwen3-Reranker scores them, on a server that is found on this machine, or started by the first
    call; it is another one than that of ``EmberdEmbedding``. The conventions are those of
    ``EmberdEmbedding``: construction opens no connection and starts nothing. A setting that is not
    given is taken from the environment (``EMBERD_RERANK_MODEL``, ``EMBERD_RERANK_BASE_URL``,
    ``EMBERD_RERANK_API_KEY``, ...), else it is the default; the fields show the resolved values.
    Settings cannot be assigned: ``model_copy(update={...})`` returns another object. ``to_dict()``
    and pickles contain no key; it is taken from ``EMBERD_RERANK_API_KEY``.

    The text of a node is that which LlamaIndex embeds, with its metadata lines
    (``MetadataMode.EMBED``).

    Examples:
        ``pip install llama-index-postprocessor-emberd``

        .. code-block:: python

            from llama_index.postprocessor.emberd import EmberdRerank

            engine = index.as_query_engine(
                similarity_top_k=50, node_postprocessors=[EmberdRerank(top_n=5)]
            )

    Raises:
        pydantic.ValidationError: A field does not exist, or a value is invalid.
    """

    # strict: a value that pydantic converts would differ from the one that the Reranker got.
    # hide_input_in_errors: the input contains the key.
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    model: str = Field(
        default=DEFAULT_RERANKER, frozen=True, description="Name on the hub, or a folder."
    )
    top_n: int | None = Field(
        default=None, ge=1, description="How many nodes to return; None for all."
    )
    keep_retrieval_score: bool = Field(
        default=False,
        description="Keep the score of the retriever as metadata['retrieval_score'].",
    )
    instruction: str | None = Field(
        default=None,
        frozen=True,
        description="What makes a node relevant: a task in words, or the name of a task such as "
        "'code'. If not given, the model's default: web search, unless its files have another one.",
    )
    revision: str | None = _setting(
        "revision", "Commit, branch or tag on the hub; None for the default."
    )
    quantization: str | None = _setting(
        "quantization", "'fp8' for weights of eight bits, which give other scores; None for none."
    )
    base_url: str | None = _setting("base_url", "A server to use; emberd then starts none.")
    api_key: SecretStr | None = Field(
        default=None, frozen=True, exclude=True, description="The key of that server."
    )
    engine: str | None = _setting("engine", "Which engine may serve; None for any.")
    device: str | None = _setting("device", "'cuda', 'mps' or 'cpu'; None for any.")
    context_tokens: int | None = _setting(
        "context_tokens", "Longest prompt that must fit, in tokens; None for any."
    )
    deterministic: bool = _setting(
        "deterministic", "A pair gets the same score, to the bit, alone and in any batch."
    )
    batch_size: int = _setting("batch_size", "Maximum number of nodes in one request.")
    max_concurrency: int = _setting(
        "max_concurrency", "Maximum number of requests in flight in this process."
    )
    timeout: float = _setting(
        "timeout", "Time limit of one request, in seconds; '90s' is accepted."
    )
    start_timeout: float = _setting(
        "start_timeout", "How long to wait for a server to start, in seconds; '15m' is accepted."
    )
    idle_timeout: float | None = _setting(
        "idle_timeout",
        "Time without use after which a started server stops, in seconds; '5m' is accepted. None "
        "for never.",
    )
    truncate: bool = _setting("truncate", "Cut nodes that are too long instead of refusing them.")

    _reranker: Reranker = PrivateAttr()

    @model_validator(mode="wrap")
    @classmethod
    def _resolve(cls, data: Any, handler: Callable[[Any], Self]) -> Self:
        if not isinstance(data, dict):
            return handler(data)
        data = dict(data)
        try:
            reranker = reranker_of(cls, EmberdRerank, data)
        except SettingError as error:
            raise invalid(cls, data, error) from None
        others = {name: value for name, value in data.items() if name not in SETTINGS}
        # Other constructors accept None for it. For other fields, None is a value, with which a
        # subclass's own default is changed.
        if others.get("callback_manager") is None:
            others.pop("callback_manager", None)
        made = handler(others | shown(reranker))
        made._reranker = reranker
        return made

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy, or, with ``update``, an object that has the other settings of this one.

        Args:
            update: Fields to change, checked like those of a new object.
            deep: Has no effect, because what the copies share never changes.
        """
        if not update:
            return super().model_copy(deep=deep)
        changes = {name: update[name] for name in update if name in SETTINGS}
        others = {name: getattr(self, name) for name in type(self).model_fields}
        others = {
            name: value for name, value in {**others, **update}.items() if name not in SETTINGS
        }
        try:
            reranker = self._reranker.replace(**changes)
        except SettingError as error:
            raise invalid(type(self), update, error) from None
        return self.from_reranker(reranker, **others)

    @classmethod
    def from_reranker(cls, reranker: Reranker, **others: Any) -> Self:
        """Return an object that uses a ``Reranker``, which may have your own client or manager.

        Args:
            reranker: Provides all settings; the environment is not read again.
            **others: Fields that are not settings, such as ``top_n``.

        Raises:
            pydantic.ValidationError: It is not a ``Reranker``, or a setting is given as well.
        """
        return cls(**{**others, RERANKER: reranker})

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        # Without callbacks, which do not change the order; each object has its own manager of them.
        mine, theirs = ({**each.__dict__, "callback_manager": None} for each in (self, other))
        return mine == theirs

    def __hash__(self) -> int:
        return hash((type(self), self.model))

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        # From a copy, because BaseComponent removes what cannot be pickled, such as a handler of
        # callbacks, from the object itself.
        twin = self.__copy__()
        twin.__dict__["api_key"] = None
        return super(EmberdRerank, twin).__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Not as BaseComponent, which runs __init__ again: that would read the environment of the
        # worker. Only the key comes from there, and the reranker has read it.
        api_key = state["__pydantic_private__"]["_reranker"].settings.api_key
        values = {
            name: field.get_default(call_default_factory=True)
            for name, field in type(self).model_fields.items()
        }
        values |= {**state["__dict__"], "api_key": secret(api_key)}
        BaseModel.__setstate__(self, {**state, "__dict__": values})

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class in ``to_dict()``."""
        return "EmberdRerank"

    @property
    def reranker(self) -> Reranker:
        """The framework-free reranker that this object uses; it takes texts."""
        return self._reranker

    def endpoint(self) -> Endpoint:
        """Return the server in use; find or start it now if there is none yet."""
        return self._reranker.endpoint()

    @property
    def model_info(self) -> ModelInfo:
        """What is known of the model without asking a server; see ``emberd.ModelInfo``."""
        return self._reranker.model_info

    def _postprocess_nodes(self, nodes: Nodes, query_bundle: QueryBundle | None = None) -> Nodes:
        query = _query_of(query_bundle)
        if not nodes:
            return []
        with self._events(nodes, query) as on_ranked:
            return on_ranked(self._reranker.rerank(query.query_str, _texts(nodes), self.top_n))

    async def _apostprocess_nodes(
        self, nodes: Nodes, query_bundle: QueryBundle | None = None
    ) -> Nodes:
        query = _query_of(query_bundle)
        if not nodes:
            return []
        with self._events(nodes, query) as on_ranked:
            texts = _texts(nodes)
            return on_ranked(await self._reranker.arerank(query.query_str, texts, self.top_n))

    @contextmanager
    def _events(
        self, nodes: Nodes, query: QueryBundle
    ) -> Iterator[Callable[[Sequence[RankedDocument]], Nodes]]:
        """Send the events of reranking in this block.

        Yields:
            A function to call with the ranking, which returns the nodes in its order.
        """
        count = len(nodes) if self.top_n is None else self.top_n  # the events need a number
        _dispatcher.event(
            ReRankStartEvent(query=query, nodes=nodes, top_n=count, model_name=self.model)
        )
        made: Nodes = []
        with self.callback_manager.event(
            CBEventType.RERANKING,
            payload={
                EventPayload.NODES: nodes,
                EventPayload.MODEL_NAME: self.model,
                EventPayload.QUERY_STR: query.query_str,
                EventPayload.TOP_K: count,
            },
        ) as event:

            def on_ranked(ranked: Sequence[RankedDocument]) -> Nodes:
                made.extend(self._scored(nodes[each.index], each.score) for each in ranked)
                event.on_end(payload={EventPayload.NODES: made})
                return made

            yield on_ranked
        _dispatcher.event(ReRankEndEvent(nodes=made))

    def _scored(self, hit: NodeWithScore, score: float) -> NodeWithScore:
        if not self.keep_retrieval_score:
            return hit.model_copy(update={"score": score})
        # The texts of the node for embedding and for a language model stay as they are.
        node = hit.node
        changed: dict[str, Any] = {"metadata": {**node.metadata, _RETRIEVAL_SCORE: hit.score}}
        for keys in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys"):
            changed[keys] = list(dict.fromkeys([*getattr(node, keys), _RETRIEVAL_SCORE]))
        return hit.model_copy(update={"node": node.model_copy(update=changed), "score": score})


def _query_of(bundle: QueryBundle | None) -> QueryBundle:
    if bundle is None:
        raise SettingError(
            "EmberdRerank needs the query, and query_bundle is None. Pass query_bundle= or "
            "query_str= to postprocess_nodes()."
        )
    return bundle


def _texts(nodes: Nodes) -> list[str]:
    return [hit.node.get_content(metadata_mode=MetadataMode.EMBED) for hit in nodes]
