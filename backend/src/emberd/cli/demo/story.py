"""What the demo does, in its order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from emberd.cli import waiting, words
from emberd.cli.demo import choice, crowd, frameworks, passages, recall
from emberd.cli.demo.frameworks import Framework
from emberd.cli.demo.passages import Multilingual, Passage
from emberd.cli.demo.show import Asked, Show
from emberd.errors import EmberdError
from emberd.settings import Settings, is_demo

if TYPE_CHECKING:
    from emberd.client.vectors import Floats

Pair = tuple[Framework, Framework]

_BATCH_PASSAGES: Final = 64
_HITS: Final = 3
_PASSAGE_BYTES: Final = 2000
_TEMPLATE_BYTES: Final = 64  # what may stand around a passage
_UNKNOWN_CONTEXT_TOKENS: Final = 512

# The bundled model computes in float32, and each text by itself. On a GPU a vector depends a
# little on the texts that happen to be computed beside it, and bfloat16 has three digits.
_SAME: Final = 1e-6
_SAME_IN_BFLOAT16: Final = 2e-2

_OF_PYTHON: Final = (
    Asked("en", "How do I make a temporary file with a name that nobody else has?"),
    Asked("de", "Wie prüfe ich, ob es eine Datei oder einen Pfad gibt?"),
    Asked("zh", "怎样生成安全的随机口令或令牌？"),
)
_LANGUAGES_OF_THE_SET: Final = ("es", "ja", "ru", "ar")


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for on the command line."""

    docs: Path | None = None
    queries: tuple[str, ...] = ()
    limit: int = 1
    model: str | None = None
    engine: str | None = None


def tell(wishes: Wishes) -> None:
    """Do the main job, and show each step.

    Raises:
        EmberdError: A step failed, or showed something that must not be.
    """
    show = Show()
    chosen = choice.choose(wishes.model, wishes.engine)
    settings = chosen.settings
    known_set = passages.multilingual()
    gathered = _gather(show, wishes, settings, known_set)

    show.step("A server")
    server = waiting.ensure(settings)
    show.server(server, settings.model, chosen.why_not)

    show.step("Two indexes over it")
    pair = _index(show, settings, gathered)

    show.step("Questions, through both")
    asked = _questions(wishes, known_set)
    _ask(show, pair, asked, gathered)
    _compare(show, pair, gathered, asked, settings)

    show.step(f"{crowd.PROCESSES} more processes at once that all want a server")
    show.crowd(crowd.ask(settings, server.endpoint.url, server.start_id))

    show.recall(_recall(pair[0], known_set, settings), known_set, settings.known)
    show.ending(server)


def _gather(
    show: Show, wishes: Wishes, settings: Settings, known_set: Multilingual
) -> list[Passage]:
    show.step("Passages")
    began_s = time.monotonic()
    with show.busy("reading"):
        if wishes.docs is None:
            real = passages.of_python(wishes.limit)
            origin = f"first paragraphs of docstrings, Python {passages.python_version()}'s library"
        else:
            context = settings.known.context_tokens or _UNKNOWN_CONTEXT_TOKENS
            longest = min(_PASSAGE_BYTES, context - _TEMPLATE_BYTES)
            real = passages.of_folder(wishes.docs, wishes.limit, longest)
            origin = f"paragraphs of {wishes.docs}"
    seconds = time.monotonic() - began_s
    most = " (as many as --passages allows)" if len(real) == wishes.limit else ""
    languages = ", ".join(known_set.languages)
    show.line(f"{len(real)} {origin}{most}, read in {seconds:.1f} s")
    show.line(f"{len(known_set.passages)} of a multilingual set written for this ({languages})")
    return [*real, *known_set.passages]


def _index(show: Show, settings: Settings, gathered: Sequence[Passage]) -> Pair:
    with show.busy("importing LangChain and LlamaIndex"):
        pair = frameworks.both(settings)
    for framework in pair:
        with show.bar(framework.name, len(gathered)) as advance:
            for start in range(0, len(gathered), _BATCH_PASSAGES):
                batch = gathered[start : start + _BATCH_PASSAGES]
                framework.add(batch)
                advance(len(batch))
    return pair


def _questions(wishes: Wishes, known_set: Multilingual) -> list[Asked]:
    if wishes.queries:
        return [Asked("", text) for text in wishes.queries]
    first_of = {question.language: question for question in reversed(known_set.questions)}
    known = [first_of[language] for language in _LANGUAGES_OF_THE_SET]
    return [
        *(_OF_PYTHON if wishes.docs is None else ()),
        *(Asked(question.language, question.text, question.answer) for question in known),
    ]


def _ask(show: Show, pair: Pair, asked: Sequence[Asked], gathered: Sequence[Passage]) -> None:
    by_id = {passage.id: passage for passage in gathered}
    names = (pair[0].name, pair[1].name)
    for question in asked:
        found = (pair[0].search(question.text, _HITS), pair[1].search(question.text, _HITS))
        show.hits(question, found, names, by_id)


def _compare(
    show: Show, pair: Pair, gathered: Sequence[Passage], asked: Sequence[Asked], settings: Settings
) -> None:
    ids = [passage.id for passage in gathered]
    queries = [question.text for question in asked]
    apart = max(
        _apart(pair[0].stored(ids), pair[1].stored(ids)),
        _apart(_as_queries(pair[0], queries), _as_queries(pair[1], queries)),
    )
    limit = _SAME if is_demo(settings.model) else _SAME_IN_BFLOAT16
    # Written this way round, since NaN is in no order.
    if not apart <= limit:
        raise EmberdError(
            f"The frameworks got different vectors for the same texts: {apart:.1e} apart, where "
            f"{limit:.0e} is allowed. This is a bug of emberd or of the server; please report it."
        )
    show.line(
        f"Both frameworks have the same vectors, of {words.counted(len(ids), 'passage')} and "
        f"{words.counted(len(queries), 'question')}: max abs difference {apart:.1e}."
    )


def _recall(framework: Framework, known_set: Multilingual, settings: Settings) -> list[recall.Row]:
    queries = [question.text for question in known_set.questions]
    place = {passage.id: number for number, passage in enumerate(known_set.passages)}
    return recall.measure(
        framework.stored(list(place)),
        _as_queries(framework, queries),
        np.array(framework.embed_documents(queries), np.float32),
        [place[question.answer] for question in known_set.questions],
        settings.known,
    )


def _as_queries(framework: Framework, texts: Sequence[str]) -> Floats:
    return np.array([framework.embed_query(text) for text in texts], np.float32)


def _apart(first: Floats, second: Floats) -> float:
    return float(np.abs(first.astype(np.float64) - second).max())
