"""Texts that go through the server's tokenizer: to be counted, cut, or sent as token ids.

Texts that may be too long are counted before any text is embedded, so that the error comes first,
and cut if that is wanted. SGLang refuses white space as a text, so it is sent as its token ids. So
are texts to llama.cpp that contain what it may hold for a special token: it finds those that the
model's file marks as such, and others by their look, such as ``</s>``. Text Embeddings Inference
takes token ids, but turns them into text and tokenizes that, so it is sent none.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from unicodedata import is_normalized

from emberd.catalog import EMBED, NOUN, RECREATE, Model
from emberd.client import scores, tokenizer, wire
from emberd.client.event_loops import Steps
from emberd.client.inputs import (
    ADDED_TOKENS,
    Input,
    PreparedTexts,
    excerpt,
    split_at_special,
)
from emberd.client.wire import ServerLost, TooLong
from emberd.endpoint import Endpoint
from emberd.errors import (
    AuthenticationError,
    BadReplyError,
    RejectedError,
    RequestError,
    ServerMismatchError,
    TextError,
    TextTooLongError,
)
from emberd.probe import TEI

GATEWAY: Final = "emberd-gateway"

_TEXTS_A_STEP: Final = 1024

_HEAD: Final = -1  # in place of a text's index: what precedes each document in a prompt
# How many tokens more than by itself the beginning of a prompt may have in it: the document that
# follows changes the last ones.
_HEAD_MARGIN: Final = 16

_FIRST: Final = "cls"  # pooling by the first token, which a text that is cut keeps
# What llama.cpp takes for special tokens if the vocabulary has them: "</s>" in that of Qwen3.
_LOOKS_SPECIAL: Final = re.compile(r"<[^<>\s]+>|\[[A-Z]+\]")
# They embed white space. SGLang, emberd's own server and others refuse it or strip it.
_TAKE_BLANK: Final = frozenset({*tokenizer.OTHER_ROUTES, GATEWAY})


@dataclass(frozen=True, slots=True, eq=False)
class TokenCount:
    """One text whose tokens are counted; ``index`` is its place in the caller's list."""

    index: int

    @property
    def is_first(self) -> bool:
        """Whether nothing may be sent until it is counted, because other counts depend on it."""
        return self.index == _HEAD


@dataclass(slots=True)
class EndpointFacts:
    """What the replies of endpoints have shown, over all jobs of a client; shared by threads.

    Attributes:
        models: The model that the first reply of each named.
        uncut: Those that refuse to cut vectors to fewer dimensions.
        limits: How many tokens a text may have, for those that accept fewer than they state.
    """

    models: dict[Endpoint, str] = field(default_factory=dict)
    uncut: set[Endpoint] = field(default_factory=set)
    limits: dict[Endpoint, int] = field(default_factory=dict)

    def check_model(self, endpoint: Endpoint, model: str | None) -> ServerLost | None:
        """Return a failure if a reply names another ``model`` than the first reply did.

        An external server may be replaced by one of another model under the same address. If both
        have the same dimensions, only the name shows it.
        """
        first = self.models.setdefault(endpoint, model) if model is not None else model
        if first == model:
            return None
        error = ServerMismatchError(
            f"{endpoint.url} returned results of {first} before and returns those of {model} now: "
            f"another server has taken its place. {RECREATE[endpoint.task]} "
            f"Or serve {first} there again."
        )
        return ServerLost(error, reached=False)


