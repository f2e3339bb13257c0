"""Measures a server: the latency of single queries, and the rate of documents in bulk.

The texts are random words, and a cache of emberd is not used, so that neither it nor a server's
prefix cache answers, except for the instruction that all queries share. What is timed goes through
``Embedder``, as the caller's own texts do; the server counts the tokens of a few other texts of
each length, in the ``usage`` of its replies.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from emberd.client import verify, wire
from emberd.client.batches import estimate_tokens, most_tokens
from emberd.client.inputs import in_template
from emberd.client.wire import Outcome, ServerLost
from emberd.errors import RequestError
from emberd.system import listeners

if TYPE_CHECKING:
    from emberd.embedder import Embedder
    from emberd.settings import Settings

PERCENTILES: Final = {50: 1, 95: 20, 99: 100}
"""Percentiles of the latency, and the fewest queries that show each."""

_WORDS: Final = (
    *("water", "river", "mountain", "city", "house", "street", "garden", "school", "student"),
    *("book", "paper", "letter", "number", "music", "picture", "science", "history", "nature"),
    *("horse", "bird", "fish", "tree", "flower", "summer", "winter", "morning", "evening"),
    *("week", "month", "year", "country", "people", "family", "mother", "father", "brother"),
    *("doctor", "market", "money", "price", "power", "energy", "light", "sound", "color"),
    *("stone", "glass", "wood", "fire", "wind", "rain", "snow", "island", "ocean", "valley"),
    *("field", "road", "bridge", "train", "ship", "engine", "machine", "system", "network"),
)
_LEAST_WORDS: Final = 6  # fewer have too few orders for each text to be new
_FEW_WORDS: Final = 8
_MANY_WORDS: Final = 40
_SAMPLE_WORDS: Final = 256
_SAMPLE_TEXTS: Final = 16
_SPARE_TOKENS: Final = 64  # of the context, for the template
_LEAST_S: Final = 0.2
_LEAST_QUERIES: Final = 3
_MOST_QUERIES: Final = 2_000
_MOST_TEXTS: Final = 8_192  # in one call: 84 MB of vectors of 2,560 numbers
_MOST_GROWTH: Final = 8
_SATURATED_CORES: Final = 0.9
_MS: Final = 1_000


@dataclass(frozen=True, slots=True)
class QueryLatency:
    """Single queries, one after another; the fields are in the order of time.

    Attributes:
        tokens_per_text: Tokens of one in its template; None if the server does not count them.
        words_per_text: Words of its text.
        times_s: How long each took, in seconds.
    """

    tokens_per_text: float | None
    words_per_text: int
    times_s: tuple[float, ...]

    def percentile_ms(self, percent: int) -> float | None:
        """Return one of ``PERCENTILES`` in milliseconds; None if the queries are too few."""
        count = len(self.times_s)
        if count < PERCENTILES[percent]:
            return None
        return _MS * sorted(self.times_s)[math.ceil(count * percent / 100) - 1]


@dataclass(frozen=True, slots=True)
class BulkRate:
    """Documents in bulk.

    Attributes:
        tokens_per_text: Tokens of one in its template; None if the server does not count them.
        words_per_text: Words of its text.
        batch_size: Most texts in a request.
        texts: How many texts were timed.
        seconds: How long they took.
        client_cpu_cores: Processor seconds of this process, a second.
        server_process_cpu_cores: Those of the process that listens; None if it is not visible.
    """

    tokens_per_text: float | None
    words_per_text: int
    batch_size: int
    texts: int
    seconds: float
    client_cpu_cores: float
    server_process_cpu_cores: float | None

    @property
    def texts_per_s(self) -> float:
        """Texts a second."""
        return self.texts / self.seconds

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second; None if the server does not count them."""
        return None if self.tokens_per_text is None else self.tokens_per_text * self.texts_per_s


