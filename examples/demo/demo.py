"""Index real text with LangChain and LlamaIndex through one embedding server, and measure it.

    python examples/demo/demo.py
    python examples/demo/demo.py --docs FOLDER --query "How do I install it?"

Finds or starts a server, indexes passages in a LangChain vector store and in a LlamaIndex index,
asks both in several languages, compares their vectors, lets eight more processes ask for a server
at the same time, and ends with recall on a small multilingual set.

The passages are the first paragraphs of the docstrings of this Python's standard library, and the
multilingual set. If the default model cannot be served on this machine and no model was named, the
demo uses emberd/demo, whose vectors are not Qwen3 vectors.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

import concurrent_clients
import frameworks
import passages
import recall
from emberd import EmberdError, Manager, NoEngineError, Server, Settings
from frameworks import Framework
from passages import MultilingualSet, Passage, Question
from recall import Floats
from report import Report

DEMO_MODEL: Final = "emberd/demo"

Pair = tuple[Framework, Framework]

_PASSAGES: Final = 160  # with two frameworks and two cores, a run takes less than half a minute
_BATCH_PASSAGES: Final = 64
_HITS: Final = 3
_PASSAGE_BYTES: Final = 2000
_TEMPLATE_BYTES: Final = 64  # upper limit of what a template adds to a passage
_UNKNOWN_CONTEXT_TOKENS: Final = 512
_INTERRUPTED: Final = 130

# The bundled model computes in float32 and each text separately. On a GPU a vector depends slightly
# on the other texts of its batch, and bfloat16 has three digits.
_SAME: Final = 1e-6
_SAME_IN_BFLOAT16: Final = 2e-2

_ABOUT_PYTHON: Final = (
    Question("en", "How do I make a temporary file with a name that nobody else has?"),
    Question("de", "Wie prüfe ich, ob es eine Datei oder einen Pfad gibt?"),
    Question("zh", "怎样生成安全的随机口令或令牌？"),
)
_LANGUAGES_OF_THE_SET: Final = ("es", "ja", "ru", "ar")


def run(arguments: argparse.Namespace) -> None:
    """Run all steps and report each.

    Raises:
        EmberdError: A step failed, or its result is wrong.
        OSError: ``--docs`` cannot be read.
    """
    report = Report()
    known_set = passages.multilingual()

    report.step("A server")
    settings, server, reason = _server(report, arguments.model, arguments.engine)
    report.server(server, settings.model, reason)

    report.step("Passages")
    gathered = _gather(report, arguments, server, known_set)

    report.step("Two indexes that use the server")
    pair = _index(report, settings, gathered)

    report.step("Questions to both indexes")
    questions = _questions(arguments, known_set)
    _search(report, pair, questions, gathered)
    _compare(report, pair, gathered, questions, settings)

    report.step(f"{concurrent_clients.PROCESSES} more processes that ask for a server at once")
    report.clients(concurrent_clients.ask(settings, server))

    report.recall(_recall(pair[0], known_set, settings), known_set, settings.known)
    report.ending(server)


def _server(
    report: Report, model: str | None, engine: str | None
) -> tuple[Settings, Server, str | None]:
    """Return settings, their server, and why it is not one of the default model (or None)."""
    settings = Settings.resolve(model=model, engine=engine)
    is_named = bool(model or os.environ.get("EMBERD_MODEL") or settings.base_url)
    try:
        return settings, _ensured(report, settings), None
    except NoEngineError as error:
        if is_named:
            raise
        settings = Settings.resolve(model=DEMO_MODEL, engine=engine)
        return settings, _ensured(report, settings), str(error)


def _ensured(report: Report, settings: Settings) -> Server:
    with report.starting(settings.model) as on_progress:
        return Manager().ensure(
            settings.spec,
            base_url=settings.base_url,
            api_key=settings.api_key,
            start_timeout=settings.start_timeout,
            idle_timeout=settings.idle_timeout,
            on_progress=on_progress,
        )


def _gather(
    report: Report, arguments: argparse.Namespace, server: Server, known_set: MultilingualSet
) -> list[Passage]:
    started_s = time.monotonic()
    with report.busy("reading"):
        if arguments.docs is None:
            found = passages.of_python(arguments.passages)
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            origin = f"first paragraphs of docstrings, Python {version}'s library"
        else:
            context_tokens = server.endpoint.context_tokens or _UNKNOWN_CONTEXT_TOKENS
            max_bytes = min(_PASSAGE_BYTES, context_tokens - _TEMPLATE_BYTES)
            found = passages.of_folder(arguments.docs, arguments.passages, max_bytes)
            origin = f"paragraphs of {arguments.docs}"
    seconds = time.monotonic() - started_s
    limited = " (the limit of --passages)" if len(found) == arguments.passages else ""
    languages = ", ".join(known_set.languages)
    report.line(f"{len(found)} {origin}{limited}, read in {seconds:.1f} s")
    report.line(f"{len(known_set.passages)} of a multilingual set made for this ({languages})")
    return [*found, *known_set.passages]


def _index(report: Report, settings: Settings, gathered: Sequence[Passage]) -> Pair:
    with report.busy("importing LangChain and LlamaIndex"):
        pair = frameworks.both(settings)
    for framework in pair:
        with report.bar(framework.name, len(gathered)) as advance:
            for start in range(0, len(gathered), _BATCH_PASSAGES):
                batch = gathered[start : start + _BATCH_PASSAGES]
                framework.add(batch)
                advance(len(batch))
    return pair


def _questions(arguments: argparse.Namespace, known_set: MultilingualSet) -> list[Question]:
    if arguments.query:
        return [Question("", text) for text in arguments.query]
    first_of = {question.language: question for question in reversed(known_set.questions)}
    known = [first_of[language] for language in _LANGUAGES_OF_THE_SET]
    return [*(_ABOUT_PYTHON if arguments.docs is None else ()), *known]


def _search(
    report: Report, pair: Pair, questions: Sequence[Question], gathered: Sequence[Passage]
) -> None:
    by_id = {passage.id: passage for passage in gathered}
    names = (pair[0].name, pair[1].name)
    for question in questions:
        found = (pair[0].search(question.text, _HITS), pair[1].search(question.text, _HITS))
        report.hits(question, found, names, by_id)


def _compare(
    report: Report,
    pair: Pair,
    gathered: Sequence[Passage],
    questions: Sequence[Question],
    settings: Settings,
) -> None:
    ids = [passage.id for passage in gathered]
    texts = [question.text for question in questions]
    difference = max(
        _difference(pair[0].stored(ids), pair[1].stored(ids)),
        _difference(_as_queries(pair[0], texts), _as_queries(pair[1], texts)),
    )
    limit = _SAME if settings.model == DEMO_MODEL else _SAME_IN_BFLOAT16
    # "not <=" instead of ">": a comparison with NaN is false.
    if not difference <= limit:
        raise EmberdError(
            f"The frameworks got different vectors for the same texts: difference "
            f"{difference:.1e}, limit {limit:.0e}. This is a bug of emberd or of the server; "
            f"please report it."
        )
    report.line(
        f"Both frameworks have the same vectors, of {len(ids)} passages and {len(texts)} questions:"
        f" max abs difference {difference:.1e}."
    )


def _recall(
    framework: Framework, known_set: MultilingualSet, settings: Settings
) -> list[recall.Row]:
    texts = [question.text for question in known_set.questions]
    position = {passage.id: number for number, passage in enumerate(known_set.passages)}
    return recall.measure(
        framework.stored(list(position)),
        _as_queries(framework, texts),
        np.array(framework.embed_documents(texts), np.float32),
        [position[question.answer] for question in known_set.questions if question.answer],
        settings.known.min_dimensions,
    )


def _as_queries(framework: Framework, texts: Sequence[str]) -> Floats:
    return np.array([framework.embed_query(text) for text in texts], np.float32)


def _difference(first: Floats, second: Floats) -> float:
    return float(np.abs(first.astype(np.float64) - second).max())


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return Path(text)


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return count


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option: Any = parser.add_argument
    option(
        "--docs",
        type=_folder,
        metavar="FOLDER",
        help=f"index its {passages.SUFFIXES} files instead of Python's documentation",
    )
    option("-q", "--query", action="append", metavar="TEXT", help="ask this; may be repeated")
    option("--passages", type=_count, default=_PASSAGES, metavar="N", help="index at most N")
    option("-m", "--model", metavar="NAME", help="name on the hub, or a folder")
    option("--engine", metavar="NAME", help="use only this engine: sglang, transformers or demo")
    return parser.parse_args()


def main() -> int:
    """Run the demo and return its exit code."""
    arguments = _arguments()
    try:
        run(arguments)
    except (EmberdError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; a start goes on: see `emberd status`", file=sys.stderr)
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