@dataclass(slots=True)
class Lengths:
    """The lengths of the texts of one job, and those of its texts that are sent as token ids.

    Attributes:
        prepared: Its texts; those that are cut, or not sent as texts, become token ids in it.
        model: What is known of the model.
        facts: What other jobs have shown of the servers.
        truncate: Whether texts that are too long are cut.
        offset: How many texts of the caller precede these.
        noun: What the caller calls a text, for errors.
        head: For a reranker: what comes before each document.
        head_bytes: Its length in bytes of UTF-8 at most.
        given: The texts as the caller gave them, for errors.
        to_count: The texts that are to be counted next.
        shortened: The texts that were cut.
    """

    prepared: PreparedTexts
    model: Model
    facts: EndpointFacts
    truncate: bool
    offset: int
    noun: str = NOUN[EMBED]
    head: str = ""
    head_bytes: int = 0
    given: Sequence[object] = ()
    to_count: deque[TokenCount] = field(default_factory=deque)
    shortened: set[int] = field(default_factory=set)
    _asked: set[tuple[int, int]] = field(default_factory=set)  # texts, and limits counted for
    _can_count: bool = True
    _most_head: int | None = None  # tokens of ``head`` at most, for one server; None: not counted
    _head_is_asked: bool = False  # whether they were counted, or are being counted
    _as_ids: set[int] = field(default_factory=set)  # texts that are sent as token ids
    _alike: dict[int, list[int]] = field(default_factory=dict)  # one text -> others equal to it

    def begin(self, endpoint: Endpoint) -> Steps[None]:
        """Find the texts that may be too long for ``endpoint``, which is the first of the job."""
        limit, count = self._limit(endpoint), len(self.prepared.inputs)
        if limit is None:
            return
        for start in range(0, count, _TEXTS_A_STEP):
            texts = range(start, min(start + _TEXTS_A_STEP, count))
            for index in self.prepared.to_count(limit, texts):
                if isinstance(self.prepared.inputs[index], str):
                    self.to_count.append(TokenCount(index))
            yield

    def find_ids(self, endpoint: Endpoint) -> Steps[list[TextError]]:
        """Find the texts that ``endpoint`` is sent as token ids. Called for each of the job.

        Returns:
            The errors of texts that it cannot be sent in any form.
        """
        self._can_count = True
        self._as_ids = set()
        self._alike = {}
        problems: list[TextError] = []
        if endpoint.needs_ids:
            texts = enumerate(self.prepared.inputs)
            self._as_ids.update(index for index, given in texts if isinstance(given, str))
        elif endpoint.server not in _TAKE_BLANK:
            yield from self._find_blank()
        if endpoint.server in (tokenizer.LLAMA_CPP, TEI) or endpoint.trims:
            for index, given in enumerate(self.prepared.inputs):
                if endpoint.server == TEI and (given == "" or isinstance(given, list)):
                    problems.append(self._is_empty(index, endpoint))
                elif isinstance(given, str):
                    problems += self._check_text(index, given, endpoint)
                if (index + 1) % _TEXTS_A_STEP == 0:
                    yield
        others = {index for equal in self._alike.values() for index in equal}
        wanted = {count.index for count in self.to_count} | self._as_ids
        self.to_count = deque(map(TokenCount, sorted(wanted - others - {_HEAD})))
        self._most_head, self._head_is_asked = None, False
        if self.to_count:
            self._count_head(endpoint)
        return problems

    def _count_head(self, endpoint: Endpoint) -> bool:
        """Have what precedes each document counted if it is too long by the bound of its bytes.

        The bound is far off for Chinese, whose characters have three bytes and seldom three tokens.

        Returns:
            Whether it is not counted yet: no document can be cut until then.
        """
        limit = self._limit(endpoint)
        cuts = self.truncate and endpoint.tail and endpoint.scores_route != scores.HEAD
        if not cuts or limit is None or self._most_head is not None:
            return False
        if not self._head_is_asked and self._most_head_tokens() > limit - len(endpoint.tail):
            self._head_is_asked = True
            self.to_count.appendleft(TokenCount(_HEAD))
        return self._head_is_asked

    def _most_head_tokens(self) -> int:
        """Return how many tokens of a prompt belong to what precedes its document, at most."""
        if self._most_head is not None:
            return self._most_head
        return self.head_bytes + ADDED_TOKENS  # it has no more tokens than bytes

    def text_of(self, count: TokenCount) -> str | None:
        """Return the text that is to be counted; None if it need not be any more."""
        if count.index == _HEAD:
            return self.head
        given = self.prepared.inputs[count.index]
        return given if isinstance(given, str) else None

    def _check_text(self, index: int, text: str, endpoint: Endpoint) -> Iterator[TextError]:
        """Yield the error of a text that ``endpoint`` would change; note one to send as ids."""
        if endpoint.trims and not self.model.trims and text.strip() not in ("", text):
            place = self.offset + index
            known = f" {endpoint.trims_note}" if endpoint.trims_note else ""
            yield TextError(
                f"{self._named(place)} begins or ends with white space ({excerpt(text)}), which "
                f"the server at {endpoint.url} may remove, although {self.model.name} may read it."
                f"{known} Remove it from the text (strip()), or use another server.",
                index=place,
            )
        if endpoint.server == tokenizer.LLAMA_CPP:
            special = self.model.special_tokens
            if special and (
                _LOOKS_SPECIAL.search(text) or split_at_special(text, special) != [text]
            ):
                self._as_ids.add(index)
            if not (self.model.normalization_is_known or is_normalized("NFC", text)):
                yield self._not_nfc(index, text, endpoint)

    def _is_empty(self, index: int, endpoint: Endpoint) -> TextError:
        place = self.offset + index
        return TextError(
            f"{self._named(place)} is empty. The server at {endpoint.url} (Text Embeddings "
            f"Inference) refuses an empty text, and does not embed token ids as they are. Omit "
            f"empty texts.",
            index=place,
        )

    def _not_nfc(self, index: int, text: str, endpoint: Endpoint) -> TextError:
        place = self.offset + index
        return TextError(
            f"{self._named(place)} is not in Unicode's form NFC ({excerpt(text)}). llama.cpp at "
            f"{endpoint.url} reads it as it is, and it is not known whether the tokenizer of "
            f"{self.model.name} would normalise it. Normalise it: unicodedata.normalize('NFC', "
            f"text); or give the folder of the model (model=), with its tokenizer.json.",
            index=place,
        )

    def _find_blank(self) -> Steps[None]:
        # A corpus has many blank texts, but few different ones: each is tokenized once.
        equal: defaultdict[str, list[int]] = defaultdict(list)
        for number, index in enumerate(self.prepared.blank):
            if isinstance(given := self.prepared.inputs[index], str):
                equal[given].append(index)
            if (number + 1) % _TEXTS_A_STEP == 0:
                yield
        for first, *others in equal.values():
            self._as_ids.update((first, *others))
            self._alike[first] = others

    def counted(self, index: int) -> Sequence[int]:
        """Return the texts that the count of ``index`` is for: it, and those that are equal."""
        return (index, *self._alike.pop(index, ()))

    def record(
        self, endpoint: Endpoint, indices: Sequence[int], result: object
    ) -> Iterator[TextError]:
        """Record the tokens of equal texts; yield the errors of texts that cannot be embedded.

        Raises:
            RequestError: They could not be counted, or a prompt lacks its end.
        """
        if _HEAD in indices:  # a failure leaves the bound
            most = self._most_head_tokens()
            self._most_head = len(result) + _HEAD_MARGIN if isinstance(result, list) else most
            return
        missing = isinstance(result, RejectedError) and result.status in wire.NO_ROUTE
        # A gateway may let a key embed and close the tokenizer to it; a wrong key fails the
        # embedding as well, and is reported then.
        if missing or isinstance(result, AuthenticationError):
            self._can_count = False
            uncounted = {*indices, *(count.index for count in self.to_count)}
            self.to_count.clear()  # most servers refuse by themselves what is too long
            self._most_head = self._most_head_tokens()  # it may have been to be counted too
            for index in sorted(uncounted | self._as_ids):
                if not isinstance(self.prepared.inputs[index], str):
                    continue
                if index in self._as_ids:
                    yield self._no_ids(index, endpoint)
                elif endpoint.cuts and not (self.truncate and self.model.pooling == _FIRST):
                    yield self._may_be_cut(index, endpoint)
        elif isinstance(result, RequestError):
            raise result
        elif isinstance(result, TooLong):
            # It is not sent uncounted: a server that refuses to count it may cut it.
            for index in indices:
                yield self.error(endpoint, index, result.tokens, result.limit)
        elif isinstance(result, list):
            for index in indices:
                try:
                    self._record(endpoint, index, result)
                except TextError as error:
                    yield error

    def _record(self, endpoint: Endpoint, index: int, ids: list[int]) -> None:
        given, limit = self.prepared.inputs[index], self._limit(endpoint)
        if not isinstance(given, str):
            return
        tail = [*endpoint.tail]
        if ids[len(ids) - len(tail) :] != tail:
            raise BadReplyError(
                f"{tokenizer.address(endpoint)} returned token ids that do not end "
                f"with those of the end of the prompt ({tail}), as they did before. Check whether "
                f"another server answers at this address."
            )
        self.prepared.counted[index] = len(ids)
        if limit is not None and len(ids) > limit:
            if not self.truncate:
                raise self.error(endpoint, index, len(ids), limit)
            if not self._cut(index, ids, limit, endpoint):
                self.to_count.append(TokenCount(index))
        elif index in self._as_ids:
            self.prepared.inputs[index] = ids

    def _no_ids(self, index: int, endpoint: Endpoint) -> TextError:
        """Return the error for a text that must be sent as token ids, which are not available."""
        place, text = self.offset + index, str(self.prepared.inputs[index])
        problem = "is blank ({shown}), which servers of this kind reject or change as a text"
        if endpoint.needs_ids:
            problem = (
                "must be sent as token ids, because the server adds tokens to a prompt ({shown})"
            )
        elif text.strip():
            problem = "contains a special token ({shown}), which this server may read as other text"
        return TextError(
            f"{self._named(place)} {problem.format(shown=excerpt(text))}. Its token ids cannot be "
            f"requested: {tokenizer.address(endpoint)} is missing or closed. Omit the "
            f"text, or open that route.",
            index=place,
        )

    def _may_be_cut(self, index: int, endpoint: Endpoint) -> TextTooLongError:
        place, limit = self.offset + index, self._limit(endpoint) or 0
        known = f" {endpoint.cuts_note}" if endpoint.cuts_note else ""
        return TextTooLongError(
            f"{self._named(place)}{self._shown(index)} may have more than {limit} tokens: it has "
            f"{self.prepared.sizes[index]} bytes, and {tokenizer.address(endpoint)}, "
            f"which would count them, is missing or closed. This server may cut a text that is too "
            f"long and return the vector of the rest.{known} Split the text into parts of at most "
            f"{limit - ADDED_TOKENS} bytes, or use a server that counts tokens, such as SGLang or "
            f"vLLM.",
            index=place,
            tokens=None,
            limit=limit,
        )

    def count_again(self, endpoint: Endpoint, indices: Sequence[int], limit: int | None) -> bool:
        """Return whether a refusal stated a limit by which some texts are counted again now.

        A router states no context, and a server short of memory accepts less than its own.

        Raises:
            TextTooLongError: A text that is sent as token ids is longer, and may or can not be cut.
        """
        if limit is None or not self._can_count:
            return False
        known = self._limit(endpoint)
        again = known is None or limit < known
        if again:
            self.facts.limits[endpoint] = limit
        for index in sorted(self.prepared.to_count(limit, indices)):
            given = self.prepared.inputs[index]
            if isinstance(given, str) and (index, limit) not in self._asked:
                self._asked.add((index, limit))
                self.to_count.append(TokenCount(index))
                self._count_head(endpoint)
                again = True
            elif isinstance(given, list) and len(given) > limit:
                if not self.truncate:
                    raise self.error(endpoint, index, len(given), limit)
                self._cut(index, given, limit, endpoint)  # or it is cut when it is refused again
                again = True
        return again

    def error(
        self, endpoint: Endpoint, index: int, tokens: int | None, limit: int | None
    ) -> TextTooLongError:
        """Return the error for a text that is too long.

        Args:
            endpoint: The server that does not accept it.
            index: Its place in the job.
            tokens: Its length; None when not known.
            limit: Most tokens that are accepted; None when not known.
        """
        place, size = self.offset + index, self.prepared.sizes[index]
        whole = " with instruction and query" if self.head_bytes else ""
        length = "is longer than the server accepts" if tokens is None else f"has {tokens} tokens"
        length += whole
        allowed = f", {limit} are allowed" if limit is not None else ""
        if self._has_long_query(index):
            advice = (
                f"Shorten the query: instruction and query have up to {self.head_bytes} bytes, and "
                f"the whole prompt {size}."
            )
        elif not takes_ids(endpoint) or not (self.truncate or self._can_count):
            advice = "Split it."  # truncate=True would not help
        elif not self._can_count:
            advice = (
                f"truncate=True cannot cut it, because this server has no "
                f"{tokenizer.route(endpoint.server)} route; split it."
            )
        elif self.truncate:
            advice = "Split it: this server accepts fewer tokens than it reports."
        else:
            advice = "Split it, or set truncate=True to cut it."
        return TextTooLongError(
            f"{self._named(place)}{self._shown(index)} {length}{allowed}. {advice}",
            index=place,
            tokens=tokens,
            limit=limit,
        )

    def _has_long_query(self, index: int) -> bool:
        """Return whether most of a prompt is not its document."""
        return 2 * self.head_bytes > self.prepared.sizes[index]

    def _shown(self, index: int) -> str:
        return f" ({excerpt(self.given[index])})" if self.given else ""

    def _named(self, place: int) -> str:
        return f"{self.noun.capitalize()} {place}"

    def _limit(self, endpoint: Endpoint) -> int | None:
        if (limit := self.facts.limits.get(endpoint)) is not None:
            return limit
        known = [n for n in (endpoint.context_tokens, self.model.context_tokens) if n]
        # SGLang states 8194 for bge-m3, which has 8192 positions for tokens. But Qwen3-Embedding
        # has more positions than its model card states, and a server may use them.
        context = known[0] if known and self.model.shape else min(known, default=None)
        if endpoint.cuts and self.model.cut_tokens:
            context = min(context or self.model.cut_tokens, self.model.cut_tokens)
        # SGLang refuses a text of exactly as many tokens as its context.
        return context - 1 if context else None

    def _cut(self, index: int, ids: list[int], limit: int, endpoint: Endpoint) -> bool:
        """Replace a text by its first token ids, and the tokens that must end it.

        These are the end-of-text token, which last-token pooling reads, or the end of a reranker's
        prompt, after which the answer follows: a server that cuts the tail loses them.

        Returns:
            False if what precedes the document must be counted first.
        """
        end, place = self.model.end_of_text_id, self.offset + index
        if endpoint.scores_route == scores.HEAD:
            if self._has_long_query(index):
                raise self.error(endpoint, index, len(ids), limit)
            raise TextTooLongError(
                f"The prompt of document {place} has {len(ids)} tokens, {limit} are allowed, and "
                f"it cannot be cut, because {endpoint.url}{scores.HEAD} takes no token ids. Split "
                f"the document, or start vLLM without --hf-overrides and --runner pooling.",
                index=place,
                tokens=len(ids),
                limit=limit,
            )
        if not takes_ids(endpoint):
            raise TextTooLongError(
                f"{self._named(place)}{self._shown(index)} has {len(ids)} tokens, {limit} are "
                f"allowed, and emberd cannot cut it: the server at {endpoint.url} (Text Embeddings "
                f"Inference) does not embed token ids as they are. Split the text.",
                index=place,
                tokens=len(ids),
                limit=limit,
            )
        if endpoint.tail:
            if self._count_head(endpoint):
                return False
            kept = limit - len(endpoint.tail)
            if kept < (most := self._most_head_tokens()):
                raise TextTooLongError(
                    f"The prompt of document {place} has {len(ids)} tokens, {limit} are allowed, "
                    f"and the document cannot be cut: instruction and query have up to {most} "
                    f"tokens, which leave no space for it. Shorten the query.",
                    index=place,
                    tokens=len(ids),
                    limit=limit,
                )
            self.prepared.inputs[index] = [*ids[:kept], *endpoint.tail]
            self.shortened.add(index)
            return True
        if end is None:
            raise TextTooLongError(
                f"{self._named(place)}{self._shown(index)} has {len(ids)} tokens, {limit} are "
                f"allowed, and emberd "
                f"cannot cut it: the end-of-text token of {self.model.name} is not known. Split "
                f"the text.",
                index=place,
                tokens=len(ids),
                limit=limit,
            )
        self.prepared.inputs[index] = [*ids[: limit - 1], end]
        self.shortened.add(index)
        return True


def takes_ids(endpoint: Endpoint) -> bool:
    """Return whether ``endpoint`` embeds, or scores, exactly the token ids that it is sent."""
    return endpoint.server != TEI and endpoint.scores_route != scores.HEAD


def as_taken(inputs: list[Input], endpoint: Endpoint, model: Model) -> list[Input]:
    """Return ``inputs`` as the server takes them: the gateway takes no ids, but empty texts."""
    if endpoint.server != GATEWAY:
        return inputs
    empty = [*model.start_ids, model.end_of_text_id]
    return ["" if given == empty else given for given in inputs]