def run(
    embedder: Embedder,
    tokens: Sequence[int],
    batch_sizes: Sequence[int],
    seconds: float,
    report: Callable[[str], None],
) -> Iterator[QueryLatency | BulkRate | None]:
    """Measure the server of ``embedder``, and yield each result when it is known.

    None stands for a batch size of which one request would take longer than its part of the time.

    Args:
        embedder: The embedder; its cache is not used.
        tokens: Lengths of texts, which are cut to the context. No text has under six words.
        batch_sizes: Most texts in a request.
        seconds: About how long all takes once the server is verified. A few texts of each length
            are always measured.
        report: Called with what is measured next.

    Raises:
        EmberdError: What the embedder raises.
    """
    embedder = embedder.replace(cache=None, show_progress=False)
    embedder.endpoint()  # found, and verified, before the time begins
    end_s = time.monotonic() + seconds
    texts = _Texts(embedder)
    report("counting tokens")
    lengths = texts.lengths(tokens)
    steps = [(words, size) for words in lengths for size in texts.batch_sizes(words, batch_sizes)]
    left = len(lengths) + len(steps)

    def share_s() -> float:
        nonlocal left
        left -= 1
        return max(_LEAST_S, (end_s - time.monotonic()) / (left + 1))

    embedder.embed_query(*texts.make(1, 1))  # connects
    for words in lengths:
        report(f"single queries of {words} words")
        counted = texts.count(embedder.query_template, words)
        yield QueryLatency(counted, words, _time_queries(embedder, texts, words, share_s()))
    server = listeners.process_at(embedder.endpoint().url)
    rate: BulkRate | None = None
    for words, size in steps:
        report(f"documents of {words} words, {size} in a request")
        if rate is None or rate.words_per_text != words:
            rate, counted = None, texts.count(embedder.document_template, words)
        step_s = share_s()
        if rate is not None and size / rate.texts_per_s > step_s:
            yield None
            continue
        calls = _Calls(embedder.using(batch_size=size), texts, server)
        calls.repeat(words, size, step_s)
        rate = BulkRate(counted, words, size, *calls.longest())
        yield rate


def shares(rates: Sequence[BulkRate]) -> list[float]:
    """Return each rate as a share of the best: in tokens, or in texts if they are not counted."""
    values = [rate.tokens_per_s or rate.texts_per_s for rate in rates]
    return [value / max(values) for value in values]


def limits(rates: Sequence[BulkRate], server: str) -> Iterator[str]:
    """Yield in words what was seen to limit the best rate of each length.

    Args:
        rates: The rates.
        server: The kind of server, as in its endpoint.
    """
    for words in dict.fromkeys(rate.words_per_text for rate in rates):
        of_length = (rate for rate in rates if rate.words_per_text == words)
        best = max(of_length, key=lambda rate: rate.texts_per_s)
        # The model runs in other processes of SGLang; in other servers it may run in this one.
        main_cores = best.server_process_cpu_cores if server == "sglang" else None
        for process, cores in (
            ("SGLang's main process (HTTP, tokenizer)", main_cores),
            ("this client", best.client_cpu_cores),
        ):
            if cores is not None and cores >= _SATURATED_CORES:
                yield (
                    f"The rate of documents of {in_words(best)} is limited by {process}: "
                    f"{cores:.2f} cores used."
                )
                break


def in_words(measured: QueryLatency | BulkRate) -> str:
    """Return the length of the texts in tokens; in words, if those are not counted."""
    if measured.tokens_per_text is None:
        return f"{measured.words_per_text:,} words"
    return f"{measured.tokens_per_text:,.0f} tokens"


class _Texts:
    """Makes texts, each of them once, and has the server count their tokens."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._settings: Settings = embedder.settings
        self._template = embedder.document_template
        self._query_template = embedder.query_template
        self._random = random.Random()  # noqa: S311 - other texts in each run
        self._counts = True

    def make(self, words: int, count: int) -> list[str]:
        """Return texts of so many words, in which all words are about equally frequent."""
        sizes = [len(_WORDS)] * (words // len(_WORDS)) + [words % len(_WORDS)]
        sample = self._random.sample
        return [
            " ".join(word for size in sizes for word in sample(_WORDS, size)) for _ in range(count)
        ]

    def count(self, template: str, words: int) -> float | None:
        """Return the tokens of a text, by the server's ``usage``; this also warms it up."""
        # Long ones differ less.
        texts = max(1, min(_SAMPLE_WORDS // words, self._settings.batch_size, _SAMPLE_TEXTS))
        model = self._settings.known
        endpoint = self._embedder.endpoint()  # another one after a restart
        given = [in_template(text, template, model) for text in self.make(words, texts)]
        request = wire.embed_request(endpoint.model, [*given], None)
        at = (endpoint.url, endpoint.api_key, self._settings.timeout, endpoint.listener)
        outcome = Outcome(verify.send(*at, request), tries=1, seconds=0)
        found = wire.body_or_failure(outcome, endpoint.url)
        if isinstance(found, RequestError | ServerLost):
            raise found.error if isinstance(found, ServerLost) else found
        read = wire.prompt_tokens(found) if isinstance(found, bytes) else None
        return read / texts if read is not None and self._counts else None

    def lengths(self, tokens: Sequence[int]) -> list[int]:
        """Return the words of documents that have so many tokens, but ``_LEAST_WORDS`` or more.

        They are cut to the context.
        """
        contexts = (self._embedder.endpoint().context_tokens, self._settings.known.context_tokens)
        context = min(filter(None, contexts), default=None)
        most = None if context is None else max(1, context - context // 16 - _SPARE_TOKENS)
        few, many = (self.count(self._template, words) for words in (_FEW_WORDS, _MANY_WORDS))
        query = self.count(self._query_template, _FEW_WORDS)
        if most is not None and query is not None and few is not None:
            most = max(1, most - max(0, math.ceil(query - few)))
        fixed, a_word = 0.0, 1.0
        self._counts = few is not None and many is not None and many > few
        if few is not None and many is not None and many > few:
            a_word = (many - few) / (_MANY_WORDS - _FEW_WORDS)
            fixed = few - _FEW_WORDS * a_word
        cut = (min(wanted, most or wanted) for wanted in tokens)
        return sorted({max(_LEAST_WORDS, round((wanted - fixed) / a_word)) for wanted in cut})

    def batch_sizes(self, words: int, sizes: Sequence[int]) -> list[int]:
        """Return the sizes, cut to what a request of the client holds."""
        text = in_template(self.make(words, 1)[0], self._template, self._settings.known)
        most_together = most_tokens(self._embedder.endpoint())
        most = max(1, most_together // estimate_tokens(len(text.encode())))
        return sorted({min(size, most) for size in sizes})


def _time_queries(
    embedder: Embedder, texts: _Texts, words: int, seconds: float
) -> tuple[float, ...]:
    times_s: list[float] = []
    end_s = time.monotonic() + seconds
    while len(times_s) < _MOST_QUERIES:
        if time.monotonic() >= end_s and len(times_s) >= _LEAST_QUERIES:
            break
        [text] = texts.make(words, 1)
        begin_s = time.perf_counter()
        embedder.embed_query(text)
        times_s.append(time.perf_counter() - begin_s)
    return tuple(times_s)


@dataclass(slots=True)
class _Calls:
    """Calls for more and more documents, and what they took."""

    embedder: Embedder
    texts: _Texts
    server: Any
    done: list[tuple[int, float, float, float]] = field(default_factory=list)

    def repeat(self, words: int, count: int, seconds: float) -> None:
        """Call while there is time, first for ``count`` documents."""
        end_s = time.monotonic() + seconds
        while True:
            given = self.texts.make(words, count)
            client_s, server_s = time.process_time(), _cpu_s(self.server)
            begin_s = time.perf_counter()
            self.embedder.embed_documents(given)
            taken_s = time.perf_counter() - begin_s
            client_s, server_s = time.process_time() - client_s, _cpu_s(self.server) - server_s
            self.done.append((count, taken_s, client_s, server_s))
            left_s = end_s - time.monotonic()
            if left_s <= taken_s:
                return
            count = min(int(count * min(_MOST_GROWTH, left_s / taken_s)), _MOST_TEXTS)

    def longest(self) -> tuple[int, float, float, float | None]:
        """Return the last fields of ``BulkRate`` for the longest calls.

        Short ones do not keep all requests in flight, and warm the server up.
        """
        longest = [call for call in self.done if 2 * call[0] > max(self.done)[0]]
        count, taken_s, client_s, server_s = map(sum, zip(*longest, strict=True))
        visible = not math.isnan(server_s)
        return int(count), taken_s, client_s / taken_s, server_s / taken_s if visible else None


def _cpu_s(process: Any) -> float:
    """Return the processor seconds of a process so far; NaN if they are not visible."""
    import psutil

    try:
        used = process.cpu_times()
    except (AttributeError, psutil.Error):  # None is a server of another machine
        return math.nan
    return float(used.user + used.system)
